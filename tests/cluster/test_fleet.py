"""How many workers the fleet wants, which devices it leaves alone, and what it does while workers die or hang."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_ray import (
    DIED,
    HUNG,
    FakeRay,
    FakeWorker,
    crashing,
    decode_job,
    died,
    fake_workers,
    hanging,
    lacking_the_base,
    make_arm,
    make_pool,
    make_spec,
    rescale_later,
)

from prefixray.cluster.connect import Cluster
from prefixray.cluster.fleet import NoWorkers, workers_wanted
from prefixray.cluster.nodes import ActorState
from prefixray.cluster.quarantine import Quarantine
from prefixray.cluster.worker_handle import LOADING_SECONDS, MOST_LOADS
from prefixray.errors import SweepFailed, UserError


@pytest.mark.parametrize(
    ("num_trials", "num_full", "num_devices", "most", "wanted"),
    [
        (16, 1, 0, 8, 1),  # a pack holds them all: one machine is asked for
        (16, 4, 0, 8, 4),  # four at a time
        (16, 1, 3, 8, 3),  # what is there is used
        (2, 1, 3, 8, 2),  # but no more than there are trials
        (64, 16, 0, 8, 8),  # and the cluster has its bounds
        (0, 0, 5, 8, 1),  # one stays, for what comes next
    ],
)
def test_devices_that_are_there_are_used_and_more_are_asked_for_only_when_packs_are_full(
    num_trials: int, num_full: int, num_devices: int, most: int, wanted: int
) -> None:
    assert workers_wanted(num_trials, num_full, num_devices=num_devices, most=most) == wanted


@pytest.mark.parametrize(
    ("make", "kind", "told"),
    [
        (crashing, SweepFailed, f"worker-1 cannot be used: {DIED}"),
        (hanging, SweepFailed, f"worker-1 cannot be used: {HUNG}"),
        (lacking_the_base, UserError, "base: /nfs/base: no such folder"),
    ],
)
def test_on_one_machine_a_worker_that_cannot_load_the_base_ends_the_sweep_with_a_sentence(
    tmp_path: Path, ray: FakeRay, make: Callable[[], FakeWorker], kind: type[UserError], told: str
) -> None:
    ray.to_come = [FakeWorker(), make()]
    with pytest.raises(kind) as refused:
        make_pool(tmp_path).wait([make_arm("lora", rank=2)])
    assert type(refused.value) is kind and str(refused.value) == told


@pytest.mark.parametrize("make", [crashing, hanging, lacking_the_base])
def test_on_a_cluster_such_a_device_is_left_alone_and_the_others_go_on(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch, make: Callable[[], FakeWorker]
) -> None:
    monkeypatch.setattr(Cluster, "devices", lambda cluster: {"node": 2})
    lacking = make()
    ray.to_come = [lacking]
    pool = make_pool(tmp_path, address="auto")
    pool.wait([make_arm("lora", rank=2)])
    ray.now += LOADING_SECONDS + 1
    for _ in range(3):
        ray.now += 10
        pool.rescale(4, 0)
    assert [worker.name for worker in pool.workers] == ["worker-1"] and lacking in ray.killed
    (said,) = pool.news()
    assert said.startswith("worker-0 cannot be used, and its device is left alone: ")
    assert pool.most_workers == 1


def test_a_machine_whose_devices_are_all_refused_is_kept_from_ray_until_it_has_gone(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {"bad": 2, "good": 2}
    monkeypatch.setattr(Cluster, "devices", lambda cluster: here)
    ray.to_come = [lacking_the_base("bad"), FakeWorker("good"), FakeWorker("good")]
    pool = make_pool(tmp_path, num_workers=3, address="auto")
    pool.wait([make_arm("lora", rank=2)])
    ray.to_come = [lacking_the_base("bad")]
    rescale_later(pool, ray, num_trials=12)  # the other device may do
    assert ray.shunned == [[]] * 4 and pool.most_workers == 2
    fake_workers(pool)[0].die("DEAD")
    rescale_later(pool, ray, num_trials=12)
    assert ray.shunned[4:] == [["bad"]] and len(pool.workers) == 2
    del here["bad"]
    here["new"] = 2
    rescale_later(pool, ray, num_trials=12)  # and the sweep may have as many workers as before
    assert pool.most_workers == 4 and ray.shunned[5:] == [[], []]


def test_a_device_that_refuses_several_workers_in_turn_is_one(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cluster, "devices", lambda cluster: {"bad": 1, "good": 2})
    ray.to_come = [lacking_the_base("bad"), lacking_the_base("bad"), FakeWorker("good")]
    pool = make_pool(tmp_path, num_workers=3, address="auto")
    pool.wait([make_arm("lora", rank=2)])
    rescale_later(pool, ray, num_trials=12)
    assert len(fake_workers(pool)) == 2 == pool.most_workers


def test_on_a_cluster_that_has_the_base_nowhere_the_sweep_ends_with_the_reason(tmp_path: Path, ray: FakeRay) -> None:
    ray.to_come = [lacking_the_base(), lacking_the_base()]
    with pytest.raises(UserError, match=r"^base: /nfs/base: no such folder$"):
        make_pool(tmp_path, address="auto").wait([make_arm("lora", rank=2)])


@pytest.mark.parametrize("address", ["local", "auto"])
def test_where_no_worker_can_be_had_any_more_the_sweep_ends_with_the_reasons(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(Cluster, "devices", lambda cluster: {"node": 2})
    pool = make_pool(tmp_path, address=address)
    pool.wait([make_arm("lora", rank=2)])
    pool.place(make_spec(tmp_path), exclusive=False)
    ray.to_come = [lacking_the_base() for _ in range(4)]
    for worker in fake_workers(pool):
        worker.refusal = UserError("base: /nfs/base: no such folder")
        worker.die()
    with pytest.raises(NoWorkers, match=r"^no worker is left\nbase: /nfs/base: no such folder\n"):
        for _ in range(10):
            ray.now += 10
            pool.rescale(1, 0)


def test_on_one_machine_a_worker_that_comes_again_while_others_train_has_the_room_it_had(
    tmp_path: Path, ray: FakeRay
) -> None:
    pool = make_pool(tmp_path)
    pool.wait([make_arm("lora", rank=2), make_arm("finetune", top_layers=2, tune_embeddings=False)])
    slots = [worker.num_slots for worker in pool.workers]
    for worker in fake_workers(pool):
        worker.free_bytes = 1 << 30  # the rest of the machine's memory is in use by the other worker's trial
        worker.die()
    ray.now += 10
    pool.rescale(1, 1)
    assert pool.has_room(exclusive=True) and [worker.num_slots for worker in pool.workers] == slots


def test_workers_that_are_lost_before_the_first_trial_are_replaced(tmp_path: Path, ray: FakeRay) -> None:
    class Doomed(FakeWorker):
        def _answer(self, method: str, given: tuple[Any, ...]) -> Any:  # noqa: ANN401
            if method == "check":
                self.die("DEAD")
                return died()
            return super()._answer(method, given)

    ray.to_come = [Doomed(), Doomed()]
    pool = make_pool(tmp_path, num_workers=1)
    pool.wait([make_arm("lora", rank=2)])
    assert [worker.name for worker in pool.workers] == ["worker-2"] and pool.num_slots > 1
    assert pool.news() == [
        f"{name} is given up, and another is started in its place: it is dead for good; the end of sweep.log says more"
        for name in ("worker-0", "worker-1")
    ]


@pytest.mark.parametrize("method", ["status", "decode"])
def test_a_worker_that_hangs_is_killed_also_before_its_first_sign_and_in_an_early_decoding(
    tmp_path: Path, ray: FakeRay, method: str
) -> None:
    pool = make_pool(tmp_path, num_workers=1)
    pool.wait([make_arm("lora", rank=2)])
    (worker,) = fake_workers(pool)
    worker.silent = {"status", method}
    if method == "decode":
        pool.decode_when_idle(decode_job(1))
        pool.use_idle()
        pool.decode([decode_job(1)])
    else:
        for _ in range(1000):
            pool.status(timeout=1.0)
    assert worker in ray.killed


def test_a_worker_that_comes_again_after_an_early_decoding_is_kept_until_its_job_is_seen(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cluster, "devices", lambda cluster: {"node": 2})
    pool = make_pool(tmp_path, address="auto")
    pool.wait([make_arm("lora", rank=2)])
    spec = make_spec(tmp_path)
    pool.place(spec, exclusive=False)
    decoding = fake_workers(pool)[1]
    decoding.silent = {"decode"}
    pool.decode_when_idle(decode_job(1))
    pool.use_idle()
    assert "decode" in [method for method, _ in decoding.asked]
    decoding.silent, decoding.next_state = {"ready"}, "RESTARTING"
    decoding.die()
    rescale_later(pool, ray, num_trials=1)
    assert decoding not in ray.killed
    pool.release(spec.key, has_ended=True)
    pool.decode([decode_job(1)])


@pytest.mark.parametrize("has_loaded", [True, False])
def test_a_worker_that_a_trial_kills_before_the_driver_looks_is_kept_and_one_that_cannot_load_is_not(
    tmp_path: Path, ray: FakeRay, has_loaded: bool
) -> None:
    pool = make_pool(tmp_path, num_workers=1)
    pool.wait([make_arm("lora", rank=2)])
    (handle,) = pool.workers
    (worker,) = fake_workers(pool)
    for _ in range(MOST_LOADS + 1):
        if has_loaded:
            Quarantine(handle.record, max_failures=9)
        worker.die()
        worker.silent.add("ready")
        rescale_later(pool, ray, num_trials=1)
    assert (pool.workers == [handle]) is has_loaded


def test_devices_are_held_from_the_first_process_on_and_not_while_one_is_awaited(tmp_path: Path, ray: FakeRay) -> None:
    ray.to_come = [hanging()]
    (worker,) = ray.to_come
    worker.state = ActorState("PENDING_CREATION", 0, 0, "")
    pool = make_pool(tmp_path, num_workers=1)
    for state, pid in (("PENDING_CREATION", 0), ("PENDING_CREATION", 1), ("ALIVE", 1)):
        worker.state = ActorState(state, 0, pid, "node")
        for _ in range(10):
            ray.now += 10
            pool.rescale(1, 0)
    assert pool.device_seconds == pytest.approx(200, abs=10)
    ray.now += 500
    assert pool.device_seconds == pytest.approx(700, abs=10), "whether anybody has looked since or not"


def test_while_there_is_no_device_a_line_a_minute_says_so_and_a_setting_ends_the_wait(
    tmp_path: Path, ray: FakeRay, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = FakeWorker()
    waiting.state = ActorState("PENDING_CREATION", 0, 0, "")
    ray.to_come = [waiting]
    pool = make_pool(tmp_path, num_workers=1, address="auto", max_wait_hours=0.1)
    with pytest.raises(NoWorkers, match=r"^no machine came in 0\.1 hours \(search\.max_wait_hours\)$"):
        pool.wait([make_arm("lora", rank=2)])
    assert caplog.messages == ["waiting for a machine: 0 of 1"] * 5
    waiting.state = ActorState("ALIVE", 0, 1, "node")
    caplog.clear()
    pool.wait([make_arm("lora", rank=2)])
    assert not caplog.messages and pool.workers[0].is_ready


@pytest.mark.parametrize("num_deaths", [2, 3])
def test_a_worker_that_dies_while_it_checks_the_arms_is_asked_again_and_then_said_in_a_line(
    tmp_path: Path, ray: FakeRay, caplog: pytest.LogCaptureFixture, num_deaths: int
) -> None:
    pool = make_pool(tmp_path)
    fake_workers(pool)[0].num_deaths["check"] = num_deaths
    if num_deaths == 2:
        pool.wait([make_arm("lora", rank=2)])
    else:
        with pytest.raises(SweepFailed, match=r"^worker-0 died while it checked .*, 3 times; the end of"):
            pool.wait([make_arm("lora", rank=2)])
    assert [line for line in caplog.messages if "asked again" in line] == [
        "worker-0 died while it checked that the arms' trials can be built; it is asked again"
    ] * 2
