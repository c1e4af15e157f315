"""On one machine, workers that have nothing to do lend their threads to those that train."""

from pathlib import Path

from support.fake_ray import FakeRay, FakeWorker, decode_job, fake_workers, make_arm, make_pool, make_spec

from prefixray.cluster.pool import Pool


def test_the_workers_that_train_share_the_threads_of_those_that_do_nothing(tmp_path: Path, ray: FakeRay) -> None:
    pool = _pool(tmp_path, num_workers=4)
    pool.use_idle()
    assert _told(pool) == [[], [], [], []], "nobody trains"
    for number in range(3):
        pool.place(make_spec(tmp_path, number), exclusive=False)
    pool.use_idle(may_begin=False)
    assert _told(pool) == [[], [], [], []], "the next trial begins in a moment"
    pool.use_idle()
    pool.use_idle()
    assert _told(pool) == [[1], [], [], []], "one thread, told once"
    pool.release("lora/1")
    pool.use_idle()
    assert _told(pool) == [[1], [], [1], []]
    pool.release("lora/2")
    pool.use_idle()
    assert _told(pool) == [[1, 3], [], [1, 0], []]


def test_a_worker_takes_its_threads_back_when_it_has_something_to_do(tmp_path: Path, ray: FakeRay) -> None:
    pool = _pool(tmp_path)
    pool.place(make_spec(tmp_path, 0), exclusive=False)
    pool.use_idle()
    pool.decode_when_idle(decode_job(0))
    _, second = fake_workers(pool)
    second.silent = {"decode"}
    pool.use_idle()
    assert _told(pool) == [[1, 0], []]


def test_a_process_that_is_started_anew_has_its_own_threads_until_it_is_told(tmp_path: Path, ray: FakeRay) -> None:
    pool = _pool(tmp_path)
    pool.place(make_spec(tmp_path, 0), exclusive=False)
    pool.use_idle()
    first, _ = fake_workers(pool)
    first.die()
    ray.now += 10
    pool.rescale(1, 0)
    ray.now += 10
    pool.rescale(1, 0)
    pool.use_idle()
    assert _told(pool) == [[1, 1], []]


def test_no_thread_is_lent_to_another_machine(tmp_path: Path, ray: FakeRay) -> None:
    ray.to_come = [FakeWorker("one"), FakeWorker("other")]
    pool = _pool(tmp_path)
    assert {worker.state.node for worker in fake_workers(pool)} == {"one", "other"}
    pool.place(make_spec(tmp_path, 0), exclusive=False)
    pool.use_idle()
    assert _told(pool) == [[], []]


def _pool(folder: Path, *, num_workers: int = 2) -> Pool:
    pool = make_pool(folder, num_workers=num_workers)
    pool.wait([make_arm("lora", rank=2)])
    return pool


def _told(pool: Pool) -> list[list[int]]:
    """How many threads each worker was told to borrow, one after the other."""
    return [[given[0] for method, given in w.given if method == "borrow_threads"] for w in fake_workers(pool)]
