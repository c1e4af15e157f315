"""What makes two sweeps the same, and a sweep file as it was read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefixray.config.load import _BUDGETS
from prefixray.config.schema import ArmConfig, SweepConfig
from prefixray.errors import UserError
from prefixray.system.yaml_document import shown


def dump(config: SweepConfig) -> dict[str, Any]:
    """The configuration as JSON can hold it."""
    return config.model_dump(mode="json", by_alias=True)


def restore(dumped: Mapping[str, Any]) -> SweepConfig:
    """The configuration that was dumped, by this version or by one whose recipes still had the key `order`."""
    arms = [{**arm, **{part: _without_order(arm[part]) for part in ("train", "fixed")}} for arm in dumped["arms"]]
    current = {**dumped, "train": _without_order(dumped["train"]), "arms": arms}
    return SweepConfig.model_validate_json(json.dumps(current), strict=True)


def _without_order(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without `order: pairs`, which all recipes now mean; any other order remains, and is refused."""
    return {key: value for key, value in values.items() if (key, value) != ("order", "pairs")}


def stored_config(folder: Path) -> SweepConfig:
    """The configuration that a sweep in this folder was last run with, overrides included."""
    path = folder / "sweep.json"
    try:
        return restore(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:  # pydantic's and JSON's are ValueErrors
        raise UserError(f"{path}: was written by another version of prefixray ({error})") from None


def identity(config: SweepConfig) -> dict[str, Any]:
    """What may not change when a sweep goes on: everything but budgets, tracking and `final`."""
    whole = dump(config)
    for key in ("final", "tracking"):
        del whole[key]
    whole["search"] = {key: value for key, value in whole["search"].items() if key not in _BUDGETS}
    whole["arms"] = {arm.name: _arm_identity(arm) for arm in config.arms}
    return whole


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, a line each: `train.num_steps: 40 -> 60`."""
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


def _arm_identity(arm: ArmConfig) -> dict[str, Any]:
    dimensions = {
        key: dimension.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        for key, dimension in arm.dimensions.items()
    }
    first = {"first": [dict(entry) for entry in arm.first]} if arm.first else {}
    return {"method": arm.method, **arm.fixed, **dimensions, **first}
