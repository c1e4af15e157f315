"""What the policy of the search decided at each rung, and how often a paused trial was resumed."""

from collections.abc import Sequence

from prefixray.reporting.grid import Grid
from prefixray.reporting.sections.section import Section
from prefixray.results.record import SearchTrial, Stored
from prefixray.search.policies.choice import AUTO_KEEP, AUTO_POLICY

_HEADER = ("arm", "rung", "step", "trials", "passed", "stopped", "paused", "resumed", "by hand")
_WITHOUT_PAUSES = 6  # so many of the columns
_WHAT = {
    "stop": "The worse trials ended at a rung.",
    "promote": "The worse trials paused at a rung, and resumed once they were among its best.",
    "settle": "As by promote, up to a top rung that moved up while ranks changed; the best one there went on alone.",
    "freeze_thaw": "Trials paused that were less likely than a new one to end as the best, by their curves so far.",
}


def decision_section(stored: Stored) -> list[Section]:
    """What became of the trials at each rung; nothing for a search without rungs, or in an older record."""
    policy, rungs = stored.get("policy"), stored.get("rungs")
    if policy is None or not rungs:
        return []
    arms = dict.fromkeys(trial["arm"] for trial in stored["search"])
    rows = [
        (arm, str(number), str(step), *_counts([t for t in stored["search"] if t["arm"] == arm], number, step))
        for arm in arms
        for number, step in enumerate(rungs, start=1)
    ]
    pauses = [pause for trial in stored["search"] for pause in trial.get("pauses", ())]
    width = len(_HEADER) if policy != "stop" or pauses else _WITHOUT_PAUSES
    grid = Grid(_HEADER[:width], [row[:width] for row in rows], frozenset({"arm"}))
    text = [_rule(policy, stored.get("keep")) + _sample(stored)]
    if width > _WITHOUT_PAUSES:
        num_resumed = sum(pause["resumed"] is not None for pause in pauses)
        text[0] += (
            f" Trials paused {len(pauses)} times, and {num_resumed} times one was resumed, by the policy or by hand "
            "(prefixray control SWEEP resume). Those that passed a rung did not pause there."
        )
    return [Section("decisions", "What was decided at the rungs?", grid=grid, text=text)]


def _rule(policy: str, keep: float | None) -> str:
    """The policy in words; an older record has no share."""
    is_auto = (policy, keep) == (AUTO_POLICY, AUTO_KEEP)
    share = "" if keep is None or policy == "freeze_thaw" else f", search.keep {keep:g}"
    return f"search.policy is {policy}{share}{', as this version chooses for auto' if is_auto else ''}. {_WHAT[policy]}"


def _sample(stored: Stored) -> str:
    """What a mark in the table of trials means; nothing where no trial has it, as in an older record."""
    if not any(trial.get("is_sampled") for trial in stored["search"]):
        return ""
    share = stored.get("dev_sample", 1.0)
    return f" The table of trials marks a loss with ~ where it is over a sample of dev (search.dev_sample {share:g})."


def _counts(trials: Sequence[SearchTrial], rung: int, step: int) -> list[str]:
    """The cells of one rung from the number of trials on."""
    reached = [trial for trial in trials if step in dict(trial.get("curve", ()))]
    paused = [pause for trial in reached for pause in trial.get("pauses", ()) if pause["step"] == step]
    num_stopped = sum(
        trial["state"] == "stopped"
        and trial["rung"] == rung
        and step not in (pause["step"] for pause in trial.get("pauses", ()))
        for trial in reached
    )
    num_resumed = sum(pause["resumed"] is not None for pause in paused)
    num_by_hand = sum(pause["resumed"] == "by hand" for pause in paused)
    num_passed = len(reached) - num_stopped - len(paused)
    return [str(number) for number in (len(reached), num_passed, num_stopped, len(paused), num_resumed, num_by_hand)]
