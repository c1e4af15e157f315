"""WebNLG: its forms, and what is said about broken files. Its texts may not be used commercially: these are made up."""

import json
from collections.abc import Sequence
from pathlib import Path

import datasets
import pytest
from support.data_files import write

from prefixray.data import Example, Sourced, Task, load_task
from prefixray.data.data_to_text import linearise_triples
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError

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
