"""How much is computed in training and decoding, and how fast it was: what a plan estimates hours from.

Work is counted in floating-point operations of the matrix products, from the base's sizes and the lengths of texts
alone. At its end a sweep writes what its devices did per second to `throughput.json` in the user's cache folder.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from prefixray.config.schema import SweepConfig
from prefixray.config.trials import METHODS, TrialConfig
from prefixray.planning.flops import decoding_flops, forward_flops, training_flops
from prefixray.system.atomic_files import write_whole
from prefixray.system.machine import cache_folder
from prefixray.training.facts import WorkerFacts
from prefixray.trial import RESULT_FILE, report_steps

logger = logging.getLogger(__name__)

MOST_SPEEDS = 200  # that are remembered
Kind = Literal["shared", "alone", "decode"]
"""Trials that share the frozen base, fine-tuning, decoding."""


@dataclass(frozen=True)
class Speed:
    """What a device did per second, in one sweep."""

    base: str
    num_parameters: int  # of the base
    device: str
    precision: str
    num_threads: int
    kind: Kind
    flops: float
    seconds: float
    target_tokens: int  # trained on; 0 for decoding
    sweep: str
    date: str

    @property
    def flops_per_second(self) -> float:
        """Of the work as it is counted here; evaluation on dev and the updates are part of the time."""
        return self.flops / self.seconds


def load_speeds() -> list[Speed]:
    """All measured speeds; none where the cache has none, or another version's."""
    try:
        stored = json.loads(_file().read_text(encoding="utf-8"))
        return [Speed(**one) for one in stored]
    except (OSError, ValueError, TypeError):
        return []


def store_speeds(speeds: Sequence[Speed]) -> None:
    """Add to the measured speeds; the newest of a kind, base and device replaces the older."""
    if not speeds:
        return
    new = {_key(speed): speed for speed in speeds}
    kept = [speed for speed in load_speeds() if _key(speed) not in new][-MOST_SPEEDS:]
    path = _file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps([asdict(one) for one in (*kept, *speeds)], indent=1) + "\n")


def keep_speeds(config: SweepConfig, folder: Path, facts: WorkerFacts, since: float) -> None:
    """Store what a sweep has measured; a cache that cannot be written to is no reason to fail."""
    try:
        store_speeds(measured_speeds(config, folder, facts, since))
    except OSError as error:
        logger.info("the measured speed is not kept: %s", error)


def measured_speeds(config: SweepConfig, folder: Path, facts: WorkerFacts, since: float) -> list[Speed]:
    """The speeds of a sweep's runs, from the files that it has written after `since` (`time.time()`)."""
    work: dict[Kind, list[float]] = {"shared": [0, 0, 0], "alone": [0, 0, 0], "decode": [0, 0, 0]}
    for path in _newer(folder, (f"trials/*/*/{RESULT_FILE}", f"final/*/{RESULT_FILE}"), since):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "train/seconds" not in result["metrics"]:
            continue
        kind: Kind = "alone" if METHODS[result["config"]["method"]["method"]].has_own_model else "shared"
        _add(work[kind], _trained(config, facts, result), result["metrics"])
    for path in _newer(folder, ("final/*/test.json",), since):
        _add(work["decode"], _decoded(config, facts), {"train/seconds": json.loads(path.read_text())["seconds"]})
    return [
        Speed(
            base=config.base,
            num_parameters=facts.num_parameters,
            device=facts.device,
            precision=facts.precision,
            num_threads=facts.num_threads,
            kind=kind,
            flops=flops,
            seconds=seconds,
            target_tokens=int(tokens),
            sweep=config.name,
            date=time.strftime("%Y-%m-%d"),
        )
        for kind, (flops, seconds, tokens) in work.items()
        if seconds
    ]


def _trained(config: SweepConfig, facts: WorkerFacts, result: Mapping[str, Any]) -> float:
    """The work of a trial as far as it came: its steps, and its evaluations on dev."""
    trial, step = TrialConfig.model_validate(result["config"]), result["step"]
    steps = report_steps(config.train, config.search.rungs, trial.num_steps)
    num_evaluations = sum(one <= step for one in steps)
    each = training_flops(facts.shape, facts.train_lengths, trial.method, is_checkpointed=trial.gradient_checkpointing)
    num_examples = step * trial.batch_size * trial.grad_accumulation
    return float(num_examples * each + num_evaluations * facts.num_dev * forward_flops(facts.shape, facts.dev_lengths))


def _decoded(config: SweepConfig, facts: WorkerFacts) -> float:
    final, source = config.final, facts.train_lengths.source
    each = decoding_flops(facts.shape, source, num_beams=final.num_beams, max_new_tokens=final.max_new_tokens)
    return float(facts.num_test * each)


def _add(work: list[float], flops: float, metrics: Mapping[str, float]) -> None:
    work[0] += flops
    work[1] += metrics["train/seconds"]
    work[2] += metrics.get("train/tokens", 0)


def _newer(folder: Path, patterns: Sequence[str], since: float) -> list[Path]:
    return [path for pattern in patterns for path in folder.glob(pattern) if path.stat().st_mtime >= since]


def _key(speed: Speed) -> tuple[object, ...]:
    return speed.base, speed.device, speed.precision, speed.num_threads, speed.kind


def _file() -> Path:
    return cache_folder() / "throughput.json"
