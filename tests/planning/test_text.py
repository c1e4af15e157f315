"""A plan as text, and the table of prices."""

from pathlib import Path

import pytest
from support.small_plan import speed

from prefixray.config.load import load_sweep
from prefixray.config.schema import SweepConfig
from prefixray.errors import UserError
from prefixray.planning.estimate import count_sweep
from prefixray.planning.speeds import store_speeds
from prefixray.planning.text import plan_text, read_prices


def test_without_the_base_the_plan_says_what_is_missing_and_the_rest(file: Path) -> None:
    text = plan_text(load_sweep(file, ["base=nobody/nothing"]), file, {})
    assert "missing: base: nobody/nothing: cannot be reached" in text
    assert "1.5 tokens per word" in text and "step 2" in text and "9 training runs" in text
    assert "Time and memory" not in text


def test_the_base_that_sees_a_document_is_among_the_decodings(file: Path, tmp_path: Path) -> None:
    assert "10 decodings of 2 test sources, beam 2, at most 10 tokens; one is the untuned base's" in _final(file)
    (tmp_path / "texts").mkdir()
    for name in ("aromi", "eagle"):
        (tmp_path / "texts" / f"{name}.md").write_text(f"The {name} is a cheap pub near the river.\n")
    task = f"{{name: document, path: {tmp_path / 'texts'}}}"
    data = tmp_path / "data.jsonl"
    text = file.read_text().replace(f"{{name: custom, train: {data}, dev: {data}, test: {data}}}", task)
    file.write_text(text.replace("final: {", "final: {metric: test/rouge_l, "))
    assert "21 decodings of" in _final(file)
    assert "one is the untuned base's, 2 of the base that sees a document" in _final(file)


def _final(file: Path) -> str:
    return " ".join(plan_text(load_sweep(file), file, {}).partition("-- Final stage")[2].split())


def test_every_line_is_short_and_every_part_says_where_its_figures_come_from(config: SweepConfig, file: Path) -> None:
    text = plan_text(config, file, {"A10G": 1.0})
    assert [
        line for line in text.splitlines() if len(line) > 100 and str(file) not in line and "base: " not in line
    ] == []
    for part in text.split("\n-- ")[1:]:
        assert any(word in part for word in ("computed", "estimated", "measured")), part


def test_costs_are_hours_times_the_given_prices_and_none_are_invented(config: SweepConfig, file: Path) -> None:
    assert "in all\n" in plan_text(config, file, {}) and "dollars" not in plan_text(config, file, {})
    row = next(one for one in plan_text(config, file, {"H100": 3600.0}).splitlines() if one.startswith("H100"))
    gpu = next(cost for cost in count_sweep(config).costs if cost.device.name == "H100")
    assert float(row.split()[-1].replace(",", "")) == pytest.approx(gpu.seconds, abs=0.01)
    others = [one for one in plan_text(config, file, {"H100": 1.0}).splitlines() if one.startswith(("A10G to", "H200"))]
    assert len(others) == 2 and all(other.endswith(" -") for other in others)


def test_gpus_that_no_estimate_tells_apart_are_one_row_and_a_measured_one_is_not(
    config: SweepConfig, file: Path
) -> None:
    """The plan is of a tiny base, whose steps take a GPU's least time."""
    rows = plan_text(config, file, {}).splitlines()
    (row,) = (one for one in rows if one.startswith("A10G"))
    assert row.split()[3:5] == ["64", "22.4-131.3"], row
    text = " ".join(plan_text(config, file, {}).split())
    assert (
        "The GPUs' times are assumed, nobody has measured them: 20% of the peak in training and 3% in decoding" in text
    )
    store_speeds([speed(config.base, "shared", 5e13, device="NVIDIA A100-SXM4-40GB")])
    names = [line.split("  ")[0] for line in plan_text(config, file, {}).splitlines()]
    assert [name for name in names if name[:2] in ("A1", "L4", "H1", "H2")] == [
        "A10G, L4",
        "A100 40GB",
        "A100 80GB to H200",
    ]


def test_what_is_wrong_with_the_prices_is_said_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("A10G: 1.5\nhere: 0\n")
    assert read_prices(path) == {"A10G": 1.5, "here": 0.0}
    path.write_text("A10: 1.5\nL4: cheap\n")
    with pytest.raises(UserError) as raised:
        read_prices(path)
    assert raised.value.problems == (
        f"{path}:1: A10: no such device (did you mean 'A10G'?)",
        f"{path}:2: L4: 'cheap': must be dollars per hour, a number of at least 0",
    )


def test_one_range_of_learning_rates_for_both_parametrisations_is_warned_of(file: Path) -> None:
    def text(mid_dim: str, learning_rate: str) -> str:
        overrides = [f"arms.prefix.mid_dim={mid_dim}", f"arms.prefix.learning_rate={learning_rate}"]
        return plan_text(load_sweep(file, overrides), file, {})

    warning = "prefix: one range of learning rates serves flat prefixes and the network"
    one, both = "{log_uniform: [1e-3, 1e-2]}", "{choice: [null, 16]}"
    assert warning in text(both, one)
    assert warning not in text("null", one), "one parametrisation alone"
    cases = "[{log_uniform: [1e-3, 4e-2], when: {mid_dim: [null]}}, {log_uniform: [3e-5, 1e-3], when: {mid_dim: [16]}}]"
    apart = " ".join(text(both, cases).split())
    assert warning not in apart and "learning_rate 0.001..0.04 or 3e-05..0.001" in apart
