"""Tasks: linearisations, grouping, subsets, and what is said about broken files.

WebNLG's texts may not be used commercially, so its files here are made up in its forms.
"""

import csv
import gzip
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from prefixray.data import Example, Sourced, Task, load_task
from prefixray.data.data_to_text import linearise_meaning, linearise_triples
from prefixray.data.entries import ColumnsConfig
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.system.records import Count
from prefixray.system.seeds import CANDIDATE_REPLICATE, subset_of

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


@pytest.fixture(scope="module")
def e2e() -> Task:
    return load_task(TaskConfig(name="e2e"))


def write(file: Path, text: str) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return str(file)


def jsonl(rows: Sequence[object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def pairs(*texts: tuple[str, str]) -> str:
    return jsonl([{"source": source, "target": target} for source, target in texts])


def custom(folder: Path, content: str, count: Count = "all") -> Task:
    """A task whose three splits are the same JSONL text, each cut to `count`."""
    file = write(folder / "data.jsonl", content)
    counts = {"num_train": count, "num_dev": count, "num_test": count}
    return load_task(TaskConfig.model_validate({"name": "custom", "train": file, "dev": file, "test": file, **counts}))


def problems_with(folder: Path, name: str, content: bytes, columns: ColumnsConfig | None = None) -> list[str]:
    """What is said about this content as a training file; the file's path is shortened to its name."""
    good = write(folder / "good.jsonl", pairs(("a", "b")))
    (folder / name).write_bytes(content)
    if columns is not None:
        good = write(folder / "good.jsonl", jsonl([{columns.source: "a", columns.target: "b"}]))
    config = TaskConfig(
        name="custom", train=str(folder / name), dev=good, test=good, columns=columns or ColumnsConfig()
    )
    with pytest.raises(UserError) as caught:
        load_task(config)
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]


# E2E


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


def test_loading_a_task_imports_no_torch_and_no_datasets() -> None:
    code = (
        "import sys; from prefixray.data.task_config import TaskConfig; from prefixray.data import load_task;"
        "load_task(TaskConfig(name='e2e')); print([m for m in ('torch', 'datasets') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "[]\n"


# Subsets


def test_a_small_num_dev_takes_different_sources_with_all_their_references(e2e: Task) -> None:
    small = load_task(TaskConfig(name="e2e", num_dev=64))
    assert len(small.dev) == len(small.dev_sources) == 64
    assert {sourced.source for sourced in small.dev_sources} == {example.source for example in small.dev}
    assert set(small.dev_sources) <= set(e2e.dev_sources)


def test_a_num_dev_above_the_number_of_sources_takes_second_references(e2e: Task) -> None:
    larger = load_task(TaskConfig(name="e2e", num_dev=600))
    counts = Counter(example.source for example in larger.dev)
    assert len(counts) == 547
    assert Counter(counts.values()) == {1: 494, 2: 53}


def test_a_larger_subset_contains_the_smaller_and_keeps_the_order_of_the_file(e2e: Task) -> None:
    small = load_task(TaskConfig(name="e2e", num_train=20, num_dev=20, num_test=20))
    large = load_task(TaskConfig(name="e2e", num_train=200, num_dev=700, num_test=200))
    assert (len(small.train), len(small.dev), len(small.test_sources), small.num_test_total) == (20, 20, 20, 630)
    for part, whole in [(small.train, large.train), (small.dev, large.dev), (large.train, e2e.train)]:
        assert not Counter(part) - Counter(whole)
    assert set(small.test_sources) <= set(large.test_sources)
    kept = set(large.test_sources)
    assert [sourced for sourced in e2e.test_sources if sourced in kept] == list(large.test_sources)


def test_a_subset_depends_on_the_texts_alone(tmp_path: Path) -> None:
    rows = [(f"source {i}", f"target {i}") for i in range(8)]
    forwards = custom(tmp_path, pairs(*rows), 3)
    backwards = custom(tmp_path, pairs(*rows[::-1]), 3)
    assert forwards.train == backwards.train[::-1]
    assert forwards.dev == backwards.dev[::-1]
    assert [sourced.source for sourced in forwards.test_sources] == ["source 3", "source 4", "source 7"]
    assert forwards.test_sources == backwards.test_sources[::-1]


def test_asking_for_more_than_there_is_takes_all_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = custom(tmp_path, pairs(("a", "b"), ("c", "d")), 5)
    assert task.num_test_total == len(task.test_sources) == len(task.train) == len(task.dev) == 2
    said = "5 asked for, but the split has only 2: all are used"
    assert sorted(caplog.messages) == [f"task.{name}: {said}" for name in ("num_dev", "num_test", "num_train")]


# Low data


def low_data(size: int = 20, num_subsets: int = 3, seed: int = 1) -> Task:
    low = {"size": size, "num_subsets": num_subsets, "seed": seed}
    return load_task(TaskConfig.model_validate({"name": "e2e", "num_test": 10, "low_data": low}))


def test_low_data_draws_different_subsets_of_train_with_a_dev_set_of_a_third_of_the_size(e2e: Task) -> None:
    task = low_data()
    assert [(len(subset.train), len(subset.dev)) for subset in task.subsets] == [(20, 6)] * 3
    assert len({subset.train for subset in task.subsets}) == len({subset.dev for subset in task.subsets}) == 3
    for subset in task.subsets:
        assert set(subset.train) <= set(e2e.train) and set(subset.dev) <= set(e2e.dev)
    assert {sourced.source for sourced in task.dev_sources} == {example.source for example in task.dev}
    assert (task.train, task.dev) == (task.subsets[0].train, task.subsets[0].dev)


def test_low_data_is_the_same_each_time_and_another_with_another_seed() -> None:
    assert low_data() == low_data()
    assert low_data(seed=2).subsets[0].train != low_data().subsets[0].train


def test_a_larger_size_and_more_subsets_contain_what_fewer_have() -> None:
    small, large = low_data(20, 2), low_data(40, 3)
    for few, many in zip(small.subsets, large.subsets, strict=False):
        assert set(few.train) <= set(many.train) and set(few.dev) <= set(many.dev)


def test_final_runs_take_turns_on_the_subsets_and_the_search_has_the_first() -> None:
    assert [subset_of(replicate, 5) for replicate in range(1, 11)] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    assert subset_of(0, 5) == subset_of(CANDIDATE_REPLICATE, 5) == 0
    assert {subset_of(replicate, 1) for replicate in (0, 1, 2, 7, CANDIDATE_REPLICATE)} == {0}


def test_a_fraction_takes_that_share_of_train_and_all_of_dev(e2e: Task) -> None:
    fifth, half = (load_task(TaskConfig(name="e2e", fraction=share)) for share in (0.2, 0.5))
    assert (len(fifth.train), len(half.train)) == (8412, 21030)
    assert not Counter(fifth.train) - Counter(half.train)
    assert (fifth.dev, fifth.subsets[1:]) == (e2e.dev, ())


def test_own_data_may_name_the_group_of_a_source(tmp_path: Path) -> None:
    rows = [{"source": "a", "target": "b", "topic": "old"}, {"source": "c", "target": "d", "topic": None}]
    file = write(tmp_path / "data.jsonl", jsonl([*rows, {"source": "e", "target": "f"}]))
    files = {"name": "custom", "train": file, "dev": file, "test": file}
    grouped = load_task(TaskConfig.model_validate({**files, "columns": {"group": "topic"}}))
    assert [sourced.group for sourced in grouped.test_sources] == ["old", None, None]
    assert {sourced.group for sourced in load_task(TaskConfig.model_validate(files)).test_sources} == {None}


def test_test_sources_that_are_trained_on_are_counted(tmp_path: Path, e2e: Task) -> None:
    train = write(tmp_path / "train.jsonl", jsonl([{"source": s, "target": "t"} for s in "abc"]))
    test = write(tmp_path / "test.jsonl", jsonl([{"source": s, "target": "t"} for s in "cde"]))
    task = load_task(TaskConfig(name="custom", train=train, dev=train, test=test))
    assert task.leak == "1 of 3 test sources are in train as well: scores on them are no test"
    assert e2e.leak is None


# WebNLG

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
    datasets = pytest.importorskip("datasets")
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
    datasets = pytest.importorskip("datasets")
    other = datasets.Dataset.from_list([{"input": ["a | b | c"], "target": "d"}])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: {"train": other, "validation": other})
    assert webnlg_problems("somebody/other") == [
        "task.path: somebody/other: has no split test; its splits are train, validation"
    ]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: dict.fromkeys(("train", "dev", "test"), other))
    assert webnlg_problems("somebody/other") == [
        "task.path: somebody/other: row 0 of train: is not in the form of webnlg-challenge/web_nlg "
        "(KeyError('modified_triple_sets'))"
    ]


def test_an_unreachable_hub_data_set_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
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


# Own files


def test_repeated_sources_are_one_source_with_all_references(tmp_path: Path) -> None:
    rows = [{"source": "a ", "target": "1"}, {"source": "b", "target": ["2", " 3\n"]}, {"source": "a", "target": "4"}]
    task = custom(tmp_path, jsonl(rows))
    assert task.train == task.dev == (Example("a", "1"), Example("b", "2"), Example("b", "3"), Example("a", "4"))
    assert task.test_sources == task.dev_sources == (Sourced("a", ("1", "4")), Sourced("b", ("2", "3")))
    assert (task.name, task.num_test_total, task.metrics) == ("custom", 2, ("bleu", "nist", "rouge_l_coco", "cider"))


def test_csv_and_jsonl_plain_and_gzipped_are_the_same(tmp_path: Path) -> None:
    rows = [("a, b", 'say "hi"'), ("two\nlines", "café\u2028x")]
    plain_jsonl = jsonl([{"in": source, "out": target, "id": 7} for source, target in rows])
    with (tmp_path / "data.csv").open("w", encoding="utf-8-sig", newline="") as stream:
        csv.writer(stream).writerows([("id", "out", "in"), *((7, target, source) for source, target in rows)])
    write(tmp_path / "data.jsonl", plain_jsonl + "\n\n")
    for name in ("data.csv", "data.jsonl"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    for name in ("data.csv", "data.jsonl", "data.csv.gz", "data.jsonl.gz"):
        file = str(tmp_path / name)
        columns = ColumnsConfig(source="in", target="out")
        task = load_task(TaskConfig(name="custom", train=file, dev=file, test=file, columns=columns))
        assert task.train == tuple(Example(source, target) for source, target in rows)


def test_a_line_of_ten_megabytes_is_read(tmp_path: Path) -> None:
    assert len(custom(tmp_path, pairs(("x" * 10_000_000, "long"))).train[0].source) == 10_000_000


def test_a_row_without_the_target_column_is_refused(tmp_path: Path) -> None:
    content = pairs(("a", "b")) + jsonl([{"source": "a", "text": "b"}, {}])
    assert problems_with(tmp_path, "train.jsonl", content.encode()) == [
        'train.jsonl:2: no "target" column; columns are source, text (set task.columns.target)',
        'train.jsonl:3: no "source" column; columns are none (set task.columns.source)',
        'train.jsonl:3: no "target" column; columns are none (set task.columns.target)',
    ]


def test_a_csv_header_without_a_column_or_with_one_twice_is_reported_once(tmp_path: Path) -> None:
    columns = ColumnsConfig(source="input", target="text")
    assert problems_with(tmp_path, "train.csv", b"source,text,text\na,b,c\nd,e,f\n", columns) == [
        'train.csv:1: no "input" column; columns are source, text, text (set task.columns.source)',
        'train.csv:1: 2 columns are named "text"',
    ]


def test_wrong_values_are_reported_with_their_kind(tmp_path: Path) -> None:
    rows = [
        {"source": 17, "target": None},
        {"source": ["a"], "target": ["b", 1.5, " "]},
        {"source": " ", "target": []},
        {"source": True, "target": {"text": "b"}},
        {"source": "\ud83d", "target": "b"},
        ["a", "b"],
    ]
    assert problems_with(tmp_path, "train.jsonl", jsonl(rows).encode()) == [
        'train.jsonl:1: "source" is a number; it must be text',
        'train.jsonl:1: "target" is null; it must be text',
        'train.jsonl:2: "source" is a list; it must be text',
        'train.jsonl:2: "target" is a number; it must be text',
        'train.jsonl:2: "target" is empty',
        'train.jsonl:3: "source" is empty',
        'train.jsonl:3: "target" is an empty list; it must have a reference',
        'train.jsonl:4: "source" is true or false; it must be text',
        'train.jsonl:4: "target" is an object; it must be text',
        'train.jsonl:5: "source" has half a surrogate pair, which is no text',
        "train.jsonl:6: is a list; it must be an object",
    ]


def test_lines_of_a_csv_are_right_after_fields_of_several_lines(tmp_path: Path) -> None:
    content = b'source,target\r\n"a\r\nb",c\r\n\r\n"d\r\ne",\r\nf,g,h\r\ni\r\n'
    assert problems_with(tmp_path, "train.csv", content) == [
        'train.csv:5: "target" is empty',
        "train.csv:7: has 3 values for 2 columns",
        "train.csv:8: has 1 values for 2 columns",
    ]


def test_an_open_quote_and_a_huge_field_in_a_csv_are_refused(tmp_path: Path) -> None:
    assert problems_with(tmp_path, "train.csv", b'source,target\na,b\n"c,d\ne,f\n') == [
        "train.csv:3: is not CSV: unexpected end of data"
    ]
    huge = b"source,target\na,b\n" + b"x" * 10_000_000 + b",c\n"
    assert problems_with(tmp_path, "train.csv", huge) == [
        "train.csv:3: is not CSV: field larger than field limit (131072)"
    ]


def test_invalid_json_is_reported_with_its_column(tmp_path: Path) -> None:
    content = pairs(("a", "b")) + '\n{"source": "a" "target": "b"}\n' + "[" * 100_000 + "\n" + "9" * 5000 + "\n"
    problems = problems_with(tmp_path, "train.jsonl", content.encode())
    assert problems[0] == "train.jsonl:3: is not JSON: Expecting ',' delimiter at column 16"
    assert [problem[:26] for problem in problems[1:]] == [f"train.jsonl:{line}: is not JSON" for line in (4, 5)]


def test_a_file_that_is_not_utf8_is_refused_at_its_line(tmp_path: Path) -> None:
    content = pairs(("a", "b")).encode() + '{"source": "café", "target": "b"}\n'.encode("latin-1")
    assert problems_with(tmp_path, "train.jsonl", content) == [
        "train.jsonl:2: is not UTF-8 (byte 0xe9); save it as UTF-8"
    ]
    assert problems_with(tmp_path, "train.csv", "source,target\na,b\n".encode("utf-16")) == [
        "train.csv:1: is not UTF-8 (byte 0xff); save it as UTF-8"
    ]


@pytest.mark.parametrize("name", ["train.jsonl", "train.csv"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    assert problems_with(tmp_path, name, b"\n \n" if name == "train.jsonl" else b"\n") == [f"{name}: has no rows"]
    assert problems_with(tmp_path, name, b"") == [f"{name}: has no rows"]
    assert problems_with(tmp_path, "train.csv", b"source,target\n") == ["train.csv: has no rows"]


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(pairs(("a", "b")).encode())
    assert problems_with(tmp_path, "train.jsonl.gz", whole[:-9]) == [
        "task.train: train.jsonl.gz: is not a whole gzip file: "
        "Compressed file ended before the end-of-stream marker was reached"
    ]
    assert problems_with(tmp_path, "train.csv.gz", b"source,target\na,b\n") == [
        "task.train: train.csv.gz: is not a whole gzip file: Not a gzipped file (b'so')"
    ]


def test_all_three_files_are_reported_at_once(tmp_path: Path) -> None:
    text = write(tmp_path / "dev.txt", "a b")
    with pytest.raises(UserError) as caught:
        load_task(TaskConfig(name="custom", dev=text, test=f"{tmp_path}/test.csv"))
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "task.train: custom needs a JSONL or CSV file here\n"
        "task.dev: dev.txt: must be a .jsonl, .csv, .jsonl.gz or .csv.gz file\n"
        "task.test: test.csv: cannot be read: No such file or directory"
    )


def test_of_many_problems_the_first_twenty_are_shown(tmp_path: Path) -> None:
    problems = problems_with(tmp_path, "train.jsonl", pairs(*[("", "b")] * 137).encode())
    assert problems == [f'train.jsonl:{line}: "source" is empty' for line in range(1, 21)] + ["and 117 more"]


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


def test_what_is_wrong_with_dart_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "dart-dev.json").write_text("[{}]")
    with pytest.raises(UserError) as caught:
        load_task(TaskConfig(name="dart", path=str(tmp_path)))
    assert caught.value.problems == (
        f"task.path: {tmp_path}: must have one file *train*.json or *train*.json.gz; found none",
        f"{tmp_path}/dart-dev.json: is not in the form of DART's JSON (KeyError('tripleset'))",
        f"task.path: {tmp_path}: must have one file *test*.json or *test*.json.gz; found none",
    )
