"""What is decoded while workers die, or their machines go."""

from pathlib import Path

import pytest
from support.fake_ray import FakeRay, decode_job, fake_workers, make_arm, make_pool, make_spec

from prefixray.cluster import fleet
from prefixray.cluster.connect import Cluster
from prefixray.cluster.decode_queue import MOST_FAILURES
from prefixray.cluster.nodes import ActorState
from prefixray.errors import SweepFailed


def test_deaths_are_counted_by_what_is_decoded(tmp_path: Path, ray: FakeRay) -> None:
    pool = make_pool(tmp_path, num_workers=1)
    pool.wait([make_arm("lora", rank=2)])
    (worker,) = fake_workers(pool)
    worker.num_deaths = {f"final/{number}": MOST_FAILURES for number in range(3)}
    pool.decode([decode_job(number) for number in range(3)])  # machines that come and go
    worker.num_deaths = {"final/1": MOST_FAILURES + 1}
    with pytest.raises(SweepFailed, match=f"final/1: {MOST_FAILURES + 1} workers have died while they decoded"):
        pool.decode([decode_job(number) for number in range(3)])


def test_where_the_base_cannot_decode_behind_the_document_all_others_have_decoded(tmp_path: Path, ray: FakeRay) -> None:
    pool = make_pool(tmp_path, num_workers=1)
    pool.wait([make_arm("lora", rank=2)])
    (worker,) = fake_workers(pool)
    jobs = [decode_job(0), decode_job(1)._replace(model="in_context"), decode_job(2)]
    worker.no_memory_for = {"final/1"}
    for _ in range(3):  # at the end of each search
        pool.decode_when_idle(jobs[1])
        pool.use_idle()
    assert [method for method, _ in worker.given].count("decode") == 1, "what fails early is not tried early again"
    ((job, problem),) = pool.decode(jobs)
    assert job == jobs[1] and "out of memory" in problem
    assert {given[1] for method, given in worker.given if method == "decode"} == {f"final/{n}" for n in range(3)}
    worker.no_memory_for, worker.num_deaths = set(), {"final/1": MOST_FAILURES + 1}
    ((job, problem),) = pool.decode(jobs)
    assert job == jobs[1] and f"{MOST_FAILURES + 1} workers have died" in problem
    assert pool.decode(jobs) == [], "it is tried again"
    worker.no_memory_for = {"final/2"}
    with pytest.raises(
        SweepFailed, match=r"^final/2: 4 workers .* could not decode it, the last one of: MemoryError: out"
    ):
        pool.decode(jobs)


def test_a_decoding_in_which_a_worker_errs_once_is_tried_again(tmp_path: Path, ray: FakeRay) -> None:
    pool = make_pool(tmp_path, num_workers=1)
    pool.wait([make_arm("lora", rank=2)])
    (worker,) = fake_workers(pool)
    worker.no_memory_for = {"final/1"}

    def on_progress(_: str) -> None:
        worker.no_memory_for = set() if [name for name, _ in worker.given].count("decode") > 1 else worker.no_memory_for

    assert pool.decode([decode_job(1)], on_progress) == []
    assert [name for name, _ in worker.given].count("decode") == 3


def test_a_worker_whose_machine_is_about_to_go_is_given_nothing_to_decode_and_is_ended_on_purpose(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cluster, "devices", lambda cluster: {"node": 1})
    pool = make_pool(tmp_path, address="auto")
    pool.wait([make_arm("lora", rank=2)])
    leaving, staying = fake_workers(pool)
    leaving.state = ActorState("ALIVE", 0, 1, "spot")
    leaving.silent, leaving.next_state = {"retire"}, "RESTARTING"
    spec = make_spec(tmp_path)
    pool.place(spec, exclusive=False)
    monkeypatch.setattr(fleet, "draining", lambda: {"spot"})
    for _ in range(2):
        ray.now += 3
        pool.rescale(1, 0)
    pool.decode_when_idle(decode_job(1))
    pool.use_idle()
    pool.decode([decode_job(1), decode_job(2)])
    assert "decode" not in [method for method, _ in leaving.asked]
    assert [method for method, _ in staying.asked].count("decode") == 2, "what was given early is not given again"
    assert spec.placed_on() == "worker-0" and leaving not in ray.killed
    next(later for method, later in leaving.asked if method == "retire").answer = [None]
    for _ in range(2):
        ray.now += 3
        pool.rescale(1, 0)
    assert leaving in ray.killed and spec.placed_on() == "worker-1", "it need not wait"


def test_a_worker_that_decodes_gets_no_trial_and_others_need_not_wait_for_it(tmp_path: Path, ray: FakeRay) -> None:
    pool = make_pool(tmp_path)
    pool.wait([make_arm("lora", rank=2), make_arm("finetune", top_layers=1, tune_embeddings=False)])
    slow, other = fake_workers(pool)
    slow.silent = {"decode"}
    pool.decode_when_idle(decode_job(1))
    pool.use_idle(may_begin=False)
    assert not [method for worker in (slow, other) for method, _ in worker.asked if method == "decode"]
    pool.use_idle()
    specs = [make_spec(tmp_path, number) for number in range(2)]
    for spec in specs:
        assert pool.has_room(exclusive=False)
        pool.place(spec, exclusive=False)
        assert spec.placed_on() == "worker-1"
    assert not pool.has_room(exclusive=True)
    for spec in specs:
        pool.release(spec.key, has_ended=True)
    told: list[str] = []

    def on_progress(text: str) -> None:
        told.append(text)
        if text.startswith("2 of 3"):
            next(later for method, later in slow.asked if method == "decode").answer = [None]

    pool.decode([decode_job(number) for number in range(3)], on_progress)
    assert [method for method, _ in other.asked].count("decode") == 2, told
    assert [method for method, _ in slow.asked].count("decode") == 1 and told[0].startswith("0 of 3")
