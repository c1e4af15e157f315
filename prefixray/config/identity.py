"""What makes two sweeps the same sweep, and a configuration as JSON.

A sweep that was stopped goes on in its folder only where its identity is unchanged: all that its numbers depend on.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefixray.config.schema import ArmConfig, SweepConfig
from prefixray.config.space import AnyDimension, Cases
from prefixray.errors import UserError
from prefixray.system.yaml_document import shown

_BUDGETS = frozenset({"num_trials", "stop_when", "max_hours", "max_gpu_hours", "max_wait_hours"})
_BUDGETS |= {"concurrency", "max_failures"}
_NOT_TRAINED = frozenset({"evaluation", "final", "tracking"})
# Of `search`, before it had these keys.
_ONCE: Mapping[str, Any] = {"policy": "stop", "rungs": [], "keep": 0.5, "dev_sample": 1.0}


def dump(config: SweepConfig) -> dict[str, Any]:
    """The configuration as plain values that JSON can hold."""
    return config.model_dump(mode="json", by_alias=True)


def restore(dumped: Mapping[str, Any]) -> SweepConfig:
    """The configuration that was dumped, by this version or an earlier one.

    Earlier ones had the key `order` in recipes, or no key for what `_ONCE` has. Raises pydantic's `ValidationError`, a
    `ValueError`, where it is another version's.
    """
    values = _without_order(dumped)
    if isinstance(values, dict) and isinstance(search := values.get("search"), dict):
        values["search"] = {**_ONCE, **search}
    return SweepConfig.model_validate_json(json.dumps(values), strict=True)


def _without_order(value: Any) -> Any:  # noqa: ANN401
    """The value without `order: pairs`, which all recipes now mean; any other order remains, and is refused."""
    if isinstance(value, Mapping):
        return {key: _without_order(inner) for key, inner in value.items() if (key, inner) != ("order", "pairs")}
    return [_without_order(inner) for inner in value] if isinstance(value, list) else value


def stored_config(folder: Path) -> SweepConfig:
    """The configuration of the last run of the sweep in this folder, overrides included."""
    path = folder / "sweep.json"
    try:
        return restore(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: is damaged; give this sweep another name ({error})") from None
    except ValueError as error:  # pydantic's
        raise UserError(f"{path}: was written by another version; give this sweep another name ({error})") from None


def identity(config: SweepConfig) -> dict[str, Any]:
    """All values that may not change when a sweep goes on: all but budgets, `evaluation`, `tracking` and `final`."""
    values = {key: value for key, value in dump(config).items() if key not in _NOT_TRAINED}
    values["search"] = {key: value for key, value in values["search"].items() if key not in _BUDGETS}
    values["arms"] = {arm.name: arm_values(arm) for arm in config.arms}
    return values


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The differences between two identities, one line each: `train.num_steps: 40 -> 60`."""
    lines: list[str] = []
    for key in [*old, *(key for key in new if key not in old)]:
        if key not in new:
            lines.append(f"{key}: {shown(old[key])} -> removed")
        elif key not in old:
            lines.append(f"{key}: added -> {shown(new[key])}")
        elif isinstance(old[key], dict) and isinstance(new[key], dict):
            lines += [f"{key}.{line}" for line in differences(old[key], new[key])]
        elif old[key] != new[key]:
            lines.append(f"{key}: {shown(old[key])} -> {shown(new[key])}")
    return lines


def arm_values(arm: ArmConfig) -> dict[str, Any]:
    """An arm as it stands in a sweep file, without its number of trials."""
    dimensions = {key: _as_written(dimension) for key, dimension in arm.dimensions.items()}
    first: dict[str, Any] = {"first": [dict(entry) for entry in arm.first]} if arm.first else {}
    first = {"first": "auto"} if arm.first_auto else first
    return {"method": arm.method, **arm.fixed, **dimensions, **first}


def _as_written(dimension: AnyDimension) -> Any:  # noqa: ANN401
    """The dimension as it stands in a sweep file: a mapping, or a list of the mappings of its cases."""
    dumped = dimension.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return dumped["cases"] if isinstance(dimension, Cases) else dumped
