"""How fast devices were in earlier sweeps: a plan estimates its hours from these speeds.

At its end a sweep writes the operations per second of its devices to `throughput.json` in the user's cache folder.
Operations are those of `flops.py`.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from prefixray.batching.rows import sampled
from prefixray.config.schema import SweepConfig
from prefixray.config.trials import METHODS, TrialConfig
from prefixray.planning.flops import decoding_flops, forward_flops, training_flops
from prefixray.results.record import IN_CONTEXT, UNTUNED
from prefixray.search.policies.choice import rules_of
from prefixray.system.atomic_files import write_whole
from prefixray.system.machine import cache_folder
from prefixray.training.facts import WorkerFacts
from prefixray.trial import RESULT_FILE, evaluated_shares

logger = logging.getLogger(__name__)

MOST_SPEEDS = 200  # in the file
Kind = Literal["shared", "alone", "decode"]
"""Trials that share the frozen base, fine-tuning, decoding."""


@dataclass(frozen=True)
class Speed:
    """The work that a device did in one sweep, and its time."""

    base: str
    num_parameters: int  # of the base
    device: str
    precision: str
    num_threads: int
    kind: Kind
    flops: float
    seconds: float
    target_tokens: int  # that were trained on; 0 for decoding
    sweep: str
    date: str

    @property
    def flops_per_second(self) -> float:
        """Counted operations over seconds; the seconds include evaluation on dev and the updates."""
        return self.flops / self.seconds


def load_speeds() -> list[Speed]:
    """All measured speeds; none where there is no file, or where another version wrote it."""
    try:
        stored = json.loads(_file().read_text(encoding="utf-8"))
        return [Speed(**speed) for speed in stored]
    except (OSError, ValueError, TypeError):
        return []


def store_speeds(speeds: Sequence[Speed]) -> None:
    """Add to the measured speeds; the newest of a kind, base and device replaces the older."""
    if not speeds:
        return
    new = {_key(speed): speed for speed in speeds}
    others = [speed for speed in load_speeds() if _key(speed) not in new][-MOST_SPEEDS:]
    path = _file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps([asdict(speed) for speed in (*others, *speeds)], indent=1) + "\n")


def keep_speeds(config: SweepConfig, folder: Path, facts: WorkerFacts, since: float, num_documents: int) -> None:
    """Store the speeds of a sweep. A cache that cannot be written to does not fail the sweep."""
    try:
        store_speeds(measured_speeds(config, folder, facts, since, num_documents))
    except OSError as error:
        logger.info("the measured speed is not kept: %s", error)


def measured_speeds(
    config: SweepConfig, folder: Path, facts: WorkerFacts, since: float, num_documents: int = 0
) -> list[Speed]:
    """The speeds of a sweep's runs, from the files that it has written after `since` (`time.time()`).

    Of several documents, a searched trial is trained on some at a time, and a final run decodes the questions about
    one. What a base decodes with a document in front of each row is left out, since that costs more.
    """
    totals: dict[Kind, _Total] = {"shared": _Total(), "alone": _Total(), "decode": _Total()}
    for path in _newer(folder, (f"trials/*/*/{RESULT_FILE}", f"final/*/{RESULT_FILE}"), since):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "train/seconds" not in result["metrics"]:
            continue
        kind: Kind = "alone" if METHODS[result["config"]["method"]["method"]].has_own_model else "shared"
        metrics = result["metrics"]
        num_members = config.search.num_searched(num_documents) if result["replicate"] == 0 else 1
        flops = num_members * _trained(config, facts, result)
        totals[kind].add(flops, metrics["train/seconds"], metrics.get("train/tokens", 0))
    for path in _newer(folder, ("final/*/test.json",), since):
        if not path.parent.name.startswith(IN_CONTEXT):
            share = 1 if path.parent.name == UNTUNED else 1 / max(1, num_documents)
            totals["decode"].add(
                share * _decoded(config, facts), json.loads(path.read_text(encoding="utf-8"))["seconds"]
            )
    return [
        Speed(
            base=config.base,
            num_parameters=facts.num_parameters,
            device=facts.device,
            precision=facts.precision,
            num_threads=facts.num_threads,
            kind=kind,
            flops=total.flops,
            seconds=total.seconds,
            target_tokens=int(total.tokens),
            sweep=config.name,
            date=time.strftime("%Y-%m-%d"),
        )
        for kind, total in totals.items()
        if total.seconds
    ]


@dataclass
class _Total:
    """The work of all runs of a kind."""

    flops: float = 0
    seconds: float = 0
    tokens: float = 0

    def add(self, flops: float, seconds: float, tokens: float = 0) -> None:
        self.flops += flops
        self.seconds += seconds
        self.tokens += tokens


def _trained(config: SweepConfig, facts: WorkerFacts, result: Mapping[str, Any]) -> float:
    """Operations of a trial, as far as it came: its steps and its evaluations on dev."""
    trial, step = TrialConfig.model_validate(result["config"]), result["step"]
    rules, is_searched = rules_of(config), result["replicate"] == 0
    sample = len(sampled(range(facts.num_dev), rules.dev_sample)) / facts.num_dev if is_searched else 1.0
    shares = evaluated_shares(config.train.eval_every, rules.rungs, trial.num_steps, sample)
    num_evaluations = sum(share for reported, share in shares.items() if reported <= step)
    each = training_flops(facts.shape, facts.train_lengths, trial.method, is_checkpointed=trial.gradient_checkpointing)
    num_examples = step * trial.batch_size * trial.grad_accumulation
    return float(num_examples * each + num_evaluations * facts.num_dev * forward_flops(facts.shape, facts.dev_lengths))


def _decoded(config: SweepConfig, facts: WorkerFacts) -> float:
    """Operations of decoding the test sources once."""
    final, source = config.final, facts.train_lengths.source
    each = decoding_flops(facts.shape, source, num_beams=final.num_beams, max_new_tokens=final.max_new_tokens)
    return float(facts.num_test * each)


def _newer(folder: Path, patterns: Sequence[str], since: float) -> list[Path]:
    return [path for pattern in patterns for path in folder.glob(pattern) if path.stat().st_mtime >= since]


def _key(speed: Speed) -> tuple[object, ...]:
    return speed.base, speed.device, speed.precision, speed.num_threads, speed.kind


def _file() -> Path:
    return cache_folder() / "throughput.json"
