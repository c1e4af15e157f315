"""Which worker a trial is placed on, and when it moves to another."""

from pathlib import Path

import pytest
from support.fake_ray import FakeRay, FakeWorker, fake_workers, make_arm, make_pool, make_spec

from prefixray.cluster.connect import Cluster
from prefixray.cluster.nodes import ActorState
from prefixray.cluster.pool import Pool
from prefixray.errors import SweepFailed


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


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_worker_that_becomes_silent_between_two_calls_gets_the_trial_that_had_room_there(
    tmp_path: Path, ray: FakeRay, exclusive: bool
) -> None:
    pool = make_pool(tmp_path, num_workers=1)
    pool.wait([make_arm("finetune", top_layers=2, tune_embeddings=False)])
    assert pool.has_room(exclusive=exclusive)
    pool.workers[0].note_failed_call()  # by the driver's loop, which asks for its status
    assert not pool.has_room(exclusive=exclusive)
    pool.place(make_spec(tmp_path), exclusive=exclusive)
    assert make_spec(tmp_path).placed_on() == "worker-0"


def test_a_worker_that_is_reserved_for_an_exclusive_trial_gets_no_others(tmp_path: Path, ray: FakeRay) -> None:
    pool = make_pool(tmp_path)
    pool.wait([make_arm("lora", rank=2), make_arm("finetune", top_layers=1, tune_embeddings=False)])
    specs = [make_spec(tmp_path, number) for number in range(4)]
    for spec in specs[:2]:
        pool.place(spec, exclusive=False)
    assert {spec.placed_on() for spec in specs[:2]} == {"worker-0", "worker-1"}
    pool.release("lora/1", has_ended=True)
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
    pool.release("lora/1", has_ended=True)
    assert not pool.has_room(exclusive=False), "there is as much room as those two need"
    assert not pool.has_room(exclusive=True)
    lost.die("ALIVE")
    for _ in range(2):
        ray.now += 3
        pool.rescale(2, 0)
    assert pool.has_room(exclusive=False)


@pytest.fixture
def unequal(tmp_path: Path, ray: FakeRay) -> tuple[Pool, FakeWorker]:
    """Four trials, three of them on the first worker, which does not say yet whether it hands one over."""
    pool = make_pool(tmp_path)
    pool.wait([make_arm("lora", rank=2)])
    for number in range(6):
        pool.place(make_spec(tmp_path, number), exclusive=False)
    for number in (1, 3):
        pool.release(f"lora/{number}", has_ended=True)
    source, target = fake_workers(pool)
    source.steps, target.steps = {"lora/0": 5, "lora/2": 3, "lora/4": 4}, {"lora/5": 1}
    source.silent = {"hand_over"}
    pool.status(timeout=1.0)
    return pool, source


def test_a_trial_of_the_fullest_worker_goes_on_on_one_that_has_two_fewer(unequal: tuple[Pool, FakeWorker]) -> None:
    pool, source = unequal
    pool.use_idle(may_begin=False)
    assert "hand_over" not in dict(source.given), "a trial could start there"
    pool.use_idle()
    spec, target = dict(source.given)["hand_over"]
    assert (spec.key, target) == ("lora/2", "worker-1"), "the one with the most steps left"
    pool.use_idle()
    assert [method for method, _ in source.given].count("hand_over") == 1, "one at a time"
    assert [set(worker.trials) for worker in pool.workers] == [{"lora/0", "lora/2", "lora/4"}, {"lora/2", "lora/5"}]
    spec.place_on("worker-1")
    dict(source.asked)["hand_over"].answer = [True]
    for _ in range(2):
        pool.use_idle()
        assert [set(worker.trials) for worker in pool.workers] == [{"lora/0", "lora/4"}, {"lora/2", "lora/5"}]
    assert [method for method, _ in source.given].count("hand_over") == 1, "they have as many now"


def test_a_trial_that_could_not_be_handed_over_is_asked_for_again_once_a_trial_has_left(
    unequal: tuple[Pool, FakeWorker],
) -> None:
    pool, source = unequal

    def asked_for() -> list[str]:
        return [given[0].key for method, given in source.given if method == "hand_over"]

    for number in range(1, 5):
        pool.use_idle()
        assert len(asked_for()) == min(number, 3)
        for method, later in source.asked:
            later.answer = [False] if method == "hand_over" else later.answer
        pool.use_idle()
        assert [set(worker.trials) for worker in pool.workers] == [{"lora/0", "lora/2", "lora/4"}, {"lora/5"}]
    assert asked_for() == ["lora/2", "lora/4", "lora/0"]
    pool.release("lora/5", has_ended=True)
    pool.use_idle()
    assert asked_for()[3:] == ["lora/2"]


def test_none_moves_to_a_worker_whose_own_wait_or_that_an_exclusive_trial_waits_for_nor_one_that_owes_a_report(
    unequal: tuple[Pool, FakeWorker], ray: FakeRay
) -> None:
    pool, source = unequal
    target = fake_workers(pool)[1]
    target.steps = {}
    pool.status(timeout=1.0)
    pool.use_idle()
    target.steps = {"lora/5": 1}
    pool.status(timeout=1.0)
    ray.now += 3
    pool.rescale(4, 1)
    pool.use_idle()
    ray.now += 3
    pool.rescale(4, 0)
    source.steps = {"lora/0": 10, "lora/2": 10, "lora/4": 10}
    pool.status(timeout=1.0)
    pool.use_idle()
    assert "hand_over" not in dict(source.given)
    source.steps = {"lora/0": 9, "lora/2": 10, "lora/4": 10}
    pool.status(timeout=1.0)
    pool.use_idle()
    assert dict(source.given)["hand_over"][0].key == "lora/0"


def test_a_trial_that_ends_while_it_is_handed_over_has_no_slot_any_more(unequal: tuple[Pool, FakeWorker]) -> None:
    pool, source = unequal
    pool.use_idle()
    pool.release("lora/2", has_ended=True)
    assert [set(worker.trials) for worker in pool.workers] == [{"lora/0", "lora/4"}, {"lora/5"}]
    assert all("leave" in dict(worker.given) for worker in fake_workers(pool))
    dict(source.asked)["hand_over"].answer = [False]
    pool.use_idle()
    assert [set(worker.trials) for worker in pool.workers] == [{"lora/0", "lora/4"}, {"lora/5"}]


@pytest.mark.parametrize("has_written", [False, True])
def test_where_the_worker_dies_that_hands_a_trial_over_the_folder_says_who_has_it(
    unequal: tuple[Pool, FakeWorker], ray: FakeRay, has_written: bool
) -> None:
    pool, source = unequal
    pool.use_idle()
    spec, _ = dict(source.given)["hand_over"]
    if has_written:
        spec.place_on("worker-1")
    source.die("RESTARTING")
    for _ in range(2):  # it is asked again, as it might only have been out of reach
        pool.use_idle(may_begin=False)
    assert [spec.key in worker.trials for worker in pool.workers] == [not has_written, has_written]


def test_a_trial_that_is_handed_over_moves_nowhere_else_meanwhile(
    unequal: tuple[Pool, FakeWorker], ray: FakeRay
) -> None:
    pool, source = unequal
    pool.use_idle()
    target = fake_workers(pool)[1]
    target.die("DEAD")
    for _ in range(3):
        ray.now += 3
        pool.rescale(4, 0)
    spec, _ = dict(source.given)["hand_over"]
    assert spec.placed_on() == "worker-0"
    spec.place_on("worker-1")
    dict(source.asked)["hand_over"].answer = [True]
    pool.use_idle(may_begin=False)
    for _ in range(3):
        ray.now += 3
        pool.rescale(4, 0)
    (holder,) = [worker for worker in pool.workers if spec.key in worker.trials]
    assert spec.placed_on() == holder.name != "worker-1"
