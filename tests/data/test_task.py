"""Tasks: the subsets of train, dev and test, and sources that are in two splits."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support.data_files import custom, jsonl, pairs, write

from prefixray.data import Task, load_task
from prefixray.data.task_config import TaskConfig
from prefixray.data.texts import up_to_line_break

LINE_BREAKS = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]


@pytest.mark.parametrize("line_break", LINE_BREAKS, ids=ascii)
def test_what_ends_a_hypothesis_stands_in_no_target_and_no_reference(tmp_path: Path, line_break: str) -> None:
    task = custom(tmp_path, pairs(("a", f"One.{line_break}Two.")))
    (example,), (sourced,) = task.train, task.test_sources
    assert (example.target, sourced.references) == ("One. Two.", ("One. Two.",))
    assert up_to_line_break(example.target) == example.target
    assert up_to_line_break(f"One.{line_break}Two.") == "One."


def test_loading_a_task_imports_no_torch_and_no_datasets() -> None:
    code = (
        "import sys; from prefixray.data.task_config import TaskConfig; from prefixray.data import load_task;"
        "load_task(TaskConfig(name='e2e')); print([m for m in ('torch', 'datasets') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "[]\n"


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


def test_a_fraction_takes_that_share_of_train_and_all_of_dev(e2e: Task) -> None:
    fifth, half = (load_task(TaskConfig(name="e2e", fraction=share)) for share in (0.2, 0.5))
    assert (len(fifth.train), len(half.train)) == (8412, 21030)
    assert not Counter(fifth.train) - Counter(half.train)
    assert (fifth.dev, fifth.subsets[1:]) == (e2e.dev, ())


def test_sources_that_two_splits_share_are_counted(tmp_path: Path, e2e: Task) -> None:
    splits = {"train": "abc", "dev": "abfghde", "test": "cdei"}
    files = {
        split: write(tmp_path / f"{split}.jsonl", jsonl([{"source": s, "target": "t"} for s in sources]))
        for split, sources in splits.items()
    }
    assert load_task(TaskConfig.model_validate({"name": "custom", **files})).leaks == (
        "1 of 4 test sources are in train as well: scores on them are no test",
        "2 of 7 dev sources are in train as well: trials are chosen by what they were trained on",
        "2 of 4 test sources are in dev as well: trials were chosen by them",
    )
    assert e2e.leaks == ()
