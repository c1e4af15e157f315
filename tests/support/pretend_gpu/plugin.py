"""Runs pytest with the pretended GPU: python -m pytest -n 0 -p tests.support.pretend_gpu.plugin -m gpu."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # pytest adds it later, and the device must come before torch

from support.pretend_gpu import device

device.pretend()
