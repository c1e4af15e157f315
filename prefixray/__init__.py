"""Prefix-tuning sweeps in which all trials share one frozen model.

`import prefixray` loads neither torch nor Ray; each name below is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefixray.config.load import load_sweep
    from prefixray.decoding.tuned_model import Tuned, generate_together, open_base
    from prefixray.driver.run import run_sweep
    from prefixray.errors import UserError
    from prefixray.planning.estimate import plan_sweep
    from prefixray.reporting.notebook import open_sweep

__all__ = [
    "Tuned",
    "UserError",
    "__version__",
    "generate_together",
    "load_sweep",
    "open_base",
    "open_sweep",
    "plan_sweep",
    "run_sweep",
]
__version__ = "0.1.0"
_WHERE = {
    "Tuned": "prefixray.decoding.tuned_model",
    "UserError": "prefixray.errors",
    "generate_together": "prefixray.decoding.tuned_model",
    "load_sweep": "prefixray.config.load",
    "open_base": "prefixray.decoding.tuned_model",
    "open_sweep": "prefixray.reporting.notebook",
    "plan_sweep": "prefixray.planning.estimate",
    "run_sweep": "prefixray.driver.run",
}


def __getattr__(name: str) -> object:
    """Load the module of a public name; Python calls this for names that the package does not have yet."""
    if name not in _WHERE:
        raise AttributeError(f"module 'prefixray' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    """The public names, for completion in a shell."""
    return sorted(__all__)
