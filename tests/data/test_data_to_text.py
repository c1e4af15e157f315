"""E2E, WebNLG and DART: their linearisations, their forms, and what is said about broken files.

WebNLG's texts may not be used commercially, so its files here are made up in its forms.
"""

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path

import datasets
import pytest
from support.data_files import write

from prefixray.data import Example, Sourced, Task, load_task
from prefixray.data.data_to_text import linearise_meaning, linearise_triples, tokenise_e2e
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


WebnlgEntry = tuple[str, list[tuple[str, str, str]], list[tuple[str, str]]]  # category, triples, (verdict, text)s


SIT = ("Cat_(animal)", "sitsOn", '"Mat"@en')


EAT = ("Cat_(animal)", "eats", "Fish,_raw")


FLY = ("Kite", "fliesOver", "Hill")


def xml_entry(category: str, triples: Sequence[tuple[str, str, str]], texts: Sequence[tuple[str, str]]) -> str:
    body = "".join(f"<mtriple>{' | '.join(triple)}</mtriple>" for triple in triples)
    lexes = "".join(f'<lex comment="{verdict}" lid="Id1">{text}</lex>' for verdict, text in texts)
    return (
        f'<entry category="{category}" eid="Id1" size="{len(triples)}"><originaltripleset>'
        f"<otriple>X | y | Z</otriple></originaltripleset><modifiedtripleset>{body}</modifiedtripleset>{lexes}</entry>"
    )


def xml(*entries: str) -> str:
    return f"<?xml version='1.0' encoding='UTF-8'?>\n<benchmark><entries>{''.join(entries)}</entries></benchmark>"


def json_form(
    category: str, triples: Sequence[tuple[str, str, str]], texts: Sequence[tuple[str, str]]
) -> dict[str, object]:
    return {
        "category": category,
        "modifiedtripleset": [dict(zip(("subject", "property", "object"), t, strict=True)) for t in triples],
        "lexicalisations": [{"comment": verdict, "lex": text, "xml_id": "Id1"} for verdict, text in texts],
    }


TWO: WebnlgEntry = (
    "Animal",
    [SIT, EAT],
    [("good", "The cat sits and eats."), ("toFix", "Cat sit eat."), ("good", "It eats.")],
)


ONE: WebnlgEntry = ("Animal", [SIT], [("toFix", "On the mat, the cat."), ("good", "The cat sits.")])


UNSEEN: WebnlgEntry = ("Toy", [FLY], [("good", "A kite flies."), ("toFix", "Kite fly.")])


WEBNLG = Task(
    name="webnlg",
    train=(
        Example(' | Cat_(animal) : sitsOn : "Mat"@en | Cat_(animal) : eats : Fish,_raw', "The cat sits and eats."),
        Example(' | Cat_(animal) : sitsOn : "Mat"@en | Cat_(animal) : eats : Fish,_raw', "It eats."),
    ),
    dev=(Example(' | Cat_(animal) : sitsOn : "Mat"@en', "The cat sits."),),
    dev_sources=(Sourced(' | Cat_(animal) : sitsOn : "Mat"@en', ("On the mat, the cat.", "The cat sits."), "seen"),),
    test_sources=(
        Sourced(' | Cat_(animal) : sitsOn : "Mat"@en', ("On the mat, the cat.", "The cat sits."), "seen"),
        Sourced(" | Kite : fliesOver : Hill", ("A kite flies.", "Kite fly."), "unseen"),
    ),
    num_test_total=2,
    metrics=("bleu", "nist", "rouge_l_coco", "cider"),
)


def webnlg_xml(folder: Path) -> Path:
    """The challenge's folder; its test split comes without texts, with them, and the unseen part once more."""
    write(folder / "train/2triples/2triples_Animal.xml", xml(xml_entry(*TWO)))
    write(folder / "dev/1triples/1triple_Animal.xml", xml(xml_entry(*ONE)))
    write(folder / "test/testdata_no_lex.xml", xml(xml_entry("Animal", [SIT], []), xml_entry("Toy", [FLY], [])))
    write(folder / "test/testdata_unseen_with_lex.xml", xml(xml_entry(*UNSEEN)))
    write(folder / "test/testdata_with_lex.xml", xml(xml_entry(*ONE), xml_entry(*UNSEEN)))
    return folder


def webnlg_json(folder: Path) -> Path:
    for split, entries in {"train": [TWO], "dev": [ONE], "test": [ONE, UNSEEN]}.items():
        numbered = [{str(i + 1): json_form(*entry)} for i, entry in enumerate(entries)]
        write(folder / f"{split}.json", json.dumps({"entries": numbered}))
    return folder


def webnlg_problems(path: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_task(TaskConfig(name="webnlg", path=path))
    return list(caught.value.problems)


def test_a_bar_stands_before_every_triple() -> None:
    assert linearise_triples([FLY, SIT]) == ' | Kite : fliesOver : Hill | Cat_(animal) : sitsOn : "Mat"@en'


def test_webnlg_xml_trains_on_good_texts_and_scores_against_all(tmp_path: Path) -> None:
    task = load_task(TaskConfig(name="webnlg", path=str(webnlg_xml(tmp_path))))
    assert set(task.test_sources) == set(WEBNLG.test_sources)  # the file of unseen categories comes first by name
    assert task.test_sources == WEBNLG.test_sources[::-1]
    assert (task.train, task.dev, task.dev_sources) == (WEBNLG.train, WEBNLG.dev, WEBNLG.dev_sources)
    assert task.num_test_total == 2


def test_webnlg_json_gives_the_same_task(tmp_path: Path) -> None:
    assert load_task(TaskConfig(name="webnlg", path=str(webnlg_json(tmp_path)))) == WEBNLG


def hub_row(entry: WebnlgEntry, *, nested: bool) -> dict[str, object]:
    """An entry as `datasets` gives it: lists of records, or (its older form) mappings of lists."""
    category, triples, texts = entry
    joined = [" | ".join(triple) for triple in triples]
    if nested:
        lex = [{"comment": verdict, "text": text} for verdict, text in texts]
        return {"category": category, "modified_triple_sets": [{"mtriple_set": joined}], "lex": lex}
    columns = {"comment": [verdict for verdict, _ in texts], "text": [text for _, text in texts]}
    return {"category": category, "modified_triple_sets": {"mtriple_set": [joined]}, "lex": columns}


@pytest.mark.parametrize("nested", [False, True])
def test_webnlg_from_the_hub_gives_the_same_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool) -> None:
    without_texts: WebnlgEntry = ("Toy", [FLY], [])

    def load_copy(name: str, config: str) -> object:
        """The hub's answer, made here."""
        assert (name, config) == ("somebody/web_nlg", "webnlg_challenge_2017")
        splits = {"train": [TWO], "dev": [ONE], "test": [ONE, without_texts, UNSEEN, UNSEEN]}
        rows = {split: [hub_row(entry, nested=nested) for entry in entries] for split, entries in splits.items()}
        return datasets.DatasetDict({split: datasets.Dataset.from_list(rows[split]) for split in splits})

    monkeypatch.setattr(datasets, "load_dataset", load_copy)
    monkeypatch.chdir(tmp_path)
    assert load_task(TaskConfig(name="webnlg", path="somebody/web_nlg")) == WEBNLG


def test_a_hub_data_set_of_another_form_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = datasets.Dataset.from_list([{"input": ["a | b | c"], "target": "d"}])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: {"train": other, "validation": other})
    assert webnlg_problems("somebody/other") == [
        "task.path: somebody/other: has no split test; its splits are train, validation"
        " (custom, summarization: task.split takes dev and test out of train)"
    ]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: dict.fromkeys(("train", "dev", "test"), other))
    assert webnlg_problems("somebody/other") == [
        "task.path: somebody/other: row 0 of train: is not in the form of webnlg-challenge/web_nlg "
        "(KeyError('modified_triple_sets'))"
    ]


def test_an_unreachable_hub_data_set_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert webnlg_problems("nobody/nothing") == [
        "task.path: nobody/nothing: no such folder, nor can a hub data set be loaded: "
        "Couldn't reach 'nobody/nothing' on the Hub (OfflineModeIsEnabled); "
        "give the folder of the 2017 challenge's files"
    ]


def test_webnlg_without_a_path_and_with_a_wrong_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_task(TaskConfig(name="webnlg"))
    assert str(caught.value) == "task.path: webnlg needs the folder of the 2017 challenge's files or a hub data set"
    assert webnlg_problems(f"{tmp_path}/no/where") == [f"task.path: {tmp_path}/no/where: no such folder"]
    assert webnlg_problems(str(tmp_path)) == [
        f"task.path: {tmp_path}: has neither {split}.json nor XML files in {split}/"
        for split in ("train", "dev", "test")
    ]


def test_broken_webnlg_files_are_named_all_at_once(tmp_path: Path) -> None:
    write(tmp_path / "train/a.xml", "<benchmark>\n<entries>\n</benchmark>")
    write(tmp_path / "dev/a.xml", xml(xml_entry(*TWO)).replace("Cat_(animal) | eats", "Cat_(animal) eats"))
    write(tmp_path / "test.json", '{"entries": [\n{"1": }]}')
    assert webnlg_problems(str(tmp_path)) == [
        f"{tmp_path}/train/a.xml:3: is not XML: mismatched tag: line 3, column 2",
        f"{tmp_path}/dev/a.xml: entry Id1: 'Cat_(animal) eats | Fish,_raw' is not a triple of the form "
        "subject | property | object",
        f"{tmp_path}/test.json:2: is not JSON: Expecting value",
    ]


def test_webnlg_json_of_another_form_is_refused(tmp_path: Path) -> None:
    write(webnlg_json(tmp_path) / "dev.json", '{"entries": [{"1": {"category": "Animal"}}]}')
    assert webnlg_problems(str(tmp_path)) == [
        f"{tmp_path}/dev.json: is not in the form of the WebNLG challenge's JSON (KeyError('modifiedtripleset'))"
    ]


def test_a_split_without_examples_is_refused(tmp_path: Path) -> None:
    write(
        webnlg_xml(tmp_path) / "dev/1triples/1triple_Animal.xml", xml(xml_entry("Animal", [SIT], [("toFix", "Cat.")]))
    )
    assert webnlg_problems(str(tmp_path)) == ["task: webnlg: the dev split has no examples"]


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


def test_an_empty_text_of_webnlg_is_left_out_with_its_verdict(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    category, triples, texts = ONE
    for split, entry in {"train": TWO, "dev": ONE, "test": (category, triples, [("toFix", " "), *texts])}.items():
        write(tmp_path / f"{split}/a.xml", xml(xml_entry(*entry)))
    task = load_task(TaskConfig(name="webnlg", path=str(tmp_path)))
    assert task.test_sources == WEBNLG.dev_sources
    assert caplog.messages[:1] == ["task: webnlg: test: 1 of 3 references are empty: left out"]
    write(tmp_path / "test/a.xml", xml(xml_entry("Animal", [SIT], [("good", "")])))
    assert webnlg_problems(str(tmp_path)) == [
        f"{tmp_path}/test/a.xml: entry Id1: its only text is empty; it must have one"
    ]


def test_what_is_wrong_with_dart_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "dart-dev.json").write_text("[{}]")
    with pytest.raises(UserError) as caught:
        load_task(TaskConfig(name="dart", path=str(tmp_path)))
    assert caught.value.problems == (
        f"task.path: {tmp_path}: must have one file *train*.json or *train*.json.gz; found none",
        f"{tmp_path}/dart-dev.json: is not in the form of DART's JSON (KeyError('tripleset'))",
        f"task.path: {tmp_path}: must have one file *test*.json or *test*.json.gz; found none",
    )
