"""A sweep's results beside the paper's numbers, and the distance between them.

Only a sweep of the paper's own base and task can reproduce a number. The numbers of other sweeps are printed, too,
under a warning that says what differs. A difference between numbers that are measured differently has a mark.
"""

from prefixray.config.scales import PAPERS_DECODING
from prefixray.data.catalog import CATALOG, SUMMARIZATION
from prefixray.errors import UserError
from prefixray.metrics import METRICS, decimals, label
from prefixray.reporting.grid import Grid
from prefixray.reporting.published import FIGURES, TABLES, Column, Figure, PaperTable, Row
from prefixray.reporting.tables import title
from prefixray.results.record import ArmResult, Interval, Results
from prefixray.system.yaml_document import suggestion

LIST = "list"
_MARK = "\u2020"
_DECIMALS = {"rouge_1": 2, "rouge_2": 2, "rouge_l": 2}


def paper_list() -> str:
    """Every table and figure by its name, with the sweep file that makes it."""
    entries: dict[str, PaperTable | Figure] = {**TABLES, **FIGURES}
    rows = [[key, entry.title, f"sweeps/paper/{entry.sweep}.yaml"] for key, entry in entries.items()]
    header = ["--paper", "Li & Liang 2021", "made by"]
    return Grid(header, rows, frozenset(header)).text()


def paper_text(results: Results, name: str) -> str:
    """For a terminal: a table of the paper with our numbers beside it, or the text of a figure with them below.

    Raises `UserError` where the paper has no table or figure of that name.
    """
    if name in TABLES:
        return _table_text(results, TABLES[name])
    if name in FIGURES:
        return _figure_text(results, FIGURES[name])
    names = [*TABLES, *FIGURES, LIST]
    raise UserError(f"--paper: {name}: no such table or figure{suggestion(name, names, what='there are')}")


def figure_text(name: str) -> str:
    """What the paper says of a figure. Raises `UserError` where it has no figure of that name."""
    if name not in FIGURES:
        raise UserError(f"--paper: {name}: no such figure{suggestion(name, list(FIGURES), what='there are')}")
    return f"Li & Liang 2021, {FIGURES[name].title}: {FIGURES[name].says}"


def _table_text(results: Results, table: PaperTable) -> str:
    base = next((base for base in table.rows if base == results["base"]), next(iter(table.rows)))
    arms = {arm["arm"]: arm for arm in results["arms"]}
    is_same_test = results["task"] == table.task and results["split"] == table.split
    lines: list[list[str]] = []
    for system, row in {**table.rows[base], **table.quoted}.items():
        for index, column in enumerate(table.columns):
            ours = _ours(arms.get(system), column)
            mark = _MARK if _measured_apart(results, table) or column.stays else ""
            cells = _cells(row, index, ours, column, compare=is_same_test, mark=mark)
            lines.append([system if index == 0 else "", _name(column), *cells])
    header = ["arm", "metric", "ours [95 %]", "arXiv v1", "ours - arXiv", "ACL 2021", "ours - ACL"]
    grid = Grid(header, lines, frozenset({"arm", "metric"}))
    heading = f"Li & Liang 2021, {table.title}; {base}"
    return "\n".join([heading, *_warnings(results, table, base), grid.text(), *_footnotes(results, table)])


def _figure_text(results: Results, figure: Figure) -> str:
    primary = results["metric"]
    rows = [[arm["arm"], _interval(arm["scores"][primary], primary)] for arm in results["arms"]]
    grid = Grid(["arm", f"{label(primary)} [95 %]"], rows, frozenset({"arm"}))
    ours = f"Ours: {results['base']}, {title(results)}. The file says what differs: sweeps/paper/{figure.sweep}.yaml"
    return "\n".join([f"Li & Liang 2021, {figure.title}", f"The paper: {figure.says}", ours, grid.text()])


def _warnings(results: Results, table: PaperTable, base: str) -> list[str]:
    """The differences to the paper that keep a sweep from being a reproduction, a line each."""
    lines = []
    if results["base"] != base:
        lines.append(f"ANOTHER BASE, {results['base']}: not a reproduction; the differences are between two models.")
    if results["task"] != table.task:
        lines.append(f"ANOTHER TASK, {results['task']}: not a reproduction; no difference is told.")
    elif results["split"] != table.split:
        lines.append(f"THE PAPER'S ARE OF {table.split}, ours of {results['split']}: no difference is told.")
    elif results["num_sources"] < results["num_sources_total"]:
        lines.append(f"Ours on {results['num_sources']} of {results['num_sources_total']} test sources.")
    return lines


def _measured_apart(results: Results, table: PaperTable) -> list[str]:
    """The keys of a sweep file by which another way of measuring than the paper's was chosen, with the paper's values.

    Only those that make a difference on the table's task.
    """
    facts = CATALOG[table.task]
    if results.get("evaluation") != "paper":
        return ["evaluation=paper"] if facts.word_form or facts.form_keys else []
    if facts.kind is SUMMARIZATION:
        return []
    return [f"final.{key}=true" for key in PAPERS_DECODING if results["decoding"].get(key) is False]


def _footnotes(results: Results, table: PaperTable) -> list[str]:
    missing = [column.metric for column in table.columns if column.is_ours and column.metric not in results["metrics"]]
    notes = ["~ the paper's number lies within our interval. The paper gives neither seeds nor intervals."]
    if results["task"] == table.task and results["split"] == table.split:
        notes += _deviations(results, table)
    if missing:
        more = ", ".join(f"test/{metric}" for metric in dict.fromkeys(missing))
        remedy = f"run the sweep again with --set 'final.more_metrics=[{more}]'; nothing is trained"
        notes.append(f"Not scored yet: {remedy}.")
    if not all(column.is_ours for column in table.columns):
        names = ", ".join(column.metric for column in table.columns if not column.is_ours)
        notes.append(f"{names}: not computed by prefixray.")
    return notes


def _deviations(results: Results, table: PaperTable) -> list[str]:
    """What the mark means: which columns are measured otherwise than the paper's, and how."""
    keys = _measured_apart(results, table)
    if keys:
        remedy = f"as the paper did: --set {' '.join(keys)} (docs/paper/deviations.md)."
        return [f"{_MARK} measured in prefixray's own way; {remedy}"]
    stays: dict[str, list[str]] = {}
    for column in table.columns:
        if column.stays is not None:
            stays.setdefault(column.stays, []).append(label(column.metric))
    return [
        f"{_MARK} {', '.join(dict.fromkeys(names))}: {how} (docs/paper/deviations.md)." for how, names in stays.items()
    ]


def _ours(arm: ArmResult | None, column: Column) -> Interval | None:
    """Our number for a column; None where the sweep has none."""
    if arm is None or not column.is_ours:
        return None
    if column.group is None:
        return arm["scores"].get(column.metric)
    group = arm.get("groups", {}).get(column.group)
    return None if group is None else group["scores"].get(column.metric)


def _cells(row: Row, index: int, ours: Interval | None, column: Column, *, compare: bool, mark: str) -> list[str]:
    """Our number, then each version's number with our distance to it and the mark."""
    cells = ["-" if ours is None else _interval(ours, column.metric)]
    for numbers in (row.arxiv, row.acl):
        number = numbers[index]
        cells.append("-" if number is None else f"{number:.{column.digits}f}")
        if number is None or ours is None or not compare:
            cells.append("-")
        else:
            within = "~" if ours["low"] <= number <= ours["high"] else " "
            cells.append(f"{ours['value'] - number:+.{_digits(column.metric)}f} {within}{mark}")
    return cells


def _name(column: Column) -> str:
    name = label(column.metric) if column.metric in METRICS else column.metric
    return name if column.group is None else f"{name} {column.group}"


def _digits(metric: str) -> int:
    """Digits behind the point, as the paper has them."""
    return _DECIMALS.get(metric, decimals(metric))


def _interval(interval: Interval, metric: str) -> str:
    digits = _digits(metric)
    return f"{interval['value']:.{digits}f} [{interval['low']:.{digits}f}, {interval['high']:.{digits}f}]"
