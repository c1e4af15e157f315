"""E2E and DART: their linearisations, their forms, and what is said about broken files."""

import gzip
import json
import os
from pathlib import Path

import pytest

from prefixray.data import Example, Task, load_task
from prefixray.data.data_to_text import linearise_meaning, tokenise_e2e
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError

E2E_SOURCES = {  # official meaning representation -> the source text of Li & Liang's own E2E files
    "name[Alimentum], area[city centre], familyFriendly[no]": (
        "name : Alimentum | area : city centre | family friendly : no"
    ),
    "name[Blue Spice], eatType[coffee shop], area[riverside]": (
        "name : Blue Spice | Type : coffee shop | area : riverside"
    ),
    "name[The Vaults], eatType[pub], priceRange[more than £30], customer rating[5 out of 5], near[Café Adriatic]": (
        "name : The Vaults | Type : pub | price : more than £ 30 | customer rating : 5 out of 5 | near : Café Adriatic"
    ),
    "name[The Cambridge Blue], eatType[pub], food[English], priceRange[cheap], near[Café Brazil]": (
        "name : The Cambridge Blue | Type : pub | food : English | price : cheap | near : Café Brazil"
    ),
    "name[The Eagle], eatType[coffee shop], food[Japanese], priceRange[less than £20], customer rating[low], "
    "area[riverside], familyFriendly[yes], near[Burger King]": (
        "name : The Eagle | Type : coffee shop | food : Japanese | price : less than £ 20 | customer rating : low | "
        "area : riverside | family friendly : yes | near : Burger King"
    ),
    "name[Loch Fyne], food[French], customer rating[high], area[riverside], near[The Rice Boat]": (
        "name : Loch Fyne | food : French | customer rating : high | area : riverside | near : The Rice Boat"
    ),
    "name[Aromi], eatType[restaurant], food[Chinese], priceRange[£20-25], area[city centre]": (
        "name : Aromi | Type : restaurant | food : Chinese | price : £ 20 - 25 | area : city centre"
    ),
    "near[Avalon], name[The Punter], priceRange[high]": "name : The Punter | price : high | near : Avalon",
}


def test_e2e_meanings_are_linearised_as_in_the_original_files() -> None:
    assert {meaning: linearise_meaning(meaning) for meaning in E2E_SOURCES} == E2E_SOURCES


def test_the_whole_of_e2e_ships_with_the_package(e2e: Task) -> None:
    assert (len(e2e.train), len(e2e.dev), len(e2e.dev_sources), len(e2e.test_sources)) == (42061, 4672, 547, 630)
    assert e2e.num_test_total == 630
    assert sum(len(sourced.references) for sourced in e2e.test_sources) == 4693
    assert e2e.metrics == ("bleu", "nist", "rouge_l_coco", "cider")


def test_e2e_targets_are_the_official_references_untokenised(e2e: Task) -> None:
    assert e2e.dev[0] == Example(
        "name : Alimentum | area : city centre | family friendly : no",
        "There is a place in the city centre, Alimentum, that is not family-friendly.",
    )
    assert e2e.dev_sources[0].references[1] == (
        "In the city centre there is a venue name Alimentum, this is not a family-friendly venue."
    )


@pytest.mark.parametrize(("text", "tokenised"), [  # lines of the original's src1_test.txt and src1_valid.txt
    ("There is a place in the city centre, Alimentum, that is not family-friendly.",
     "There is a place in the city centre , Alimentum , that is not family - friendly ."),
    ("It's cheap (less than £20) and isn't a 5-star pub.",
     "It 's cheap ( less than £ 20 ) and is n't a 5-star pub ."),
    ("Prices are £20-25, or £30.99 for hors d'oeuvre.", "Prices are £ 20 - 25 , or £ 30.99 for hors d'oeuvre ."),
])  # fmt: skip
def test_e2e_texts_are_tokenised_as_in_the_originals_files(text: str, tokenised: str) -> None:
    assert tokenise_e2e(text) == tokenised


def test_e2e_has_tokenised_targets_and_references_on_request(e2e: Task) -> None:
    task = load_task(TaskConfig(name="e2e", tokenised=True, num_train=5, num_dev=5, num_test=5))
    plain = {sourced.source: sourced.references for sourced in e2e.test_sources}
    for sourced in task.test_sources:
        assert sourced.references == tuple(map(tokenise_e2e, plain[sourced.source]))
    for example in (*task.train, *task.dev):
        assert example.target == tokenise_e2e(example.target) != ""
    assert any(example.target.endswith(" .") for example in task.train)


@pytest.mark.skipif("PREFIXRAY_E2E" not in os.environ, reason="PREFIXRAY_E2E names no folder with the original's files")
@pytest.mark.parametrize(("split", "most"), [("test", 25), ("valid", 77)])
def test_e2e_is_tokenised_as_by_the_original(split: str, most: int) -> None:
    """`PREFIXRAY_E2E`: the original's folder data/e2e_data. Some lines are typing errors that it split otherwise."""
    file = Path(os.environ["PREFIXRAY_E2E"], f"src1_{split}.txt")
    lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line]
    task = load_task(TaskConfig(name="e2e", num_train=1))
    theirs: dict[str, list[str]] = {}
    for source, target in (line.split("||") for line in lines):
        theirs.setdefault(source, []).append(target.strip())
    for_split = task.test_sources if split == "test" else task.dev_sources
    pairs = [
        (tokenise_e2e(text), original)
        for sourced in for_split
        for text, original in zip(sourced.references, theirs[sourced.source], strict=True)
    ]
    assert len(pairs) == len(lines)
    assert sum(text != original for text, original in pairs) == most


DART_ROWS = [
    {
        "tripleset": [["Mars Hill", "JOINED", "1973"], ["Mars Hill", "LOCATION", "Carolina"]],
        "annotations": [{"source": "made up", "text": "Mars Hill, Carolina, joined in 1973. "}, {"text": "It joined."}],
    },
    {
        "tripleset": [["2003", "OPEN_CUP", "Did not qualify"]],
        "annotations": [{"text": "They did not qualify in 2003."}],
    },
]


def test_dart_is_linearised_as_in_the_original_and_keeps_all_references(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        (tmp_path / f"dart-v1.1.1-full-{split}.json").write_text(json.dumps(DART_ROWS))
    (tmp_path / "dart-v1.1.1-full-test.json.gz").write_bytes(gzip.compress(json.dumps(DART_ROWS).encode()))
    task = load_task(TaskConfig(name="dart", path=str(tmp_path)))
    source = "Mars Hill : joined : 1973 | Mars Hill : location : Carolina"
    assert [example.source for example in task.train] == [source, source, "2003 : open_cup : Did not qualify"]
    assert task.test_sources[0].references == ("Mars Hill, Carolina, joined in 1973.", "It joined.")
    assert task.num_test_total == 2


def test_an_empty_reference_beside_a_good_one_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """DART's official test set has one, in its entry Id116."""
    for split, empty in {"train": "", "dev": " ", "test": None}.items():
        whole, other = DART_ROWS
        rows = [whole, {**other, "annotations": [{"text": "They did not."}, {"source": "x", "text": empty}]}]
        (tmp_path / f"dart-{split}.json").write_text(json.dumps(rows))
    task = load_task(TaskConfig(name="dart", path=str(tmp_path)))
    assert [sourced.references for sourced in task.test_sources][1:] == [("They did not.",)]
    assert [example.target for example in task.train][2:] == ["They did not."]
    assert caplog.messages == [
        f"task: dart: {split}: 1 of 4 references are empty: left out" for split in ("train", "dev", "test")
    ]


def test_a_source_of_dart_without_any_reference_is_an_error_with_its_place(tmp_path: Path) -> None:
    for split, texts in {"train": ["", None], "dev": [], "test": ["a"]}.items():
        rows = [*DART_ROWS, {**DART_ROWS[0], "annotations": [{"text": text} for text in texts]}]
        (tmp_path / f"dart-{split}.json").write_text(json.dumps(rows))
    with pytest.raises(UserError) as caught:
        load_task(TaskConfig(name="dart", path=str(tmp_path)))
    assert caught.value.problems == (
        f"{tmp_path}/dart-train.json: entry 3: all its 2 texts are empty; it must have one",
        f"{tmp_path}/dart-dev.json: entry 3: has no text; it must have one",
    )


def test_what_is_wrong_with_dart_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "dart-dev.json").write_text("[{}]")
    with pytest.raises(UserError) as caught:
        load_task(TaskConfig(name="dart", path=str(tmp_path)))
    assert caught.value.problems == (
        f"task.path: {tmp_path}: must have one file *train*.json or *train*.json.gz; found none",
        f"{tmp_path}/dart-dev.json: is not in the form of DART's JSON (KeyError('tripleset'))",
        f"task.path: {tmp_path}: must have one file *test*.json or *test*.json.gz; found none",
    )
