"""What the workers of one sweep must have loaded alike: data, weights, tokens and the precision."""

from pathlib import Path

import pytest
from support.fake_ray import FakeRay, FakeWorker, fake_workers, make_arm, make_pool, rescale_later

from prefixray.cluster.connect import Cluster
from prefixray.cluster.fleet import NoWorkers
from prefixray.errors import UserError


def test_a_worker_that_reads_other_data_than_the_first_one_is_used_no_more(tmp_path: Path, ray: FakeRay) -> None:
    pool = make_pool(tmp_path)
    pool.wait([make_arm("lora", rank=2)])
    first, second = fake_workers(pool)
    second.data_digest = "another"  # a document was deleted before it was started again
    second.die()
    rescale_later(pool, ray, num_trials=2)
    assert [worker.name for worker in pool.workers] == ["worker-0"] and second in ray.killed
    (said,) = (line for line in pool.news() if "left alone" in line)
    assert (
        "task: e2e: is not what the sweep's first worker has read; undo the change, and run the same command again"
        in said
    )
    first.data_digest = "another"
    first.die()
    with pytest.raises(NoWorkers, match="is not what the sweep's first worker has read"):
        rescale_later(pool, ray, num_trials=2)


def test_a_folder_that_changes_while_the_first_workers_read_it_ends_the_sweep(tmp_path: Path, ray: FakeRay) -> None:
    ray.to_come = [FakeWorker(), FakeWorker()]
    ray.to_come[1].data_digest = "another"
    with pytest.raises(UserError, match="is not what the sweep's first worker has read"):
        make_pool(tmp_path).wait([make_arm("lora", rank=2)])


def test_a_worker_that_loads_other_weights_than_the_first_one_is_used_no_more(tmp_path: Path, ray: FakeRay) -> None:
    pool = make_pool(tmp_path, base=str(tmp_path))
    pool.wait([make_arm("lora", rank=2)])
    _, second = fake_workers(pool)
    second.base_digest = "another"  # the folder was written anew before it was started again
    second.die()
    rescale_later(pool, ray, num_trials=2)
    assert second in ray.killed and len(pool.workers) == 1
    (said,) = (line for line in pool.news() if "left alone" in line)
    assert f"base: {tmp_path}: has not the weights that the sweep's first worker has loaded; undo the" in said


def test_a_worker_whose_tokenizer_makes_other_rows_is_used_no_more_a_hubs_too(tmp_path: Path, ray: FakeRay) -> None:
    pool = make_pool(tmp_path, base="owner/name")
    pool.wait([make_arm("lora", rank=2)])
    _, second = fake_workers(pool)
    second.rows_digest = "another"  # the hub has another chat format since
    second.die()
    rescale_later(pool, ray, num_trials=2)
    assert second in ray.killed and len(pool.workers) == 1
    (said,) = (line for line in pool.news() if "left alone" in line)
    assert "base: owner/name: its tokenizer or its chat format makes other tokens of the data than that of the" in said


def test_workers_that_are_started_later_load_the_commit_of_the_first_one(tmp_path: Path, ray: FakeRay) -> None:
    ray.to_come = [FakeWorker(), FakeWorker()]
    for worker in ray.to_come:
        worker.base_digest = "a" * 40
    pool = make_pool(tmp_path, base="owner/name")
    assert pool._setup.commit is None
    pool.wait([make_arm("lora", rank=2)])
    assert pool._setup.commit == "a" * 40


def test_workers_take_the_precision_of_the_first_one_or_are_refused(
    tmp_path: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cluster, "devices", lambda cluster: {"node": 1, "old": 1, "new": 1})
    old = FakeWorker("old")
    old.precision = "fp32"
    ray.to_come = [FakeWorker(), old]
    ray.to_come[0].precision = "bf16"
    pool = make_pool(tmp_path, address="auto")
    pool.wait([make_arm("lora", rank=2)])
    later = FakeWorker("new")
    later.precision = "bf16"
    ray.to_come = [later]
    rescale_later(pool, ray, num_trials=3)
    assert fake_workers(pool)[1:] == [later] and old in ray.killed
    assert ray.precisions == ["auto", "auto", "bf16"]
    (said,) = (line for line in pool.news() if "left alone" in line)
    assert "train.precision: auto is fp32 on this device, and bf16 on the one of the first worker; name one of" in said
