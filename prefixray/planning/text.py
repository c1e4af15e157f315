"""A plan as text for a terminal; and the user's price table.

Each part of a plan says whether its figures are computed, estimated or measured.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefixray.config.schema import ArmConfig, SweepConfig
from prefixray.config.space import AnyDistribution, count_configurations
from prefixray.data.catalog import CATALOG
from prefixray.data.documents.made import num_studied
from prefixray.planning.devices import GPUS, SHARE_OF_PEAK
from prefixray.planning.estimate import START_SECONDS, STEP_SECONDS_PER_LAYER, Cost, Plan, count_sweep, num_decodes
from prefixray.planning.known import Known
from prefixray.planning.recorded import NUM_REPLAYS, curves_text
from prefixray.planning.speeds import Kind
from prefixray.planning.work import PolicyWork
from prefixray.reporting.grid import Grid
from prefixray.search.policies.choice import rules_of
from prefixray.system.yaml_document import read_document, suggestion

_FROM_REPLAYS = (
    "Means over {} replayed searches, whose trials are drawn from recorded curves of random configurations ({}). An "
    "evaluation is one on all of dev; one on a sample counts as its share. The loss is how far the dev loss of the "
    "configuration that is found lies above that of the best one drawn."
)
HERE = "here"  # this machine's name in a price table
_WIDTH = 98
_MOST_COUNTED = 10_000  # configurations; more are not counted
_GIB = 2**30
_KINDS: Mapping[Kind, str] = {
    "shared": "trials that share the base",
    "alone": "fine-tuning",
    "decode": "decoding",
}


def plan_text(config: SweepConfig, file: Path, prices: Mapping[str, float]) -> str:
    """The whole plan, with costs where there are prices. Raises `UserError` as `count_sweep` does."""
    plan = count_sweep(config)
    paragraphs = [
        f"Plan of {config.name}: {file} -> runs/{config.name}\n"
        + _wrapped("Nothing is started. Each part says whether its figures are computed, estimated or measured."),
        _given(plan),
        _search(plan),
        _rungs(plan),
        _work(plan),
        _final(plan),
        _devices(plan, prices) if plan.costs else "",
    ]
    return "\n\n".join(part for part in paragraphs if part)


def read_prices(path: Path) -> dict[str, float]:
    """Dollars per hour by the name of a GPU, or of this machine: `here`. Raises `UserError` with what is wrong."""
    document = read_document(path)
    names = [HERE, *(gpu.name for gpu in GPUS)]
    prices = {}
    for name, value in document.values.items():
        if name not in names:
            document.complain((name,), f"no such device{suggestion(name, names, what='the names are')}")
        elif isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            document.refuse((name,), "must be dollars per hour, a number of at least 0")
        else:
            prices[name] = float(value)
    document.raise_problems()
    return prices


def _given(plan: Plan) -> str:
    config, known = plan.config, plan.known
    lines = [_wrapped(f"base: {config.base}")]
    if known.base is not None:
        shape = known.base.shape
        layers = " + ".join(f"{count} {name}" for name, count in shape.block_counts.items())
        lines.append(f"      {shape.num_parameters:,} parameters, {layers} layers of {shape.hidden_size} (computed)")
    lines.append(_wrapped(f"task: {_data_text(config, known)}"))
    source, target = known.train.source, known.train.targets
    lines.append(f"      {source:.0f} source and {target:.0f} target tokens an example")
    lines.append(f"      ({known.lengths_from})")
    return "\n".join([_title("Base and data"), *lines, *(_wrapped(f"missing: {text}") for text in known.missing)])


def _data_text(config: SweepConfig, known: Known) -> str:
    task, data = config.task, known.task
    if data is not None:
        tests = f"{len(data.test_sources):,} of {data.num_test_total:,} test sources"
        return f"{task.name}, {len(data.train):,} training and {len(data.dev):,} dev examples, {tests} (computed)"
    num_test = known.num_test
    if CATALOG[task.name].is_studied:
        counts = num_studied(task)
        written = sum(counts.values())
        told = f"{counts['train']} training and {known.num_dev} dev questions"
        study = "before the search the base writes {} of them and answers them (self-study)"
        if known.num_documents == 1:
            return f"{task.name}, {told}, {num_test} test questions; {study.format(written)}"
        documents, searched = known.num_documents, config.search.num_searched(known.num_documents)
        in_all = f"{documents} documents with {told} each, {num_test} test questions in all"
        told = f"{in_all}; a trial of the search trains on {searched} of them"
        return f"{task.name}, {told}; {study.format(documents * written)}"
    published = " (published)" if task.num_test == "all" and num_test is not None else ""
    tests = "all" if num_test is None else f"{num_test:,}"
    return f"{task.name}, {task.num_train} training and {task.num_dev} dev examples, {tests} test sources{published}"


def _search(plan: Plan) -> str:
    rows = []
    for work in plan.arms:
        arm = work.arm
        trials = [f"{arm.num_trials}", f"{work.at_once}"] if work.by_policy else ["-", "-"]
        rows.append([arm.name, arm.method, *trials, _configurations(arm), _searched(arm)])
    header = ["arm", "method", "trials", "at once", "configurations", "searched (values or range)"]
    grid = Grid(header, rows, frozenset({"arm", "method", header[-1]}))
    return "\n".join([_title("Search (computed)"), _folded(grid), *map(_wrapped, plan.cautions)])


def _configurations(arm: ArmConfig) -> str:
    if any(dimension.size() == math.inf for dimension in arm.dimensions.values()):
        return "continuous"
    count = count_configurations(arm.dimensions, arm.fixed, limit=_MOST_COUNTED)
    return f"{count:,}" if count < _MOST_COUNTED else f"{count:,} or more"


def _searched(arm: ArmConfig) -> str:
    parts = []
    for key, dimension in arm.dimensions.items():
        sizes = dict.fromkeys(_size_or_ends(case) for case in dimension.cases)
        parts.append(f"{key} {' or '.join(sizes)}")
    return ", ".join(parts) or "nothing"


def _size_or_ends(distribution: AnyDistribution) -> str:
    size, ends = distribution.size(), distribution.ends()
    return f"{ends[0]:g}..{ends[1]:g}" if size == math.inf else f"{size:.0f}"


def _rungs(plan: Plan) -> str:
    searched = [work for work in plan.arms if work.by_policy]
    if not searched:
        return ""
    lengths = {work.arm.num_steps for work in searched}
    end = f"step {lengths.pop():,}" if len(lengths) == 1 else "end"
    rules, asked = rules_of(plan.config), plan.config.search.policy
    header = ["arm", *(f"step {step:,}" for step in rules.rungs), end]
    rows = [[work.arm.name, *(f"{count:.1f}".removesuffix(".0") for count in work.search.reached)] for work in searched]
    policy = f"auto ({rules.policy})" if asked == "auto" else asked
    keep = "" if rules.policy == "freeze_thaw" else f", keep {rules.keep:g}"
    sample = "" if rules.dev_sample == 1 or len(rules.rungs) < 2 else f", dev_sample {rules.dev_sample:g}"
    title = f"Trials at each rung and the end (estimated): policy {policy}{keep}{sample}"
    parts = [_title(title), Grid(header, rows, frozenset({"arm"})).text()]
    if rules.rungs:
        policies = list(searched[0].by_policy)
        works = [[work.arm.name, *(_policy_work(work.by_policy[name]) for name in policies)] for work in searched]
        parts += ["", _title("Steps+evaluations of the search by search.policy, and the loss in nats (estimated)")]
        parts.append(Grid(["arm", *policies], works, frozenset({"arm"})).text())
        parts.append(_wrapped(_FROM_REPLAYS.format(NUM_REPLAYS, curves_text())))
    return "\n".join(parts)


def _policy_work(work: PolicyWork) -> str:
    return f"{_rounded(work.steps)}+{_rounded(work.evaluations)} ({work.regret:.3f})"


def _work(plan: Plan) -> str:
    known, rows, total = plan.known, [], [0.0] * 4
    for work in plan.arms:
        for stage, steps in (("search", work.member_steps), ("final", float(work.final_steps))):
            if steps:
                examples = steps * work.rows_per_step
                numbers = [steps, examples, examples * known.train.targets, examples * known.train.source]
                total = [before + number for before, number in zip(total, numbers, strict=True)]
                rows.append([work.arm.name, stage, *map(_rounded, numbers)])
    rows.append(["all", "", *map(_rounded, total)])
    header = ["arm", "stage", "steps", "examples", "target tokens", "source tokens"]
    return "\n".join([_title("Training (estimated)"), Grid(header, rows, frozenset({"arm", "stage"})).text()])


def _final(plan: Plan) -> str:
    final, works = plan.config.final, plan.arms
    finals, candidates = sum(work.finals for work in works), sum(work.candidates for work in works)
    num_test = plan.known.num_test
    sources = "all" if num_test is None else f"{num_test:,}"
    documents = plan.known.num_documents
    for_each = f" for each of {documents} documents" if documents > 1 else ""
    lines = [f"{finals} training runs: {final.num_seeds} of the winner of each of {len(works)} arms{for_each}"]
    if candidates:
        lines.append(
            f"{candidates} more before, of at most the best {final.candidates} of each searched arm, "
            "decoded and compared on dev"
        )
    decoding = f"beam {final.num_beams}, at most {final.max_new_tokens} tokens"
    parts = ", of which a run decodes those about its document" if documents > 1 else ""
    decodings = f"{num_decodes(plan.known, works)} decodings of {sources} test sources{parts}"
    behind = f", {documents} of the base that sees a document" if documents else ""
    lines.append(f"{decodings}, {decoding}; one is the untuned base's{behind}")
    return "\n".join([_title("Final stage (computed)"), *map(_wrapped, lines)])


def _devices(plan: Plan, prices: Mapping[str, float]) -> str:
    here = plan.costs[0]
    header = ["device", "slots", "memory", "pack", "fine-tune", "search", "final", "decode", "in all"]
    header += ["cost"] if prices else []
    rows = [_row(here, prices, is_here=True)]
    rows += _together([(cost, _row(cost, prices, is_here=False)) for cost in plan.costs[1:]])
    grid = Grid(header, rows, frozenset({"device"}))
    workers = f"{here.device.num_workers} workers on {here.device.name}, {here.device.precision}"
    notes = [
        f"{HERE}: {workers}; the others are one GPU each, by its data sheet.",
        "Memory (estimated): GiB of a worker (free here, the whole of a GPU), of its full pack, and of one fine-tuning"
        " beside the base, without what Python and CUDA take themselves. Slots follow from it. ! does not fit.",
        *_origins(here),
        "The GPUs' times are assumed, nobody has measured them: "
        f"{SHARE_OF_PEAK['shared']:.0%} of the peak in training and {SHARE_OF_PEAK['decode']:.0%} in decoding, at"
        f" least {1e3 * STEP_SECONDS_PER_LAYER['shared']:g} ms a layer and step of a pack and"
        f" {1e3 * STEP_SECONDS_PER_LAYER['decode']:g} ms a layer and token decoded.",
        f"In all: with {START_SECONDS:.0f} s to start (assumed), all workers busy to the end.",
    ]
    others = [cost.device for cost in plan.costs[1:]]
    measured = [gpu.name for gpu in others if any(text.startswith("measured") for text in gpu.rates_from.values())]
    if measured:
        notes.append(f"Measured in an earlier sweep instead: {', '.join(measured)}.")
    if prices:
        notes.append("Cost: dollars, hours times your prices (computed).")
    if here.decode is None:
        notes.append("The number of test sources is not known here, so decoding is left out.")
    return "\n".join([_title("Time and memory"), grid.text(), *map(_wrapped, notes)])


def _origins(here: Cost) -> list[str]:
    """Where this machine's rates come from, one line per origin."""
    kinds: dict[str, list[str]] = {}
    for kind, origin in here.device.rates_from.items():
        if kind == "decode" or any(work.kind == kind for work in here.arms):
            kinds.setdefault(origin, []).append(_KINDS[kind])
    return [f"{HERE}, {' and '.join(names)}: {origin}, of each worker." for origin, names in kinds.items()]


def _row(cost: Cost, prices: Mapping[str, float], *, is_here: bool) -> list[str]:
    device, name = cost.device, HERE if is_here else cost.device.name
    row = [name, "-" if cost.pack is None else f"{cost.slots}", f"{device.memory / _GIB:.1f}"]
    row += [_needed(size, device.memory) for size in (cost.pack, cost.alone)]
    row += [_duration(cost.search), _duration(cost.final)]
    row += ["-" if cost.decode is None else _duration(cost.decode), _duration(cost.seconds)]
    if prices:
        price = prices.get(name)
        row.append("-" if price is None else f"{price * cost.seconds / 3600:,.2f}")
    return row


def _together(gpus: Sequence[tuple[Cost, list[str]]]) -> list[list[str]]:
    """The rows of GPUs; neighbours whose times are assumed and the same are one row, since nothing tells them apart.

    Then slots and memory are those of the first to those of the last.
    """
    rows: list[list[str]] = []
    groups: list[list[str]] = []  # the names in each row
    before: object = None
    for cost, row in gpus:
        is_assumed = not any(origin.startswith("measured") for origin in cost.device.rates_from.values())
        figures = row[3:] if is_assumed else None
        if figures is not None and figures == before:
            groups[-1].append(row[0])
            rows[-1][1:3] = [_ends(first, last) for first, last in zip(rows[-1][1:3], row[1:3], strict=True)]
        else:
            groups.append([row[0]])
            rows.append(row)
        before = figures
    names = [", ".join(group) if len(group) < 3 else f"{group[0]} to {group[-1]}" for group in groups]
    return [[name, *row[1:]] for name, row in zip(names, rows, strict=True)]


def _ends(first: str, last: str) -> str:
    """`2-8` of `2` or `2-4`, and `8`."""
    start = first.split("-")[0] or first
    return first if last in (first, start) else f"{start}-{last}"


def _needed(size: int | None, memory: float) -> str:
    return "-" if size is None else f"{size / _GIB:.1f}{' !' if size > memory else ''}"


def _duration(seconds: float) -> str:
    """`50 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:,.1f} h"


def _rounded(number: float) -> str:
    """The number in three significant figures where it is large: an expected value is no more exact."""
    if number < 1000:
        return f"{number:.0f}"
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {letter}"
    raise AssertionError("every number that comes here is above the last limit")


def _title(text: str) -> str:
    return f"-- {text} {'-' * max(0, _WIDTH - len(text) - 4)}"


def _folded(grid: Grid) -> str:
    """A grid whose last column may be long: its text continues on the lines below, in the same column."""
    lines = grid.text().splitlines()
    indent = " " * lines[0].index(grid.header[-1])
    wrapper = textwrap.TextWrapper(_WIDTH, subsequent_indent=indent, replace_whitespace=False, break_long_words=False)
    return "\n".join(wrapper.fill(line) for line in lines)


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, _WIDTH, subsequent_indent="  "))
