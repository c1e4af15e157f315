"""`python -m prefixray` is the `prefixray` command.

python -m prefixray --help
"""

import sys

from prefixray.cli import main

sys.exit(main())
