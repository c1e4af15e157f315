"""How many workers the pool wants, what it refuses, and what it does while workers die or hang: Ray is played here."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayTaskError

from prefixray.batching.lengths import Lengths
from prefixray.cluster import pool
from prefixray.cluster import worker_handle as places
from prefixray.cluster.connect import Cluster
from prefixray.cluster.nodes import ActorState
from prefixray.cluster.pool import MOST_DEATHS, DecodeJob, NoWorkers, Pool, check_exclusive, workers_wanted
from prefixray.cluster.worker import WorkerSetup
from prefixray.cluster.worker_handle import LOADING_SECONDS, MOST_LOADS, Life, State, WorkerHandle
from prefixray.config.schema import ArmConfig
from prefixray.config.trials import LoraTrial, TrainConfig, TrialConfig
from prefixray.data.task_config import TaskConfig
from prefixray.errors import SweepFailed, UserError
from prefixray.model.shape import Shape, SiteShape
from prefixray.training.facts import WorkerFacts
from prefixray.trial import TrialSpec, WorkerStatus

SITE = SiteShape(num_layers=12, num_kv_heads=16, head_dim=64)
SHAPE = Shape(
    is_encoder_decoder=True,
    sites={"encoder": SITE, "decoder": SITE, "cross": SITE},
    hidden_size=1024,
    ffn_size=4096,
    vocab_size=50_265,
    num_parameters=406_291_456,
    max_positions=1024,
)
FACTS = WorkerFacts(
    base_digest="0",
    num_parameters=406_291_456,
    precision="fp32",
    data_digest="0",
    num_test_total=2,
    metrics=("bleu",),
    device="NVIDIA A10G",
    num_threads=1,
    shape=SHAPE,
    free_bytes=0,
    num_dev=2,
    num_test=2,
    train_lengths=Lengths(8, 4, 4),
    dev_lengths=Lengths(8, 4, 4),
)


def _arm(method: str, **fixed: Any) -> ArmConfig:  # noqa: ANN401
    given = {"learning_rate": 1e-4, **fixed}
    train = TrainConfig(num_steps=1)
    return ArmConfig(name=f"my-{method}", method=method, fixed=given, dimensions={}, num_trials=1, train=train)  # type: ignore[arg-type]


def test_fine_tuning_that_cannot_fit_is_refused_with_what_it_needs() -> None:
    arms = [_arm("lora", rank=2), _arm("finetune")]
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
    arm = _arm("finetune", top_layers=2, tune_embeddings=False)
    check_exclusive([arm], FACTS, free=2 << 30)
    with pytest.raises(UserError, match=r"needs 1\.\d GiB"):
        check_exclusive([arm], FACTS, free=1 << 30)


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


class Later:
    """What Ray answers with: nothing yet, a value, or an error."""

    def __init__(self, *answer: Any) -> None:  # noqa: ANN401
        self.answer = list(answer)


class PlayedRay:
    """The pool's Ray: answers are there at once or never, and time passes where the pool waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.killed: list[PlayedWorker] = []
        self.to_come: list[PlayedWorker] = []  # the workers that are started next; then others without a fault
        self.shunned: list[list[str]] = []  # the nodes on which none shall be started, by worker

    def wait(
        self, answers: Sequence[Later], *, num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list[Later], list[Later]]:
        done = [answer for answer in answers if answer.answer]
        if len(done) < num_returns:
            assert timeout is not None, "it would wait for ever"
            self.now += timeout
        return done, [answer for answer in answers if not answer.answer]

    def get(self, answer: Later, timeout: float | None = None) -> Any:  # noqa: ANN401
        if not answer.answer:
            assert timeout is not None, "it would wait for ever"
            self.now += timeout
            raise GetTimeoutError
        if isinstance(answer.answer[0], Exception):
            raise answer.answer[0]
        return answer.answer[0]

    def kill(self, worker: "PlayedWorker", no_restart: bool = True) -> None:
        self.killed.append(worker)
        worker.die("DEAD" if no_restart else worker.next_state)


class PlayedWorker:
    """A worker actor as the pool sees it: what it is asked it answers at once, or never while it is silent."""

    free_bytes = 8 << 30
    next_state = "ALIVE"  # after a death

    def __init__(self, node: str = "node") -> None:
        self.sight = ActorState("ALIVE", 0, 1, node)
        self.refusal: UserError | None = None  # what keeps it from loading the base
        self.asked: list[tuple[str, Later]] = []
        self.given: list[tuple[str, tuple[Any, ...]]] = []
        self.silent: set[str] = set()
        self.num_deaths: dict[str, int] = {}  # that it dies of a decoding, by folder

    def die(self, state: str | None = None) -> None:
        """End, and come again at once unless another state is said; what it was asked and had not answered fails."""
        state = state or self.next_state
        self.sight = ActorState(state, self.sight.num_restarts + 1, self.sight.pid + (state == "ALIVE"), "node")
        self.silent = set()
        for _, later in self.asked:
            later.answer = later.answer or [_died()]

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *given: self._ask(method, given))

    def _ask(self, method: str, given: tuple[Any, ...]) -> Later:
        later = Later() if method in self.silent else Later(self._answer(method, given))
        self.asked.append((method, later))
        self.given.append((method, given))
        return later

    def _answer(self, method: str, given: tuple[Any, ...]) -> Any:  # noqa: ANN401
        match method:
            case "ready" if self.refusal is not None:
                return RayTaskError("ready", "a traceback", self.refusal)
            case "ready":
                return replace(FACTS, device="cpu", free_bytes=self.free_bytes)
            case "status":
                return WorkerStatus({}, 0.0, 0)
            case "decode" if self.num_deaths.get(given[1], 0):
                self.num_deaths[given[1]] -= 1
                return _died()
            case _:
                return None


def _died() -> ActorUnavailableError:
    return ActorUnavailableError("the actor is restarting", None)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> PlayedRay:
    """Ray as far as the pool needs it; its workers are `PlayedWorker`s."""
    played = PlayedRay()

    def start(name: str, cluster: Cluster, setup: WorkerSetup, record: Path, shunned: Sequence[str]) -> WorkerHandle:
        played.shunned.append(list(shunned))
        worker = played.to_come.pop(0) if played.to_come else PlayedWorker()
        life = Life(State.STARTING, played.now)
        return WorkerHandle(name, record, worker, life, busy_at=played.now)  # type: ignore[arg-type]

    def sleep(seconds: float) -> None:
        played.now += seconds
        assert played.now < 36_000, "it would wait for ever"

    for module in (pool, places):
        monkeypatch.setattr(module, "ray", played)
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: played.now))
    monkeypatch.setattr(places, "actor_state_of", lambda worker: worker.sight)
    monkeypatch.setattr(pool, "draining", lambda: set())
    monkeypatch.setattr(pool, "start_worker", start)
    return played


def _pool(folder: Path, *, num_workers: int = 2, address: str = "local") -> Pool:
    cluster = Cluster(address, "prefixray-1", "cpu", 2, 0, num_workers, num_workers, 1, {"trial": 1.0})
    setup = WorkerSetup("base", TaskConfig(name="e2e"), TrainConfig(num_steps=1), "cpu", 1, log="sweep.log")
    return Pool(cluster, setup, folder / "workers")


def _workers(pool: Pool) -> list[PlayedWorker]:
    return [place.handle for place in pool._places]  # type: ignore[misc]


def _tend(workers: Pool, played: PlayedRay, *, num_trials: int) -> None:
    for _ in range(4):
        played.now += 10
        workers.rescale(num_trials, 0)


def _job(number: int) -> DecodeJob:
    return None, f"final/{number}", "test", {}


def _spec(folder: Path, number: int = 0) -> TrialSpec:
    config = TrialConfig(arm="lora", learning_rate=1e-3, num_steps=10, method=LoraTrial(rank=2))
    return TrialSpec(f"lora/{number}", config, 1, 0, (), str(folder / f"trial-{number}"))


def _lacking_the_base(node: str = "node") -> PlayedWorker:
    worker = PlayedWorker(node)
    worker.refusal = UserError("base: /nfs/base: no such folder")
    return worker


def _crashing() -> PlayedWorker:
    """A worker whose processes have all died while they loaded the base."""
    worker = PlayedWorker()
    worker.sight = ActorState("RESTARTING", MOST_LOADS, 1, "node")
    return worker


def _hanging() -> PlayedWorker:
    """A worker whose process does not come to an end with loading."""
    worker = PlayedWorker()
    worker.sight = ActorState("PENDING_CREATION", 0, 1, "node")
    return worker


DIED = f"it died {MOST_LOADS} times while it loaded the base; the end of sweep.log says more"
HUNG = f"it was not ready after {LOADING_SECONDS / 60:.0f} minutes; the end of sweep.log says more"


@pytest.mark.parametrize(
    ("make", "kind", "told"),
    [
        (_crashing, SweepFailed, f"worker-1 cannot be used: {DIED}"),
        (_hanging, SweepFailed, f"worker-1 cannot be used: {HUNG}"),
        (_lacking_the_base, UserError, "base: /nfs/base: no such folder"),
    ],
)
def test_on_one_machine_a_worker_that_cannot_load_the_base_ends_the_sweep_with_a_sentence(
    tmp_path: Path, played: PlayedRay, make: Callable[[], PlayedWorker], kind: type[UserError], told: str
) -> None:
    played.to_come = [PlayedWorker(), make()]
    with pytest.raises(kind) as refused:
        _pool(tmp_path).wait([_arm("lora", rank=2)])
    assert type(refused.value) is kind and str(refused.value) == told


@pytest.mark.parametrize("make", [_crashing, _hanging, _lacking_the_base])
def test_on_a_cluster_such_a_device_is_left_alone_and_the_others_go_on(
    tmp_path: Path, played: PlayedRay, monkeypatch: pytest.MonkeyPatch, make: Callable[[], PlayedWorker]
) -> None:
    monkeypatch.setattr(Cluster, "devices", lambda cluster: {"node": 2})
    lacking = make()
    played.to_come = [lacking]
    workers = _pool(tmp_path, address="auto")
    workers.wait([_arm("lora", rank=2)])
    played.now += LOADING_SECONDS + 1
    for _ in range(3):
        played.now += 10
        workers.rescale(4, 0)
    assert [place.name for place in workers._places] == ["worker-1"] and lacking in played.killed
    (said,) = workers.news()
    assert said.startswith("worker-0 cannot be used, and its device is left alone: ")
    assert workers.most_workers == 1


def test_a_machine_whose_devices_are_all_refused_is_kept_from_ray_until_it_has_gone(
    tmp_path: Path, played: PlayedRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {"bad": 2, "good": 2}
    monkeypatch.setattr(Cluster, "devices", lambda cluster: here)
    played.to_come = [_lacking_the_base("bad"), PlayedWorker("good"), PlayedWorker("good")]
    workers = _pool(tmp_path, num_workers=3, address="auto")
    workers.wait([_arm("lora", rank=2)])
    played.to_come = [_lacking_the_base("bad")]
    _tend(workers, played, num_trials=12)  # the other device may do
    assert played.shunned == [[]] * 4 and workers.most_workers == 2
    _workers(workers)[0].die("DEAD")
    _tend(workers, played, num_trials=12)
    assert played.shunned[4:] == [["bad"]] and len(workers._places) == 2
    del here["bad"]
    here["new"] = 2
    _tend(workers, played, num_trials=12)  # and the sweep may have as many workers as before
    assert workers.most_workers == 4 and played.shunned[5:] == [[], []]


def test_a_device_that_refuses_several_workers_in_turn_is_one(
    tmp_path: Path, played: PlayedRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cluster, "devices", lambda cluster: {"bad": 1, "good": 2})
    played.to_come = [_lacking_the_base("bad"), _lacking_the_base("bad"), PlayedWorker("good")]
    workers = _pool(tmp_path, num_workers=3, address="auto")
    workers.wait([_arm("lora", rank=2)])
    _tend(workers, played, num_trials=12)
    assert len(_workers(workers)) == 2 == workers.most_workers


def test_on_a_cluster_that_has_the_base_nowhere_the_sweep_ends_with_the_reason(
    tmp_path: Path, played: PlayedRay
) -> None:
    played.to_come = [_lacking_the_base(), _lacking_the_base()]
    with pytest.raises(UserError, match=r"^base: /nfs/base: no such folder$"):
        _pool(tmp_path, address="auto").wait([_arm("lora", rank=2)])


@pytest.mark.parametrize("address", ["local", "auto"])
def test_where_no_worker_can_be_had_any_more_the_sweep_ends_with_the_reasons(
    tmp_path: Path, played: PlayedRay, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(Cluster, "devices", lambda cluster: {"node": 2})
    workers = _pool(tmp_path, address=address)
    workers.wait([_arm("lora", rank=2)])
    workers.place(_spec(tmp_path), exclusive=False)
    played.to_come = [_lacking_the_base() for _ in range(4)]
    for worker in _workers(workers):
        worker.refusal = UserError("base: /nfs/base: no such folder")
        worker.die()
    with pytest.raises(NoWorkers, match=r"^no worker is left\nbase: /nfs/base: no such folder\n"):
        for _ in range(10):
            played.now += 10
            workers.rescale(1, 0)


@pytest.mark.parametrize("ending", ["DEAD", "cannot load the base"])
def test_on_one_machine_the_trials_of_a_worker_that_is_over_go_on_with_the_other_and_another_is_started(
    tmp_path: Path, played: PlayedRay, ending: str
) -> None:
    workers = _pool(tmp_path)
    workers.wait([_arm("lora", rank=2)])
    spec = _spec(tmp_path)
    workers.place(spec, exclusive=False)
    over, other = _workers(workers)
    over.refusal = None if ending == "DEAD" else SweepFailed("OutOfMemoryError: no room")
    over.die("DEAD" if ending == "DEAD" else None)
    for _ in range(3):
        played.now += 3
        workers.rescale(1, 0)
    assert spec.placed_on() == "worker-1"
    inherited = next(given for method, given in other.given if method == "inherit")
    assert inherited == (str(tmp_path / "workers" / "worker-0.json"), ["lora/0"])
    assert [(place.name, place.is_ready) for place in workers._places] == [("worker-1", True), ("worker-2", True)]
    assert "worker-0 is given up, and another is started in its place" in workers.news()[0]


def test_a_worker_that_is_spared_for_an_exclusive_trial_gets_no_others(tmp_path: Path, played: PlayedRay) -> None:
    workers = _pool(tmp_path)
    workers.wait([_arm("lora", rank=2), _arm("finetune", top_layers=1, tune_embeddings=False)])
    specs = [_spec(tmp_path, number) for number in range(4)]
    for spec in specs[:2]:
        workers.place(spec, exclusive=False)
    assert {spec.placed_on() for spec in specs[:2]} == {"worker-0", "worker-1"}
    workers.release("lora/1")
    workers.reserve(True)
    workers.reserve(True)
    for spec in specs[2:]:
        workers.place(spec, exclusive=False)
    assert {spec.placed_on() for spec in specs[2:]} == {specs[0].placed_on()}
    assert workers.has_room(exclusive=True)
    workers.reserve(False)
    last = _spec(tmp_path, 4)
    workers.place(last, exclusive=False)
    assert last.placed_on() == specs[1].placed_on()


def test_an_exclusive_trial_waits_for_the_worker_that_is_started_in_place_of_one_that_is_over(
    tmp_path: Path, played: PlayedRay
) -> None:
    workers = _pool(tmp_path, num_workers=1)
    workers.wait([_arm("finetune", top_layers=2, tune_embeddings=False)])
    spec = _spec(tmp_path)
    workers.place(spec, exclusive=True)
    _workers(workers)[0].die("DEAD")
    played.to_come = [PlayedWorker()]
    played.to_come[0].free_bytes = 1 << 30  # the rest of the machine's memory is in use
    for _ in range(3):
        played.now += 3
        workers.rescale(0, 1)
    assert spec.placed_on() == "worker-1" and not workers.has_room(exclusive=False)
    assert [place.name for place in workers._places] == ["worker-1"]


def test_a_worker_that_is_started_again_keeps_its_trials_though_loading_takes_long(
    tmp_path: Path, played: PlayedRay
) -> None:
    workers = _pool(tmp_path)
    workers.wait([_arm("lora", rank=2)])
    spec = _spec(tmp_path)
    workers.place(spec, exclusive=False)
    worker = _workers(workers)[0]
    worker.die("RESTARTING")
    worker.sight = ActorState("RESTARTING", 1, 2, "node")
    for _ in range(60):
        played.now += 10
        workers.rescale(1, 0)
    assert spec.placed_on() == "worker-0" and len(workers._places) == 2
    worker.sight = ActorState("ALIVE", 1, 2, "node")
    played.now += 10
    workers.rescale(1, 0)
    assert workers._places[0].is_ready


def test_on_one_machine_a_worker_that_comes_again_while_others_train_has_the_room_it_had(
    tmp_path: Path, played: PlayedRay
) -> None:
    workers = _pool(tmp_path)
    workers.wait([_arm("lora", rank=2), _arm("finetune", top_layers=2, tune_embeddings=False)])
    slots = [place.num_slots for place in workers._places]
    for worker in _workers(workers):
        worker.free_bytes = 1 << 30  # the rest of the machine's memory is in use by the other worker's trial
        worker.die()
    played.now += 10
    workers.rescale(1, 1)
    assert workers.has_room(exclusive=True) and [place.num_slots for place in workers._places] == slots


@pytest.mark.parametrize("method", ["status", "decode"])
def test_a_worker_that_hangs_is_killed_also_before_its_first_sign_and_in_an_early_decoding(
    tmp_path: Path, played: PlayedRay, method: str
) -> None:
    workers = _pool(tmp_path, num_workers=1)
    workers.wait([_arm("lora", rank=2)])
    (worker,) = _workers(workers)
    worker.silent = {"status", method}
    if method == "decode":
        workers.decode_when_idle(_job(1))
        workers.use_idle()
        workers.decode([_job(1)])
    else:
        for _ in range(1000):
            workers.status(timeout=1.0)
    assert worker in played.killed


def test_devices_are_held_from_the_first_process_on_and_not_while_one_is_awaited(
    tmp_path: Path, played: PlayedRay
) -> None:
    played.to_come = [_hanging()]
    (worker,) = played.to_come
    worker.sight = ActorState("PENDING_CREATION", 0, 0, "")
    workers = _pool(tmp_path, num_workers=1)
    for state, pid in (("PENDING_CREATION", 0), ("PENDING_CREATION", 1), ("ALIVE", 1)):
        worker.sight = ActorState(state, 0, pid, "node")
        for _ in range(10):
            played.now += 10
            workers.rescale(1, 0)
    assert workers.device_seconds == pytest.approx(200, abs=10)


def test_deaths_are_counted_by_what_is_decoded(tmp_path: Path, played: PlayedRay) -> None:
    workers = _pool(tmp_path, num_workers=1)
    workers.wait([_arm("lora", rank=2)])
    (worker,) = _workers(workers)
    worker.num_deaths = {f"final/{number}": MOST_DEATHS for number in range(3)}
    workers.decode([_job(number) for number in range(3)])  # machines that come and go
    worker.num_deaths = {"final/1": MOST_DEATHS + 1}
    with pytest.raises(SweepFailed, match=f"final/1: {MOST_DEATHS + 1} workers have died while they decoded"):
        workers.decode([_job(number) for number in range(3)])


def test_a_worker_whose_machine_is_about_to_go_is_given_nothing_to_decode_and_is_ended_on_purpose(
    tmp_path: Path, played: PlayedRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cluster, "devices", lambda cluster: {"node": 1})
    workers = _pool(tmp_path, address="auto")
    workers.wait([_arm("lora", rank=2)])
    leaving, staying = _workers(workers)
    leaving.sight = ActorState("ALIVE", 0, 1, "spot")
    leaving.silent, leaving.next_state = {"retire"}, "RESTARTING"
    spec = _spec(tmp_path)
    workers.place(spec, exclusive=False)
    monkeypatch.setattr(pool, "draining", lambda: {"spot"})
    for _ in range(2):
        played.now += 3
        workers.rescale(1, 0)
    workers.decode_when_idle(_job(1))
    workers.use_idle()
    workers.decode([_job(1), _job(2)])
    assert "decode" not in [method for method, _ in leaving.asked]
    assert [method for method, _ in staying.asked].count("decode") == 3
    assert spec.placed_on() == "worker-0" and leaving not in played.killed
    next(later for method, later in leaving.asked if method == "retire").answer = [None]
    for _ in range(2):
        played.now += 3
        workers.rescale(1, 0)
    assert leaving in played.killed and spec.placed_on() == "worker-1", "it need not wait"


def test_a_trial_that_is_moved_leaves_the_worker_that_has_just_come_again(
    tmp_path: Path, played: PlayedRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = _pool(tmp_path, address="auto")
    workers.wait([_arm("lora", rank=2)])
    spec = _spec(tmp_path)
    workers.place(spec, exclusive=False)
    assert spec.placed_on() == "worker-0"
    lost = _workers(workers)[0]
    monkeypatch.setattr(Cluster, "devices", lambda cluster: {"node": 2})
    lost.die("RESTARTING")
    for _ in range(2):
        played.now += 10
        workers.rescale(1, 0)
        assert spec.placed_on() == "worker-0", "it may come again in a moment"
    played.now += 10
    workers.rescale(1, 0)
    assert spec.placed_on() == "worker-1"
    assert "leave" in [method for method, _ in lost.asked]
