"""`python -m prefixray` is the `prefixray` command.

python -m prefixray --help
"""

from prefixray.cli import command

command()
