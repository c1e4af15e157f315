"""What a timeline's lines say: who did what for how long, over drivers that end and drivers that are killed."""

import json
from pathlib import Path

import pytest

from prefixray.results.timeline import keeper
from prefixray.results.timeline.keeper import FILE, Doing, Timekeeper
from prefixray.results.timeline.read import read_timeline

LINES = [
    {"at": 100.0, "driver": "begins"},
    {"at": 101.0, "worker": "worker-0", "does": "load"},
    {"at": 105.0, "worker": "worker-0", "does": "train", "trials": {"prefix": 2}},
    {"at": 111.0, "worker": "worker-0", "does": "train", "trials": {"prefix": 2}, "busy": [5.0, 1.0]},
    {"at": 115.0, "worker": "worker-0", "does": "load", "busy": [8.0, 2.0]},  # it has died
    {"at": 117.0, "worker": "worker-0", "does": "train", "trials": {"prefix": 1}, "busy": [0.5, 0.0]},
    {"at": 119.0, "worker": "worker-0", "does": "idle", "busy": [1.5, 0.0]},  # killed while it writes on
    {"at": 200.0, "driver": "begins"},  # to find the sweep finished
    {"at": 201.0, "worker": "worker-0", "does": "load"},
    {"at": 202.0, "driver": "ends"},
    {"at": 300.0, "driver": "begins"},
    {"at": 300.0, "worker": "worker-0", "does": "decode", "trials": {"final/prefix": 1}},
    {"at": 300.0, "worker": "worker-1", "does": "decode"},
    {"at": 304.0, "worker": "worker-1", "does": "gone"},
    {"at": 306.0, "driver": "ends"},
]


def test_time_is_counted_by_what_it_went_into_and_stands_still_between_drivers(tmp_path: Path) -> None:
    texts = [json.dumps(line) for line in LINES]
    texts.insert(7, texts[6][:20])
    (tmp_path / FILE).write_text("\n".join(texts) + "\n")
    timeline = read_timeline(tmp_path)
    assert timeline is not None and timeline.begins == [0.0, 19.0] and timeline.seconds == 25.0
    first, second = timeline.lanes
    assert first.seconds == {
        "starting": 4.0 + 2.0,
        "training": (8.0 - 2.0) + 1.5,
        "evaluating": 2.0,
        "decoding": 6.0,
        "waiting": 12.0 - 8.0 - 1.5,
        "idle": 0.0,
    }
    assert (second.worker, second.total, second.idle_share) == ("worker-1", 4.0, 0.0)
    assert first.idle_share == pytest.approx(2.5 / 24) and timeline.idle_share == pytest.approx(2.5 / 28)
    spans = [(span.begin, span.end, span.doing.does) for span in first.spans]
    assert spans[:2] == [(1.0, 5.0, "load"), (5.0, 15.0, "train")], "a line that says the same again begins no span"
    assert spans[-1] == (19.0, 25.0, "decode")


def test_a_line_is_written_where_something_changes_and_once_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, doing = 1000.0, {"worker-0": Doing("load")}
    monkeypatch.setattr(keeper, "_now", lambda: now)
    (tmp_path / FILE).write_bytes(b'{"at":1.0,"driver":"beg')  # a driver was killed while it wrote
    with Timekeeper(tmp_path / FILE) as timekeeper:
        timekeeper.watch(lambda: doing)
        for now, does in [(1001.0, "load"), (1002.0, "train"), (1003.0, "train"), (1062.0, "train"), (1063.0, "idle")]:
            doing["worker-0"] = Doing(does, {"lora": 1} if does == "train" else {}, stepping=now - 1000)  # type: ignore[arg-type]
            timekeeper.note()
        doing.clear()
    _, *texts = (tmp_path / FILE).read_text().splitlines()
    lines = [json.loads(text) for text in texts]
    train = {"worker": "worker-0", "does": "train", "trials": {"lora": 1}}
    assert lines == [
        {"at": 1000.0, "driver": "begins"},
        {"at": 1001.0, "worker": "worker-0", "does": "load", "busy": [1.0, 0.0]},
        {"at": 1002.0, **train, "busy": [2.0, 0.0]},
        {"at": 1062.0, **train, "busy": [62.0, 0.0]},
        {"at": 1063.0, "worker": "worker-0", "does": "idle", "busy": [63.0, 0.0]},
        {"at": 1063.0, "worker": "worker-0", "does": "gone"},
        {"at": 1063.0, "driver": "ends"},
    ]


def test_a_disk_that_refuses_ends_the_timeline_and_not_the_sweep(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Timekeeper(tmp_path / "nowhere" / FILE) as timekeeper:
        timekeeper.watch(lambda: {"worker-0": Doing("idle")})
        timekeeper.note()
    assert "what the workers do is written down no more" in caplog.text and len(caplog.records) == 1
    assert read_timeline(tmp_path / "nowhere") is None


def test_a_process_that_comes_again_counts_from_nothing_though_its_first_line_has_no_steps(tmp_path: Path) -> None:
    train = {"worker": "worker-0", "does": "train", "trials": {"prefix": 1}}
    lines = [
        {"at": 1000.0, "driver": "begins"},
        {"at": 1000.0, **train},
        {"at": 1020.0, "worker": "worker-0", "does": "load", "busy": [20.0, 5.0]},
        {"at": 1030.0, **train},
        {"at": 1090.0, **train, "busy": [58.0, 3.0]},
    ]
    (tmp_path / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    timeline = read_timeline(tmp_path)
    assert timeline is not None
    (lane,) = timeline.lanes
    assert (lane.seconds["training"], lane.seconds["evaluating"]) == (15.0 + 55.0, 5.0 + 3.0)
