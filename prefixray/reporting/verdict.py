"""The notes under the final table, down to the verdict: which arm won, or why none did.

A difference that may be chance is never called a win, nor is one between arms that were not treated alike.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefixray.metrics import decimals, higher_is_better, label
from prefixray.reporting.in_context import context_notes
from prefixray.results.record import ArmResult, Results, tuned_arms
from prefixray.results.statistics import resolution
from prefixray.trial import report_steps

SIGNIFICANT = 0.05  # p after Holm's correction below which a difference is marked


@dataclass(frozen=True)
class Verdict:
    """A sentence, and the arm that it names the winner."""

    text: str
    winner: str | None = None


def notes(results: Results) -> list[str]:
    """The notes that a reader of the table needs, the verdict last; a single arm has no verdict."""
    lines = notes_without_verdict(results)
    return lines if len(tuned_arms(results)) < 2 else [*lines, verdict(results).text]


def notes_without_verdict(results: Results) -> list[str]:
    """The same below a headline that is the verdict."""
    lines = [*caveats(results), *context_notes(results)]
    if any(is_significant(arm) for arm in results["arms"]):
        lines.append(f"* differs from {results['reference']}: {star_text()}")
    if len(tuned_arms(results)) < 2:
        return lines
    return [*lines, *seed_caveats(results), f"{_smallest_differences(results)}."]


def caveats(results: Results) -> list[str]:
    """What the record notes of its own data and search, what the arms had unequal shares of."""
    most = max(results["arms"], key=lambda arm: arm["num_trials"])
    lines = list(results.get("notes", ()))
    if not higher_is_better(results["metric"]):
        lines.append(f"{label(results['metric'])}: lower is better")
    if any(arm["num_trials"] < most["num_trials"] for arm in tuned_arms(results)):
        lines.append(f"+ searched less than {most['arm']}: not a fair comparison")
    return [*lines, *_unequal(results).values()]


def seed_caveats(results: Results) -> list[str]:
    """What one seed leaves open where several arms were compared."""
    if len(tuned_arms(results)) < 2 or num_seeds(results) > 1:
        return []
    return ["one seed: intervals, p and * are about these trained models; other seeds would give others"]


def star_text(correction: str = "Holm's correction") -> str:
    """What a star says; `correction` is that of the p values."""
    return f"p < {SIGNIFICANT} after {correction}, and an interval clear of 0"


def is_significant(arm: ArmResult) -> bool:
    """Whether an arm is marked: by p, which takes the trained models as given, and by the interval over seeds, too."""
    difference = arm["difference"]
    if arm["p_holm"] is None or difference is None:
        return False
    return arm["p_holm"] < SIGNIFICANT and (difference["low"] > 0 or difference["high"] < 0)


def num_seeds(results: Results) -> int:
    """Seeds of the arm that has most."""
    return max(len(arm["seeds"]) for arm in results["arms"])


def _smallest_differences(results: Results) -> str:
    """The smallest differences that these sources can tell apart; with one seed also those that all sources could."""
    count, total, name = results["num_sources"], results["num_sources_total"], label(results["metric"])
    if count == 1:
        return "one source tells nothing apart"
    differences = [arm["difference"] for arm in tuned_arms(results)]
    told = [resolution(**difference) for difference in differences if difference is not None]
    smallest = [number for number in told if number > 0]
    if not smallest:
        return f"the arms differ by as much {name} on every source, which tells nothing about smaller differences"
    text = f"{count} sources cannot tell apart differences below {_range(smallest, results)} {name}"
    if count < total and num_seeds(results) == 1:
        of_all = [difference * math.sqrt(count / total) for difference in smallest]
        text += f"; all {total} could tell about {_range(of_all, results)}"
    return text


def _range(numbers: Sequence[float], results: Results) -> str:
    """`3.1`, or `1.6 to 9.1` where the numbers differ."""
    digits = decimals(results["metric"])
    return " to ".join(dict.fromkeys(f"{number:.{digits}f}" for number in (min(numbers), max(numbers))))


def verdict(results: Results) -> Verdict:
    """The winner, if its lead was tested, is significant, and rests on arms treated alike and on several seeds.

    A reference that wins was tested against all other arms, and leads all of them. Another arm that wins was tested
    against the reference, the second, alone; the sentence names the arms that it was not tested against.
    """
    metric, reference = results["metric"], results["reference"]
    sign = -1 if higher_is_better(metric) else 1
    tuned = tuned_arms(results)
    if len(tuned) < 2:
        return Verdict(_alone(results))
    best, second, *others = sorted(tuned, key=lambda arm: sign * arm["scores"][metric]["value"])
    gap = abs(best["scores"][metric]["value"] - second["scores"][metric]["value"])
    tested = second if best["arm"] == reference else best if second["arm"] == reference else None
    lead = f"{gap:.{decimals(metric)}f} {label(metric)}"
    no_winner = f"No winner: {best['arm']} and {second['arm']} are {lead} apart"
    if tested is None:
        return Verdict(f"{no_winner}, but were not tested against each other.")
    if not is_significant(tested):
        return Verdict(f"{no_winner}, which may be chance.")
    close = [arm["arm"] for arm in others if best["arm"] == reference and not is_significant(arm)]
    if close:
        return Verdict(f"{no_winner}, but {_are(close)} not told apart from {best['arm']}.")
    unequal = list(_unequal(results))
    if len({arm["num_trials"] for arm in tuned}) > 1:
        unequal.insert(0, "trials")
    if unequal:
        return Verdict(f"{no_winner}, but the arms had unequal numbers of {' and of '.join(unequal)}.")
    single = [arm["arm"] for arm in tuned if len(arm["seeds"]) == 1]
    if single:
        which = "" if len(single) == len(tuned) else f" of {' and of '.join(single)}"
        return Verdict(f"{no_winner}, but with one seed{which}.")
    untested = [arm["arm"] for arm in others if best["arm"] != reference]
    limit = f"; {_are(untested, 'was', 'were')} not tested against {best['arm']}" if untested else ""
    return Verdict(f"Winner: {best['arm']}, {lead} ahead of {second['arm']}{limit}.", best["arm"])


def _are(names: Sequence[str], one: str = "is", several: str = "are") -> str:
    """`lora is`, or `lora and prefix are`."""
    return f"{' and '.join(names)} {one if len(names) == 1 else several}"


def _alone(results: Results) -> str:
    """The score of the only tuned arm, beside the floor."""
    if not tuned_arms(results):
        return "No final run has ended well."
    metric = results["metric"]
    scores = [f"{arm['arm']} {arm['scores'][metric]['value']:.{decimals(metric)}f}" for arm in results["arms"]]
    return f"{label(metric)}: {', '.join(scores)}."


def _unequal(results: Results) -> dict[str, str]:
    """Notes on what the arms' final runs had unequal numbers of, by its name: examples, checkpoints to choose from."""
    configs = {arm["arm"]: arm["config"] for arm in tuned_arms(results)}
    notes = {
        "examples": ("trained on unequal numbers of examples", _num_examples),
        "checkpoints": (
            "chosen from unequal numbers of checkpoints",
            lambda config: _num_checkpoints(config, results.get("rungs", ())),
        ),
    }
    found = {}
    for what, (note, count) in notes.items():
        counts = {name: count(config) for name, config in configs.items()}
        if len(set(counts.values())) > 1:
            found[what] = f"{note}: " + ", ".join(f"{name} {n:,}" for name, n in counts.items())
    return found


def _num_examples(config: Mapping[str, object]) -> int:
    factors = ("num_steps", "batch_size", "grad_accumulation")
    return math.prod(number for key in factors if isinstance(number := config.get(key), int))


def _num_checkpoints(config: Mapping[str, object], rungs: Sequence[int]) -> int:
    """At how many steps a final run is evaluated; its artifact is of the best of them."""
    num_steps, eval_every = config.get("num_steps"), config.get("eval_every")
    if not isinstance(num_steps, int):
        return 1
    return len(report_steps(eval_every if isinstance(eval_every, int) else None, rungs, num_steps))
