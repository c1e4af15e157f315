"""The comparison of arms: from the hypotheses of the final runs to the content of `results.json`.

No score of a search trial enters the table. Candidates are retrained and compared on dev; the winner runs with fresh
seeds, and only these runs see test. Untrained arms are decoded with the same settings: the base as it is, the floor,
and, where the task has a document, the base that sees the document, the ceiling.
"""

import logging
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from prefixray.config.schema import SweepConfig
from prefixray.config.seeds import subset_of
from prefixray.data import Sourced
from prefixray.metrics import Scored
from prefixray.results.by_document import Part, of_documents, parts_of, read_together, score_together
from prefixray.results.command_run import versions
from prefixray.results.examples import all_outputs, choose_examples
from prefixray.results.final_run import FinalRun, by_seed
from prefixray.results.hypotheses import read_split_record
from prefixray.results.record import (
    IN_CONTEXT,
    UNTUNED,
    ArmResult,
    ExampleOutputs,
    Provenance,
    Results,
    SearchTrial,
    SeedResult,
)
from prefixray.results.scores import Scores, add_group, as_interval, group_note, groups_of
from prefixray.results.space_notes import space_notes
from prefixray.results.statistics import Comparison, Draws, resolution, sd
from prefixray.system.machine import cpu_fact, num_cpus, total_bytes
from prefixray.trial import BEST_LOSS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Facts:
    """What `results.json` holds besides the scores."""

    config: SweepConfig
    provenance: Provenance
    decoding: Mapping[str, Any]
    search: Sequence[SearchTrial]
    minutes: Mapping[str, float]  # training time of each arm's search
    num_train: int  # examples that a run trains on
    leaks: Sequence[str] = ()  # notes on sources that two splits share
    endings: Sequence[str] = ()  # notes on searches that ended before their last trial
    left_out: Mapping[str, str] = field(default_factory=dict)  # arms that nobody trains and could not decode, and why


def make_results(
    facts: Facts,
    runs: Mapping[str, Sequence[FinalRun]],
    untrained: Mapping[str, Sequence[Part]],
    sources: Sequence[Sourced],
) -> tuple[Results, list[ExampleOutputs]]:
    """Score and compare everything: the whole content of results.json, and every arm's output on each source.

    `runs` are those that ended well, by arm; `untrained` is what untrained arms have decoded.
    """
    config, provenance = facts.config, facts.provenance
    metrics, primary = _metrics(config, provenance)
    parts = {arm: [of_arm] for arm, of_arm in untrained.items()}
    parts |= {arm: [parts_of(of_seed) for of_seed in by_seed(of_arm)] for arm, of_arm in runs.items()}
    scored = {
        arm: [score_together(of_seed, "test", sources, metrics, config.word_form) for of_seed in of_arm]
        for arm, of_arm in parts.items()
    }
    scores = Scores(scored, metrics, primary, _reference(config, runs), _draws(config, runs))
    arms = _arm_results(facts, runs, parts, scores, sources)
    for name, rows in groups_of(sources).items():
        add_group(name, rows, arms, scores)
    differences = [arm["difference"] for arm in arms if arm["method"] is not None]
    outputs = {arm: read_together(of_arm[0], "test") for arm, of_arm in parts.items()}
    every = all_outputs(outputs, {arm: seeds[0] for arm, seeds in scores.of(primary).items()}, sources)
    results = Results(
        sweep=config.name,
        base=config.base,
        base_digest=provenance.base_digest,
        task=config.task.name,
        data_digest=provenance.data_digest,
        split="test",
        num_train=facts.num_train,
        num_sources=len(sources),
        num_sources_total=provenance.num_test_total,
        metric=primary,
        reference=scores.reference,
        metrics=metrics,
        signatures={metric: scored[UNTUNED][0][metric].signature for metric in metrics},
        evaluation=config.evaluation,
        decoding=dict(facts.decoding),
        precision=provenance.precision,
        num_parameters=provenance.num_parameters,
        versions=versions(),
        machine=_machine(provenance),
        seed=config.search.seed,
        arms=arms,
        resolution=max((resolution(**difference) for difference in differences if difference), default=0.0),
        notes=_all_notes(facts, runs, untrained, sources),
        examples=choose_examples(every, scores.reference, primary),
        search=list(facts.search),
    )
    return results, every


def _metrics(config: SweepConfig, provenance: Provenance) -> tuple[list[str], str]:
    """The metrics in the order of the table, and the primary one."""
    metrics = list(provenance.metrics)
    primary = config.final.metric.removeprefix("test/")
    if primary not in metrics:
        metrics.insert(0, primary)
    more = [metric.removeprefix("test/") for metric in config.final.more_metrics]
    return list(dict.fromkeys([*metrics, *more])), primary


def _draws(config: SweepConfig, runs: Mapping[str, Sequence[FinalRun]]) -> Draws:
    """The seed of the bootstrap; with low data also the subset of each run."""
    draws: Draws = {"seed": config.search.seed}
    low = config.task.low_data
    if low is not None:
        subsets = {arm: [subset_of(run.replicate, low.num_subsets) for run in of_arm] for arm, of_arm in runs.items()}
        draws |= {"subsets": subsets, "num_subsets": low.num_subsets}
    return draws


def _all_notes(
    facts: Facts,
    runs: Mapping[str, Sequence[FinalRun]],
    untrained: Mapping[str, Sequence[Part]],
    sources: Sequence[Sourced],
) -> list[str]:
    """What a reader of the table has to know besides."""
    left_out = [
        f"{arm} is left out, since it could not be decoded: {problem}; the same command tries it again"
        for arm, problem in facts.left_out.items()
    ]
    notes = [*facts.leaks, *facts.endings, *left_out, *_notes(facts.config, runs)]
    groups = [] if facts.config.task.columns.group is None else group_note(sources)
    return [*notes, *groups, *_cut_note(untrained), *_space_notes(facts, runs)]


def _notes(config: SweepConfig, runs: Mapping[str, Sequence[FinalRun]]) -> list[str]:
    """A note for each arm of which final runs are missing from the table."""
    counts = {arm.name: len(by_seed(runs.get(arm.name, ()))) for arm in config.arms}
    wanted, has_documents = config.final.num_seeds, any(run.document for of_arm in runs.values() for run in of_arm)
    what = "seeds ended well for all documents" if has_documents else "final runs ended well"
    return [
        f"{arm}: {count or 'none'} of {wanted} {what}; see sweep.log, and {arm}'s result.json in final/ "
        "or, where no trial of its search has a score, in trials/"
        for arm, count in counts.items()
        if count < wanted
    ]


def _cut_note(untrained: Mapping[str, Sequence[Part]]) -> list[str]:
    """A note where documents were cut for the arm that sees them."""
    records = [(part.document, read_split_record(part.folder, "test")) for part in untrained.get(IN_CONTEXT, ())]
    texts = [(name, record["text"]) for name, record in records if "text" in record]
    cuts = [
        f"{text['num_seen']:,} of {'the document' if name is None else name}'s {text['num_tokens']:,} tokens"
        for name, text in texts
        if text["num_seen"] < text["num_tokens"]
    ]
    return [f"{IN_CONTEXT} sees the first {', '.join(cuts)}: no more fit the base's positions"] if cuts else []


def _space_notes(facts: Facts, runs: Mapping[str, Sequence[FinalRun]]) -> list[str]:
    """What the search says of its own space."""
    searched = {(trial["arm"], trial["number"]): trial["config"] for trial in facts.search}
    winners = {arm: searched.get((arm, of_arm[0].number), {}) for arm, of_arm in runs.items() if of_arm}
    return space_notes(facts.config.arms, winners, facts.search)


def _reference(config: SweepConfig, runs: Mapping[str, Sequence[FinalRun]]) -> str:
    """The arm that the others are compared with; where all its runs failed, the first arm that has one."""
    wanted = config.final.reference or config.arms[0].name
    if wanted in runs:
        return wanted
    instead = next(iter(runs), UNTUNED)
    logger.warning("no final run of the reference %s has ended well; %s takes its place", wanted, instead)
    return instead


def _arm_results(
    facts: Facts,
    runs: Mapping[str, Sequence[FinalRun]],
    parts: Mapping[str, Sequence[Sequence[Part]]],
    scores: Scores,
    sources: Sequence[Sourced],
) -> list[ArmResult]:
    """Every arm's part of `results.json`; `parts` are what its seeds have decoded."""
    compared = scores.compare()
    arms = []
    for arm, scored in scores.by_arm.items():
        records = [read_split_record(part.folder, "test").get("kv", {}) for part in parts[arm][0]]
        kv = {key: round(fmean(record.get(key, 0) for record in records)) for key in ("numbers", "bytes")}
        of_arm = {metric: compared[metric][arm] for metric in scores.metrics}
        seeds = _seed_results(arm, by_seed(runs.get(arm, ())), scored, sources)
        arms.append(_arm_result(facts, arm, seeds, runs.get(arm, ()), of_arm, kv["numbers"]))
        if any(records):
            arms[-1]["kv_bytes"] = kv["bytes"]
    for result, distance in zip(arms, scores.distances(IN_CONTEXT), strict=False):  # none where no arm has the document
        if distance is not None:
            result["to_context"] = as_interval(distance)
    return arms


def _seed_results(
    arm: str,
    seeds: Sequence[Sequence[FinalRun]],
    scored: Sequence[Mapping[str, Scored]],
    sources: Sequence[Sourced],
) -> list[SeedResult]:
    """Each seed's part of `results.json`; an untrained arm has none."""
    scores = [{metric: score.corpus() for metric, score in seed.items()} for seed in scored]
    if not seeds:
        return [SeedResult(seed=0, scores=scores[0], dev_loss=None, folder=f"final/{arm}")]
    found = []
    for runs, of_seed, seed_scores in zip(seeds, scored, scores, strict=True):
        results = [run.result() or {} for run in runs]
        dev_loss = fmean(result["metrics"][BEST_LOSS] for result in results)
        number, folder, curve = runs[0].replicate, runs[0].name, _mean_curve([_curve(result) for result in results])
        seed = SeedResult(seed=number, scores=seed_scores, dev_loss=dev_loss, folder=folder, curve=curve)
        documents = of_documents(runs, of_seed, sources)
        found.append({**seed, "documents": documents} if documents else seed)
    return found


def _mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """The means at the steps that all curves have."""
    by_step = [dict(curve) for curve in curves]
    steps = [step for step in by_step[0] if all(step in each for each in by_step)]
    return [(step, fmean(each[step] for each in by_step)) for step in steps]


def _arm_result(
    facts: Facts,
    arm: str,
    seeds: list[SeedResult],
    runs: Sequence[FinalRun],
    compared: Mapping[str, Comparison],
    num_kv: int,
) -> ArmResult:
    """An arm's part of `results.json`; an untrained arm has no runs. `compared` is by metric.

    `num_kv` are the numbers in the keys and values in front of a row.
    """
    num_searched = sum(trial["arm"] == arm for trial in facts.search)
    sizes = (runs[0].result() or {})["metrics"] if runs else {}
    main = compared[facts.config.final.metric.removeprefix("test/")]
    return ArmResult(
        arm=arm,
        method=runs[0].arm.method if runs else None,
        config=runs[0].config.model_dump(mode="json") if runs else {},
        seeds=seeds,
        scores={metric: as_interval(comparison.score) for metric, comparison in compared.items()},
        sd={metric: sd([seed["scores"][metric] for seed in seeds]) for metric in compared},
        difference=None if main.difference is None else as_interval(main.difference),
        p=main.p,
        p_holm=main.p_holm,
        trained_parameters=int(sizes.get("size/trained", 0)),
        stored_parameters=int(sizes.get("size/stored", 0) if runs else num_kv),
        num_trials=num_searched or len(runs[:1]),
        minutes=facts.minutes.get(arm, 0.0),
        searched=num_searched > 0,
    )


def _curve(result: Mapping[str, Any]) -> list[tuple[int, float]]:
    """The dev losses of a final run by step, the last one among them."""
    losses = {int(step): loss for step, loss in result.get("earlier", {}).items()}
    if "step" in result and "dev/loss" in result["metrics"]:
        losses[result["step"]] = result["metrics"]["dev/loss"]
    return [(step, loss) for step, loss in sorted(losses.items()) if math.isfinite(loss)]


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
