"""A student waits for a device as long as a worker does. Ray is played here."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, OutOfMemoryError

from prefixray.cluster import fleet
from prefixray.cluster.connect import Cluster
from prefixray.cluster.fleet import NoWorkers
from prefixray.cluster.worker import WorkerSetup
from prefixray.data.documents import Document
from prefixray.driver.documents import student as module
from prefixray.errors import SweepFailed

ELSEWHERE = Cluster("auto", "tests", "cuda", num_cpus=0, num_gpus=0, num_workers=0, most_workers=1, num_threads=1)


class PlayedRay:
    """One student, which gets its device after so many looks, or never, and is done three looks later."""

    def __init__(self, looks: float) -> None:
        self._starts_at, self._num_looks, self.killed = looks, 0, 0

    def remote(self, *_: object) -> Any:  # noqa: ANN401
        calls = {name: SimpleNamespace(remote=lambda *_, name=name: name) for name in ("study", "progress")}
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda _: SimpleNamespace(**calls)))

    def wait(self, answers: Sequence[str], timeout: float) -> tuple[Sequence[str], Sequence[str]]:
        self._num_looks += 1
        return (answers, []) if self._num_looks > self._starts_at + 3 else ([], answers)

    def get(self, answer: str, timeout: float = 0) -> str | None:
        if answer == "progress" and self._num_looks < self._starts_at:
            raise GetTimeoutError
        return "loading the base" if answer == "progress" else None

    def kill(self, _: object) -> None:
        self.killed += 1


@pytest.mark.parametrize("looks", [1, float("inf")])
def test_a_student_waits_for_a_device_no_longer_than_a_worker(
    looks: float, worker_setup: WorkerSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray, said, done = PlayedRay(looks), list[str](), list[module.Assignment]()
    monkeypatch.setattr(module, "ray", ray)
    monkeypatch.setattr(module, "answer_of", ray.get)

    def study() -> None:
        setup = replace(worker_setup, max_wait_hours=1e-9)
        both = [module.Assignment(Document(name, "Text."), tmp_path / name, {}) for name in ("manual", "guide")]
        module.have_studied(ELSEWHERE, setup, both, seed=1, on_progress=said.append, on_done=done.append)

    if looks == 1:
        study()
        assert said == ["loading the base"] * 4 and ray.killed == 1, "once it has one, it may take its time"
        assert [assignment.document.name for assignment in done] == ["manual", "guide"], "by the same student"
    else:
        clock = itertools.count()
        monkeypatch.setattr(fleet, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
        with pytest.raises(NoWorkers, match=r"no GPU came in 1e-09 hours \(search\.max_wait_hours\)"):
            study()
        assert said == ["waiting for a worker"] and ray.killed == 1


@pytest.mark.parametrize("num_deaths", [2, 3])
def test_a_student_that_ray_kills_for_its_memory_has_died(
    num_deaths: int, worker_setup: WorkerSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths, done = [OutOfMemoryError("the node running low on memory\n...")] * num_deaths, list[module.Assignment]()

    def answer_of(_: object) -> None:
        if deaths:
            raise deaths.pop()

    monkeypatch.setattr(module, "ray", PlayedRay(0))
    monkeypatch.setattr(module, "answer_of", answer_of)
    one = [module.Assignment(Document("manual", "Text."), tmp_path / "manual", {})]

    def study() -> None:
        module.have_studied(ELSEWHERE, worker_setup, one, seed=1, on_progress=lambda _: None, on_done=done.append)

    if num_deaths < module.MOST_DEATHS:
        study()
        assert done == one, "another one begins again"
    else:
        with pytest.raises(SweepFailed, match="studied manual has died: the node running low on memory, 3 times"):
            study()
