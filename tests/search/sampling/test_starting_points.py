"""`first: auto`: points that were measured near an arm, and none where nothing is near."""

import re
from pathlib import Path

import pytest
from support.sweep_files import VALID, complaint, load

from prefixray.config.identity import dump, identity, restore
from prefixray.search.sampling.starting_points import measured, starting_points, starting_text
from prefixray.search.storage import open_storage
from prefixray.search.study import ArmStudy
from prefixray.system.records import Scalar

PAGE = Path(__file__).parents[3] / "docs" / "measurements" / "learning_rates.md"
AUTO = VALID.replace("  prefix:\n", "  prefix:\n    first: auto\n").replace("[1e-4, 1e-2]", "[1e-4, 3e-1]")
WIDTH = 576  # of SmolLM2-135M


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_point_stands_in_the_measured_tables_with_its_command() -> None:
    """Each is the best of a row: `| **1.605** at 0.001 |`, and no row's best has been left out but of empty cells."""
    text = PAGE.read_text(encoding="utf-8")
    tables = dict(re.findall(r"### (\w+), 40 steps\n(.*?)(?=\n### |<!-- end)", text, flags=re.DOTALL))
    sources, points = measured()
    for source in sources.values():
        assert source["command"] in text and (source["base"], source["width"]) == ("SmolLM2-135M", WIDTH)
        best = re.findall(r"\*\*([\d.]+)\*\* at ([\d.]+)", tables[source["data"]])
        ours = [point for point in points if sources[point["source"]] == source]
        assert sorted((float(loss), float(rate)) for loss, rate in best) == sorted(
            (point["dev_loss"], float(point["values"]["learning_rate"] or 0)) for point in ours
        )


def test_an_arm_begins_with_the_two_best_points_that_are_near_it() -> None:
    config = load(AUTO.replace("{choice: [1, 5]}", "{choice: [1, 16]}"))
    points = starting_points(config, config.arm("prefix"), WIDTH)
    assert points == [  # of 20 random positions by a network, and of 20 flat ones of words
        {"preseqlen": 16, "mid_dim": 512, "init_token": None, "learning_rate": 1e-3, "prefix_dropout": 0.0},
        {"preseqlen": 16, "mid_dim": None, "init_token": "restaurant", "learning_rate": 0.1},
    ]
    study = ArmStudy(
        open_storage(Path("study.journal")), "small", config.arm("prefix"), seed=1, num_startup=2, auto=points
    )
    assert [proposal.values for _ in range(2) if (proposal := study.ask()) is not None] == points
    other_version = [{**points[0], "learning_rate": 5e-3}]  # a relaunch under another table goes on as it began
    again = ArmStudy(
        open_storage(Path("study.journal")), "small", config.arm("prefix"), seed=1, num_startup=2, auto=other_version
    )
    asked = [proposal.values for _ in range(3) if (proposal := again.ask()) is not None]
    assert asked[:2] == points and asked[2] != other_version[0]


def test_points_of_the_sweeps_own_data_come_first_though_another_sets_losses_are_lower() -> None:
    def first(name: str) -> tuple[Scalar, Scalar]:
        config = load(AUTO, f"task.name={name}", *([] if name == "e2e" else ["task.path=x"]))
        point = starting_points(config, config.arm("prefix"), WIDTH)[0]
        return point["init_token"], point["learning_rate"]

    assert first("e2e") == ("restaurant", 3e-4) and first("webnlg") == (None, 1e-3)
    assert first("dart") == (None, 1e-3)  # the nearest to its own data set's best of both


def test_what_is_not_near_has_no_point_and_is_told_so() -> None:
    def told(*overrides: str, width: int | None = WIDTH) -> str:
        (line,) = starting_text(load(AUTO, *overrides), width)
        return line

    none = "prefix: first: auto has no measured point near this arm, so the sampler begins."
    assert "begins with preseqlen 1, mid_dim 512" in told()
    assert told(width=4096) == none and told(width=1152) != none and told(width=280) == none
    assert told(width=None) == "prefix: first: auto needs the width of the base, which is not known here."
    assert told("arms.prefix.preseqlen=200") == none
    summaries = ("task.name=dialogsum", "final.metric=test/rouge_l")
    assert told("arms.prefix.prefix_mode=embedding", *summaries) == none
    assert told("arms.prefix.prefix_mode=embedding") != none
    assert told("arms.prefix.learning_rate={log_uniform: [1e-6, 1e-5]}") == none
    # Summaries have points of 10 positions of words alone.
    config = load(AUTO, "arms.prefix.preseqlen=10", *summaries)
    points = starting_points(config, config.arm("prefix"), WIDTH)
    assert [point["learning_rate"] for point in points] == [3e-4, 0.1]
    assert starting_text(load(), WIDTH) == []


def test_auto_is_part_of_what_makes_a_sweep_and_is_refused_where_nothing_is_searched() -> None:
    config = load(AUTO)
    assert restore(dump(config)) == config and identity(config)["arms"]["prefix"]["first"] == "auto"
    assert "first" not in identity(load())["arms"]["prefix"]
    nothing = VALID.replace("finetune: {", "finetune: {first: auto, ")
    assert complaint(nothing) == "x.yaml:14: arms.finetune.first: 'auto': nothing is searched in this arm: remove it"
