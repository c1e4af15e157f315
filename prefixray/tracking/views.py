"""What MLflow's page shows of a sweep: where its runs come from, and two saved views of their list; all of it as tags.

Left to itself the page hides all parameters and metrics. A saved view is the state of that page as MLflow's own "Save
view" writes it (3.17): JSON with the columns, the order and the filter, compressed.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from prefixray.config.schema import SweepConfig
from prefixray.system.records import Scalar
from prefixray.trial import BEST_LOSS, LOSS, SAMPLE_LOSS

EXPERIMENT_TAGS: Mapping[str, str] = {
    "mlflow.experimentKind": "custom_model_development",  # not the page for language model applications
    "mlflow.experiment.primaryMetric.name": BEST_LOSS,
    "mlflow.experiment.primaryMetric.greaterIsBetter": "False",
}
_VIEW = "mlflow.sharedViewState."  # and the key that the page's address names: ?viewStateShareKey=trials
_CREATED = "attributes.start_time"  # the only order in which trials stand below their sweep


def saved_views(columns: Sequence[str], when: int) -> dict[str, str]:
    """The views as tags: "trials", below their sweep, and "best first", flat; `columns` as `column` names them."""
    return {
        f"{_VIEW}trials": _saved("trials", columns, order=_CREATED, ascending=False, when=when),
        f"{_VIEW}best": _saved("best first", columns, order=column("metrics", BEST_LOSS), ascending=True, when=when),
    }


def origin(file: Path) -> dict[str, str]:
    """Tags on where a run comes from: what MLflow notes of any run (its user, say), the sweep's file, our version.

    The commit is that of prefixray's own checkout; installed from a wheel it has none.
    """
    from mlflow.tracking.context.registry import resolve_tags
    from mlflow.utils.git_utils import get_git_commit

    found = {name: tag for name, tag in resolve_tags().items() if not name.startswith("mlflow.source.git.")}
    commit = get_git_commit(str(Path(__file__).parent))
    if commit is not None:
        found["mlflow.source.git.commit"] = commit
    return {**found, "mlflow.source.name": str(file), "prefixray.version": metadata.version("prefixray")}


def columns_of(config: SweepConfig) -> list[str]:
    """The columns of a sweep's saved views: those that tell its runs apart."""
    searched = dict.fromkeys(key for arm in config.arms for key in arm.dimensions)
    tags = [column("tags", f"prefixray.{name}") for name in ("arm", "state")]
    metrics = [column("metrics", name) for name in (BEST_LOSS, LOSS, SAMPLE_LOSS, config.final.metric)]
    return [*tags, *metrics, *(column("params", key) for key in searched)]


def sweep_params(config: SweepConfig) -> dict[str, Scalar]:
    """The parameters that all runs of a sweep share."""
    search = config.search
    return {
        "sweep": config.name,
        "base": config.base,
        "task": config.task.name,
        "search.seed": search.seed,
        "search.num_trials": search.num_trials,
    }


def column(kind: str, name: str) -> str:
    """A column of the list of runs; `kind` is attributes, metrics, params or tags."""
    return f"{kind}.`{name}`"


def _saved(name: str, columns: Sequence[str], *, order: str, ascending: bool, when: int) -> str:
    state = {
        "searchFilter": "",
        "orderByKey": order,
        "orderByAsc": ascending,
        "selectedColumns": list(columns),
        "columnOrder": [],
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    return json.dumps({"name": name, "createdAt": when, "updatedAt": when, "state": f"deflate;{packed}"})
