"""A metric of the user's own, named `package.module:function` in a sweep file.

    def function(hypotheses: list[str], references: list[list[str]]) -> list[float]

It returns a number for each source; higher is better, and the score is their mean. So intervals and tests work as for
every other metric. The module is looked for where Python looks, and in the working directory.
"""

import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefixray.errors import UserError, first_line
from prefixray.metrics.mean import count_one_by_one

_Function = Callable[[list[str], list[list[str]]], Sequence[float]]


def is_own(metric: str) -> bool:
    """Whether the name is that of a user's function."""
    return ":" in metric


def own_label(metric: str) -> str:
    """What tables call it: the function's name."""
    return metric.rpartition(":")[2]


def own_metric(metric: str) -> _Function:
    """The function. Raises `UserError`, whose text begins with the metric's name, where there is none."""
    module, _, name = metric.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise UserError(f"{metric}: must be package.module:function")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        where = "modules are looked for where python looks, and in the working directory"
        raise UserError(f"{metric}: {first_line(error)} ({where})") from None
    except (Exception, SystemExit) as error:  # whatever a user's module raises; a script may end itself
        raise UserError(f"{metric}: {module} cannot be imported: {_told(error)}") from error
    if not callable(function):
        where = getattr(sys.modules[module], "__file__", None) or "it is built in"
        raise UserError(f"{metric}: {module} has no function {name} ({where})")
    checked: _Function = function
    return checked


def count_own(
    metric: str, hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[NDArray[np.float64], str]:
    """Per source: its score and a one (N, 2); a signature. Raises `UserError` where the function does not score."""
    function = own_metric(metric)
    try:
        returned = function(list(hypotheses), [list(several) for several in references])
        scores = list(returned)
    except Exception as error:  # whatever a user's function raises
        raise UserError(f"{metric}: cannot score {len(hypotheses)} sources: {_told(error)}") from error
    if len(scores) != len(hypotheses):
        problem = f"returned {len(scores)} scores for {len(hypotheses)} sources"
        raise UserError(f"{metric}: {problem}; it must return one number for each source, in their order")
    for index, score in enumerate(scores):
        if not isinstance(score, Real | np.bool_) or not np.isfinite(float(score)):
            problem = f"returned {score!r} for source {index + 1} (hypothesis {hypotheses[index][:60]!r})"
            raise UserError(f"{metric}: {problem}; it must be a finite number")
    values = [float(score) for score in scores]
    return count_one_by_one(values), f"{metric}|mean over sources"


def local_source(metric: str) -> str | None:
    """The file or folder in the working directory that the function's module comes from; None where it is elsewhere."""
    top = metric.partition(":")[0].partition(".")[0]
    return next((path for path in (top, f"{top}.py") if is_own(metric) and Path(path).exists()), None)


def _told(error: BaseException) -> str:
    """The error's type, message and line."""
    if isinstance(error, SyntaxError):  # its message names its line
        return f"{type(error).__name__}: {first_line(error)}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {first_line(error)} ({frame.filename}:{frame.lineno})"
