"""Python runs this when it starts: processes that a run with the pretended GPU starts have it, too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3]))

from support.pretend_gpu import device

device.pretend()
