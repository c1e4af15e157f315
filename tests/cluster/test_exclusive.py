"""Fine-tuning, whose trials take a whole worker: which devices are large enough, and the wait for one."""

from pathlib import Path

import pytest
from support.fake_ray import FACTS, FakeRay, FakeWorker, fake_workers, make_arm, make_pool, make_spec

from prefixray.cluster import exclusive, fleet
from prefixray.cluster.connect import Cluster
from prefixray.cluster.exclusive import check_exclusive
from prefixray.cluster.fleet import NoWorkers
from prefixray.cluster.nodes import ActorState
from prefixray.errors import UserError


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


def test_fine_tuning_for_which_the_machines_that_came_are_too_small_is_told_and_not_waited_for_for_ever(
    tmp_path: Path, ray: FakeRay, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cluster, "devices", lambda cluster: {"node": 1})
    pool = make_pool(tmp_path, num_workers=1, address="auto", max_wait_hours=0.1)
    pool.wait([make_arm("finetune", top_layers=2, tune_embeddings=False)])
    (worker,) = fake_workers(pool)
    worker.free_bytes = 1 << 30  # a smaller machine has come for one that was lost
    worker.die()
    pool.rescale(1, 1)
    pool.place(make_spec(tmp_path), exclusive=False)
    for _ in range(60):
        ray.now += 10
        pool.rescale(1, 1)  # it has something to train meanwhile
    pool.release("lora/0", has_ended=True)
    too_small = r"^no machine with 1\.\d GiB free for fine-tuning came in 0\.1 hours \(search\.max_wait_hours\)$"
    with pytest.raises(NoWorkers, match=too_small):
        for _ in range(60):
            ray.now += 10
            pool.rescale(0, 1)
    assert len([line for line in caplog.messages if line.startswith("waiting for a machine with 1")]) == 6
    assert not pool.has_room(exclusive=True)


def test_fine_tuning_too_large_for_the_first_device_of_a_cluster_waits_for_a_larger_one(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cluster, "devices", lambda cluster: {"node": 1, "large": 1})
    small, large = FakeWorker(), FakeWorker("large")
    small.free_bytes = 1 << 30
    large.silent.add("ready")  # it still loads the base
    ray.to_come = [small, large]
    pool = make_pool(tmp_path, address="auto")
    pool.wait([make_arm("finetune", top_layers=2, tune_embeddings=False)])
    (said,) = pool.news()
    assert said.startswith("fine-tuning waits for a larger device than the first one (search.max_wait_hours): arms.my-")
    for _ in range(12):
        ray.now += 10
        pool.rescale(0, 1)
    assert fake_workers(pool) == [small, large] and not pool.has_room(exclusive=True)
    large.asked.clear()
    large.die()
    for _ in range(12):
        ray.now += 10
        pool.rescale(0, 1)
    assert fake_workers(pool) == [large] and pool.has_room(exclusive=True)
    with pytest.raises(UserError, match=r"^arms\.my-finetune: fine-tuning needs 1\.\d GiB beside the base"):
        ray.to_come = [lacking_memory(), lacking_memory()]
        make_pool(tmp_path / "one").wait([make_arm("finetune", top_layers=2, tune_embeddings=False)])


def test_fine_tuning_for_which_no_device_of_a_cluster_is_large_enough_is_refused_before_anything_is_trained(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = [make_arm("finetune", top_layers=2, tune_embeddings=False)]
    monkeypatch.setattr(Cluster, "devices", lambda cluster: {"node": 1, "other": 1})

    def wait(folder: str, other: FakeWorker) -> list[str]:
        """The other worker's process begins half a minute after the first one's."""
        begins, other.state = ray.now + 30, ActorState("PENDING_CREATION", 0, 0, "")

        def sleep(seconds: float) -> None:
            ray.now += seconds
            other.state = ActorState("ALIVE", 0, 1, "other") if ray.now > begins else other.state

        monkeypatch.setattr(fleet.time, "sleep", sleep)
        ray.to_come = [lacking_memory(), other]
        pool = make_pool(tmp_path / folder, address="auto")
        pool.wait(arms)
        return pool.news()

    assert wait("large", FakeWorker()) == [] and ray.now > 30
    with pytest.raises(UserError, match=r"^arms\.my-finetune: fine-tuning needs 1\.\d GiB beside the base"):
        wait("small", lacking_memory())
    monkeypatch.setattr(exclusive, "may_be_larger", lambda: False)
    began = ray.now
    with pytest.raises(UserError, match=r"^arms\.my-finetune: fine-tuning needs 1\.\d GiB beside the base"):
        wait("one kind", lacking_memory())
    assert ray.now < began + 30, "the machines that may come are as small"


def lacking_memory() -> FakeWorker:
    worker = FakeWorker()
    worker.free_bytes = 1 << 30
    return worker
