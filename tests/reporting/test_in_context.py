"""What is said of each arm beside the base that sees the document: its distance, and what its keys and values take."""

import csv
import io

from support.quickstart_results import interval, quickstart_sweep

from prefixray.reporting.tables import csv_rows, csv_text, render_text
from prefixray.results.record import Results


def over_a_document(metric: str = "divergence") -> Results:
    """The quickstart's arms with the base that sees the document, and other scores."""
    results = quickstart_sweep()
    arms = results["arms"]
    arms.insert(1, {**arms[0], "arm": "in_context", "stored_parameters": 33_700_000, "kv_bytes": 134_800_000})
    gaps = {"untuned": 0.5, "prefix": 0.151, "adapter": -0.02, "finetune": 0.0}
    sizes = {"untuned": 0, "prefix": 2_950_000, "adapter": 0}
    for arm in arms:
        arm["scores"] = {metric: interval(0.2, 0.1, 0.3)}
        arm["sd"] = {metric: None}
        if arm["arm"] in gaps:
            gap = gaps[arm["arm"]]
            arm["to_context"] = interval(gap, gap - 0.031, gap + 0.029)
        if arm["arm"] in sizes:
            arm["kv_bytes"] = sizes[arm["arm"]]
    results["metric"], results["metrics"] = metric, [metric]
    return results


def test_a_sentence_for_each_arm_gives_its_distance_and_the_share_of_the_bytes() -> None:
    lines = render_text(over_a_document()).splitlines()
    assert "divergence: lower is better" in lines
    assert "untuned is 0.500 nats behind the document in context [0.469, 0.529]" in lines
    assert (
        "prefix is 0.151 nats behind the document in context [0.120, 0.180]; its keys and values take 1/46 of the "
        "document's bytes"
    ) in lines
    assert (
        "adapter is 0.020 nats ahead of the document in context [-0.009, 0.051]; it puts no keys and values in front "
        "of a row"
    ) in lines
    assert "finetune is 0.000 nats behind the document in context [-0.031, 0.029]" in lines, "not known what it takes"


def test_where_higher_is_better_the_same_distance_is_ahead() -> None:
    results = over_a_document("rouge_l")
    results["arms"][2]["to_context"] = interval(-3.0, -5.0, -1.0)
    results["arms"][2]["kv_bytes"] = 134_800_000 * 3 // 4
    lines = render_text(results).splitlines()
    assert (
        "prefix is 3.0 ROUGE-L behind the document in context [1.0, 5.0]; its keys and values take 0.8 times the "
        "document's bytes"
    ) in lines
    assert "untuned is 0.5 ROUGE-L ahead of the document in context [0.5, 0.5]" in lines


def test_the_table_has_a_column_of_bytes_and_the_csv_the_distances() -> None:
    results = over_a_document()
    header, *rows = render_text(results).splitlines()[1:7]
    assert "K/V (MB)" in header
    start = header.index("K/V (MB)")
    assert [row[start : start + 8].strip() for row in rows[:5]] == ["0", "135", "2.95", "0", "-"]
    read = list(csv.DictReader(io.StringIO(csv_text(csv_rows(results)))))
    assert [row["kv_bytes"] for row in read] == ["0", "134800000", "2950000", "0", ""]
    assert [row["to_context"] for row in read] == ["0.5", "", "0.151", "-0.02", "0.0"]
    plain = quickstart_sweep()
    assert "K/V" not in render_text(plain) and "kv_bytes" not in csv_text(csv_rows(plain))
