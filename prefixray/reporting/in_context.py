"""A sweep over a document: how far each arm is from the base that sees it, and what keys and values take."""

from prefixray.metrics import decimals, higher_is_better, label, unit
from prefixray.results.record import IN_CONTEXT, UNTRAINED, ArmResult, Interval, Results

_MB = 1e6


def context_notes(results: Results) -> list[str]:
    """A sentence for each arm; none where no arm sees a document."""
    arms = {arm["arm"]: arm for arm in results["arms"]}
    if IN_CONTEXT not in arms:
        return []
    others = [(arm, arm["to_context"]) for arm in results["arms"] if "to_context" in arm]
    return [_distance(arm["arm"], to_context, results) + _size(arm, arms[IN_CONTEXT]) for arm, to_context in others]


def kv_column(results: Results) -> dict[str, list[str]]:
    """The column of what the keys and values in front of a row take; none where no arm sees a document."""
    if all(arm["arm"] != IN_CONTEXT for arm in results["arms"]):
        return {}
    sizes = [arm.get("kv_bytes") for arm in results["arms"]]
    return {"K/V (MB)": ["-" if size is None else f"{size / _MB:.3g}" for size in sizes]}


def _distance(arm: str, to_context: Interval, results: Results) -> str:
    """`prefix64 is 0.151 nats behind the document in context [0.120, 0.180]`."""
    metric = results["metric"]
    digits, name = decimals(metric), label(metric) if unit(metric) == "points" else unit(metric)
    is_larger = to_context["value"] >= 0
    ends = to_context["low"], to_context["high"]
    low, high = ends if is_larger else (-ends[1], -ends[0])
    interval = f" [{low:.{digits}f}, {high:.{digits}f}]" if results["num_sources"] > 1 else ""
    where = "ahead of" if is_larger == higher_is_better(metric) else "behind"
    return f"{arm} is {abs(to_context['value']):.{digits}f} {name} {where} the document in context{interval}"


def _size(arm: ArmResult, context: ArmResult) -> str:
    """`; its keys and values take 1/46 of the bytes`."""
    own, whole = arm.get("kv_bytes"), context.get("kv_bytes")
    if own is None or not whole or arm["arm"] in UNTRAINED:
        return ""
    if own == 0:
        return "; it puts no keys and values in front of a row"
    share = f"1/{whole / own:,.0f} of" if 2 * own <= whole else f"{own / whole:.1f} times"
    return f"; its keys and values take {share} the document's bytes"
