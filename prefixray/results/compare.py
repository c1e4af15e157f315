"""The final stage: each arm's best configuration again with fresh seeds, decoded and scored on test.

No score of a search trial enters the table. Candidates are retrained and compared on dev; the winner runs fresh seeds;
only those see test. The untuned base, decoded with the same settings, is the floor.
"""

import logging
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from prefixray.config.schema import ArmConfig, SweepConfig
from prefixray.config.trials import TrialConfig
from prefixray.data import Sourced
from prefixray.metrics import Floats, Scored, higher_is_better
from prefixray.results.hypotheses import read_hypotheses, score_all
from prefixray.results.record import (
    ArmResult,
    ExampleOutputs,
    GroupResult,
    Interval,
    Provenance,
    Results,
    SearchTrial,
    SeedResult,
)
from prefixray.results.statistics import Comparison, Draws, Estimate, compare, intervals, resolution, sd
from prefixray.system.machine import cpu_fact, num_cpus, total_bytes
from prefixray.system.seeds import subset_of
from prefixray.trial import TrialFolder

logger = logging.getLogger(__name__)

UNTUNED = "untuned"
NUM_EXAMPLES = 3  # sources that are printed with their outputs
MOST_GROUPS = 4
"""More groups of test sources than this are not scored apart: XSum's articles have dozens of topics."""
NUM_EXTREMES = 20
"""The sources on which an arm and the reference differ most; their outputs are kept, like those of the first ones."""
_PACKAGES = ("prefixray", "torch", "transformers", "ray", "optuna", "mlflow", "sacrebleu", "numpy")


@dataclass(frozen=True)
class FinalRun:
    """One training run of the final stage."""

    arm: ArmConfig
    config: TrialConfig
    number: int  # the search trial that the configuration comes from; 0 where nothing was searched
    replicate: int
    folder: Path

    @property
    def item(self) -> str:
        """Its name in the study."""
        return f"{self.number}@{self.replicate}"

    @property
    def artifact(self) -> Path:
        """The state with the best dev loss."""
        return TrialFolder(self.folder).artifact

    def result(self) -> dict[str, Any] | None:
        """What came of it; None where it has not ended well."""
        result = TrialFolder(self.folder).result()
        return None if result is None or result["state"] != "done" else result


@dataclass(frozen=True)
class Facts:
    """What a table needs to know besides the scores."""

    config: SweepConfig
    provenance: Provenance
    decoding: Mapping[str, Any]
    search: Sequence[SearchTrial]
    minutes: Mapping[str, float]  # training time of each arm's search
    sweep_minutes: float
    leak: str | None = None  # what is to be said of test sources that are trained on


def make_results(
    facts: Facts, runs: Mapping[str, Sequence[FinalRun]], floor: Path, sources: Sequence[Sourced]
) -> Results:
    """Score everything and compare it: the whole content of results.json. `runs` are those that ended well, by arm."""
    config, provenance, metrics = facts.config, facts.provenance, list(facts.provenance.metrics)
    primary = config.final.metric.removeprefix("test/")
    if primary not in metrics:
        metrics.insert(0, primary)
    more = [metric.removeprefix("test/") for metric in config.final.more_metrics]
    metrics += [metric for metric in dict.fromkeys(more) if metric not in metrics]
    folders = {UNTUNED: [floor], **{arm: [run.folder for run in own] for arm, own in runs.items()}}
    scored = {arm: [score_of(folder, "test", sources, metrics) for folder in own] for arm, own in folders.items()}
    reference = _reference(config, runs)
    by_metric = {metric: {arm: [seed[metric] for seed in seeds] for arm, seeds in scored.items()} for metric in metrics}
    low = config.task.low_data
    draws: Draws = {"seed": config.search.seed}
    if low is not None:
        own = {arm: [subset_of(run.replicate, low.num_subsets) for run in some] for arm, some in runs.items()}
        draws |= {"subsets": own, "num_subsets": low.num_subsets}
    estimates = {
        metric: {one.arm: one for one in intervals(own, reference, **draws)} for metric, own in by_metric.items()
    }
    rivals = {arm: seeds for arm, seeds in by_metric[primary].items() if arm != UNTUNED or arm == reference}
    compared = compare(rivals, reference, **draws)  # the floor is no rival: it costs no arm its p
    estimates[primary].update({one.arm: one for one in compared})
    arms = [
        _arm_result(facts, arm, list(runs.get(arm, ())), scored[arm], {m: estimates[m][arm] for m in metrics}, primary)
        for arm in scored
    ]
    for name, rows in _groups(sources).items():
        _add_group(name, rows, arms, scored, reference, primary, draws)
    return Results(
        sweep=config.name,
        base=config.base,
        base_digest=provenance.base_digest,
        task=config.task.name,
        data_digest=provenance.data_digest,
        split="test",
        num_sources=len(sources),
        num_sources_total=provenance.num_test_total,
        metric=primary,
        reference=reference,
        metrics=metrics,
        signatures={metric: scored[UNTUNED][0][metric].signature for metric in metrics},
        decoding=dict(facts.decoding),
        precision=provenance.precision,
        num_parameters=provenance.num_parameters,
        versions={package: metadata.version(package) for package in _PACKAGES},
        machine=_machine(provenance),
        seed=config.search.seed,
        arms=arms,
        resolution=max((resolution(**asdict(one.difference)) for one in compared if one.difference), default=0.0),
        notes=[*([facts.leak] if facts.leak else ()), *_notes(config, runs)],
        examples=_examples(folders, scored, sources, primary, reference),
        search=list(facts.search),
        budget={"minutes": facts.sweep_minutes},
    )


def _groups(sources: Sequence[Sourced]) -> dict[str, list[int]]:
    """The places of each group's sources; none where the task names no groups, or more than a table can show."""
    places: dict[str, list[int]] = {}
    for place, sourced in enumerate(sources):
        if sourced.group is not None:
            places.setdefault(sourced.group, []).append(place)
    return dict(sorted(places.items())) if 1 < len(places) <= MOST_GROUPS else {}


def _add_group(
    name: str,
    rows: Sequence[int],
    arms: Sequence[ArmResult],
    scored: Mapping[str, Sequence[Mapping[str, Scored]]],
    reference: str,
    primary: str,
    draws: Draws,
) -> None:
    """Score a group alone and write that into the arms; NIST's and CIDEr's weights stay those of all references."""
    for metric in next(iter(scored.values()))[0]:
        part = {
            arm: [replace(one[metric], statistics=one[metric].statistics[rows]) for one in seeds]
            for arm, seeds in scored.items()
        }
        compared = {one.arm: one for one in intervals(part, reference, **draws)}
        for arm in arms:
            found = compared[arm["arm"]]
            empty = GroupResult(num_sources=len(rows), scores={}, difference=None)
            group = arm.setdefault("groups", {}).setdefault(name, empty)
            group["scores"][metric] = _interval(found.score)
            if metric == primary and found.difference is not None:
                group["difference"] = _interval(found.difference)


def _notes(config: SweepConfig, runs: Mapping[str, Sequence[FinalRun]]) -> list[str]:
    """Final runs that are missing from the table."""
    counts = {arm.name: len(runs.get(arm.name, ())) for arm in config.arms}
    wanted = config.final.num_seeds
    return [
        f"{arm}: {count or 'none'} of {wanted} final runs ended well; see {arm}'s result.json in final/ and sweep.log"
        for arm, count in counts.items()
        if count < wanted
    ]


def _reference(config: SweepConfig, runs: Mapping[str, Sequence[FinalRun]]) -> str:
    """The arm that the others are compared with; the first that has a run where that one failed."""
    wanted = config.final.reference or config.arms[0].name
    if wanted in runs:
        return wanted
    instead = next(iter(runs), UNTUNED)
    logger.warning("no final run of the reference %s has ended well; %s takes its place", wanted, instead)
    return instead


def _arm_result(
    facts: Facts,
    arm: str,
    runs: list[FinalRun],
    scored: Sequence[Mapping[str, Scored]],
    estimates: Mapping[str, Comparison],
    primary: str,
) -> ArmResult:
    results = [run.result() or {} for run in runs]
    seeds = [
        SeedResult(
            seed=run.replicate,
            scores={metric: one.corpus() for metric, one in scores.items()},
            dev_loss=result["metrics"]["dev/best_loss"],
            folder=f"final/{run.folder.name}",
        )
        for run, result, scores in zip(runs, results, scored, strict=False)
    ]
    if not runs:
        seeds = [
            SeedResult(
                seed=0, scores={m: s.corpus() for m, s in scored[0].items()}, dev_loss=None, folder="final/untuned"
            )
        ]
    own = [trial for trial in facts.search if trial["arm"] == arm]
    sizes = results[0]["metrics"] if results else {}
    main = estimates[primary]
    return ArmResult(
        arm=arm,
        method=runs[0].arm.method if runs else None,
        config=runs[0].config.model_dump(mode="json") if runs else {},
        seeds=seeds,
        scores={metric: _interval(estimate.score) for metric, estimate in estimates.items()},
        sd={metric: sd([seed["scores"][metric] for seed in seeds]) for metric in estimates},
        difference=None if main.difference is None else _interval(main.difference),
        p=main.p,
        p_holm=main.p_holm,
        trained_parameters=int(sizes.get("size/trained", 0)),
        stored_parameters=int(sizes.get("size/stored", 0)),
        num_trials=len(own) or len(runs[:1]),
        minutes=facts.minutes.get(arm, 0.0),
        searched=bool(own),
    )


def _interval(estimate: Estimate) -> Interval:
    return Interval(value=estimate.value, low=estimate.low, high=estimate.high)


def _examples(
    folders: Mapping[str, Sequence[Path]],
    scored: Mapping[str, Sequence[Mapping[str, Scored]]],
    sources: Sequence[Sourced],
    primary: str,
    reference: str,
) -> list[ExampleOutputs]:
    """Outputs of each arm's first seed, side by side: the first sources, then those where the arms differ most."""
    outputs = {arm: read_hypotheses(own[0], "test") for arm, own in folders.items()}
    scores = {arm: own[0][primary].of_sums(own[0][primary].statistics) for arm, own in scored.items()}  # (N,) each
    chosen = _extremes(scores, reference, 1.0 if higher_is_better(primary) else -1.0)
    examples = []
    num_first = NUM_EXAMPLES if chosen else NUM_EXTREMES
    for index in dict.fromkeys([*range(min(num_first, len(sources))), *chosen]):
        example = ExampleOutputs(
            source=sources[index].source,
            references=list(sources[index].references),
            outputs={arm: texts[index] for arm, texts in outputs.items()},
            scores={arm: float(values[index]) for arm, values in scores.items()},
        )
        if index in chosen:
            example["arm"] = chosen[index]
        examples.append(example)
    return examples


def _extremes(scores: Mapping[str, Floats], reference: str, sign: float) -> dict[int, str]:
    """The sources on which an arm is farthest behind the reference or ahead of it, the arms in turn; and that arm."""
    queues: list[tuple[str, list[int]]] = []
    for arm in (arm for arm in scores if arm not in (reference, UNTUNED)):
        difference = sign * (scores[arm] - scores[reference])
        for end in (difference, -difference):
            queues.append((arm, [int(i) for i in np.argsort(end, kind="stable") if end[i] < 0]))
    chosen: dict[int, str] = {}
    while len(chosen) < NUM_EXTREMES and any(queue for _, queue in queues):
        for arm, queue in queues:
            while queue and queue[0] in chosen:
                del queue[0]
            if queue and len(chosen) < NUM_EXTREMES:
                chosen[queue.pop(0)] = arm
    return chosen


def _machine(provenance: Provenance) -> dict[str, object]:
    return {
        "device": provenance.device,
        "num_threads": provenance.num_threads,
        "cpu": cpu_fact("model name") or platform.processor() or platform.machine(),
        "num_cpus": num_cpus(),
        "memory_gib": round(total_bytes() / 2**30, 1),
        "python": sys.version.split()[0],
        "system": platform.platform(),
    }


def score_of(folder: Path, split: str, sources: Sequence[Sourced], metrics: Sequence[str]) -> dict[str, Scored]:
    """The scores of the hypotheses in a folder."""
    return score_all(read_hypotheses(folder, split), sources, metrics)
