"""Which worker a trial is placed on, and when it moves to another."""

from pathlib import Path

import pytest
from support.fake_ray import FACTS, FakeRay, FakeWorker, fake_workers, make_arm, make_pool, make_spec

from prefixray.cluster.connect import Cluster
from prefixray.cluster.nodes import ActorState
from prefixray.cluster.pool import check_exclusive
from prefixray.errors import SweepFailed, UserError


def test_fine_tuning_that_cannot_fit_is_refused_with_what_it_needs() -> None:
    arms = [make_arm("lora", rank=2), make_arm("finetune")]
    with pytest.raises(UserError) as refused:
        check_exclusive(arms, FACTS, free=6 << 30)
    assert str(refused.value) == (
        "arms.my-finetune: fine-tuning needs 6.1 GiB beside the base (16 bytes for each parameter that is trained, 4 "
        "for each other), and a worker on NVIDIA A10G has 6.0 GiB free; remove the arm, train fewer top_layers, or "
        "take a smaller base or a larger device"
    )
    check_exclusive(arms, FACTS, free=7 << 30)
    check_exclusive(arms[:1], FACTS, free=1 << 30)


def test_fine_tuning_of_the_last_blocks_needs_less() -> None:
    arm = make_arm("finetune", top_layers=2, tune_embeddings=False)
    check_exclusive([arm], FACTS, free=2 << 30)
    with pytest.raises(UserError, match=r"needs 1\.\d GiB"):
        check_exclusive([arm], FACTS, free=1 << 30)


@pytest.mark.parametrize("ending", ["DEAD", "cannot load the base"])
def test_on_one_machine_the_trials_of_a_worker_that_is_over_go_on_with_the_other_and_another_is_started(
    tmp_path: Path, ray: FakeRay, ending: str
) -> None:
    pool = make_pool(tmp_path)
    pool.wait([make_arm("lora", rank=2)])
    spec = make_spec(tmp_path)
    pool.place(spec, exclusive=False)
    over, other = fake_workers(pool)
    over.refusal = None if ending == "DEAD" else SweepFailed("OutOfMemoryError: no room")
    over.die("DEAD" if ending == "DEAD" else None)
    for _ in range(3):
        ray.now += 3
        pool.rescale(1, 0)
    assert spec.placed_on() == "worker-1"
    inherited = next(given for method, given in other.given if method == "inherit")
    assert inherited == (str(tmp_path / "workers" / "worker-0.json"), ["lora/0"])
    assert [(worker.name, worker.is_ready) for worker in pool.workers] == [("worker-1", True), ("worker-2", True)]
    assert "worker-0 is given up, and another is started in its place" in pool.news()[0]


def test_a_worker_that_is_reserved_for_an_exclusive_trial_gets_no_others(tmp_path: Path, ray: FakeRay) -> None:
    pool = make_pool(tmp_path)
    pool.wait([make_arm("lora", rank=2), make_arm("finetune", top_layers=1, tune_embeddings=False)])
    specs = [make_spec(tmp_path, number) for number in range(4)]
    for spec in specs[:2]:
        pool.place(spec, exclusive=False)
    assert {spec.placed_on() for spec in specs[:2]} == {"worker-0", "worker-1"}
    pool.release("lora/1")
    pool.reserve(True)
    pool.reserve(True)
    for spec in specs[2:]:
        pool.place(spec, exclusive=False)
    assert {spec.placed_on() for spec in specs[2:]} == {specs[0].placed_on()}
    assert pool.has_room(exclusive=True)
    pool.reserve(False)
    last = make_spec(tmp_path, 4)
    pool.place(last, exclusive=False)
    assert last.placed_on() == specs[1].placed_on()


def test_an_exclusive_trial_waits_for_the_worker_that_is_started_in_place_of_one_that_is_over(
    tmp_path: Path, ray: FakeRay
) -> None:
    pool = make_pool(tmp_path, num_workers=1)
    pool.wait([make_arm("finetune", top_layers=2, tune_embeddings=False)])
    spec = make_spec(tmp_path)
    pool.place(spec, exclusive=True)
    fake_workers(pool)[0].die("DEAD")
    ray.to_come = [FakeWorker()]
    ray.to_come[0].free_bytes = 1 << 30  # the rest of the machine's memory is in use
    for _ in range(3):
        ray.now += 3
        pool.rescale(0, 1)
    assert spec.placed_on() == "worker-1" and not pool.has_room(exclusive=False)
    assert [worker.name for worker in pool.workers] == ["worker-1"]


def test_a_worker_that_is_started_again_keeps_its_trials_though_loading_takes_long(
    tmp_path: Path, ray: FakeRay
) -> None:
    pool = make_pool(tmp_path)
    pool.wait([make_arm("lora", rank=2)])
    spec = make_spec(tmp_path)
    pool.place(spec, exclusive=False)
    worker = fake_workers(pool)[0]
    worker.die("RESTARTING")
    worker.state = ActorState("RESTARTING", 1, 2, "node")
    for _ in range(60):
        ray.now += 10
        pool.rescale(1, 0)
    assert spec.placed_on() == "worker-0" and len(pool.workers) == 2
    worker.state = ActorState("ALIVE", 1, 2, "node")
    ray.now += 10
    pool.rescale(1, 0)
    assert pool.workers[0].is_ready


def test_a_trial_that_is_moved_leaves_the_worker_that_has_just_come_again(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(tmp_path, address="auto")
    pool.wait([make_arm("lora", rank=2)])
    spec = make_spec(tmp_path)
    pool.place(spec, exclusive=False)
    assert spec.placed_on() == "worker-0"
    lost = fake_workers(pool)[0]
    monkeypatch.setattr(Cluster, "devices", lambda cluster: {"node": 2})
    lost.die("RESTARTING")
    for _ in range(2):
        ray.now += 10
        pool.rescale(1, 0)
        assert spec.placed_on() == "worker-0", "it may come again in a moment"
    ray.now += 10
    pool.rescale(1, 0)
    assert spec.placed_on() == "worker-1"
    assert "leave" in [method for method, _ in lost.asked]


def test_room_is_kept_for_the_trials_of_a_worker_that_has_no_process(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cluster, "devices", lambda cluster: {"node": 2})
    pool = make_pool(tmp_path, address="auto")
    pool.wait([make_arm("lora", rank=2)])
    for worker in pool.workers:
        worker.num_slots = 2
    for number in range(3):
        pool.place(make_spec(tmp_path, number), exclusive=False)
    assert [len(worker.trials) for worker in pool.workers] == [2, 1] and pool.has_room(exclusive=False)
    lost = fake_workers(pool)[0]
    lost.die("RESTARTING")
    ray.now += 3
    pool.rescale(3, 0)
    assert not pool.has_room(exclusive=False), "two trials may have to move, and one slot is free"
    pool.release("lora/1")
    assert not pool.has_room(exclusive=False), "there is as much room as those two need"
    assert not pool.has_room(exclusive=True)
    lost.die("ALIVE")
    for _ in range(2):
        ray.now += 3
        pool.rescale(2, 0)
    assert pool.has_room(exclusive=False)
