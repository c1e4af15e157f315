"""A Ray that answers at once or never, and workers that are played: what the pool does with them needs no process."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayTaskError

from prefixray.batching.lengths import Lengths
from prefixray.cluster.connect import Cluster
from prefixray.cluster.decode_queue import DecodeJob
from prefixray.cluster.nodes import ActorState
from prefixray.cluster.pool import Pool
from prefixray.cluster.worker import WorkerSetup
from prefixray.cluster.worker_handle import LOADING_SECONDS, MOST_LOADS
from prefixray.config.schema import ArmConfig
from prefixray.config.trials import LoraTrial, TrainConfig, TrialConfig
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.model.shape import Shape, SiteShape
from prefixray.training.facts import WorkerFacts
from prefixray.trial import TrialSpec, WorkerStatus

SITE = SiteShape(num_layers=12, num_heads=16, num_kv_heads=16, head_dim=64)
SHAPE = Shape(
    is_encoder_decoder=True,
    sites={"encoder": SITE, "decoder": SITE, "cross": SITE},
    hidden_size=1024,
    ffn_size=4096,
    vocab_size=50_265,
    num_parameters=406_291_456,
    is_tied=True,
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


def make_arm(method: str, **fixed: Any) -> ArmConfig:  # noqa: ANN401
    given = {"learning_rate": 1e-4, **fixed}
    train = TrainConfig(num_steps=1)
    return ArmConfig(name=f"my-{method}", method=method, fixed=given, dimensions={}, num_trials=1, train=train)  # type: ignore[arg-type]


class Later:
    """What Ray answers with: nothing yet, a value, or an error."""

    def __init__(self, *answer: Any) -> None:  # noqa: ANN401
        self.answer = list(answer)


class FakeRay:
    """The pool's Ray: answers are there at once or never, and time passes where the pool waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.killed: list[FakeWorker] = []
        self.to_come: list[FakeWorker] = []  # the workers that are started next; then others without a fault
        self.shunned: list[list[str]] = []  # the nodes on which none shall be started, by worker
        self.precisions: list[str] = []  # that the workers are told to take

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

    def kill(self, worker: "FakeWorker", no_restart: bool = True) -> None:
        self.killed.append(worker)
        worker.die("DEAD" if no_restart else worker.next_state)


class FakeWorker:
    """A worker actor as the pool sees it: what it is asked it answers at once, or never while it is silent."""

    free_bytes = 8 << 30
    next_state = "ALIVE"  # after a death
    data_digest = FACTS.data_digest
    base_digest = FACTS.base_digest
    rows_digest = FACTS.rows_digest
    precision = FACTS.precision

    def __init__(self, node: str = "node") -> None:
        self.state = ActorState("ALIVE", 0, 1, node)
        self.refusal: UserError | None = None  # what keeps it from loading the base
        self.asked: list[tuple[str, Later]] = []
        self.given: list[tuple[str, tuple[Any, ...]]] = []
        self.silent: set[str] = set()
        self.steps: dict[str, int] = {}  # of the trials in its pack
        self.num_deaths: dict[str, int] = {}  # that it dies of a decoding, by folder, or of the check
        self.no_memory_for: set[str] = set()  # folders of decodings for which it has too little

    def die(self, state: str | None = None) -> None:
        """End, and come again at once unless another state is said; what it was asked and had not answered fails."""
        state = state or self.next_state
        self.state = ActorState(state, self.state.num_restarts + 1, self.state.pid + (state == "ALIVE"), "node")
        self.silent = set()
        for _, later in self.asked:
            later.answer = later.answer or [died()]

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *given, **more: self._ask(method, (*given, *more.values())))

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
                facts = replace(FACTS, data_digest=self.data_digest, base_digest=self.base_digest)
                facts = replace(facts, rows_digest=self.rows_digest, precision=self.precision)
                return replace(facts, device="cpu", free_bytes=self.free_bytes)
            case "status":
                return WorkerStatus(dict(self.steps), 0.0, 0)
            case "check" if self.num_deaths.get("check", 0):
                self.num_deaths["check"] -= 1
                return died()
            case "decode" if self.num_deaths.get(given[1], 0):
                self.num_deaths[given[1]] -= 1
                return died()
            case "decode" if given[1] in self.no_memory_for:
                return RayTaskError("decode", "a traceback", MemoryError("out of memory"))
            case _:
                return None


def died() -> ActorUnavailableError:
    return ActorUnavailableError("the actor is restarting", None)


def make_pool(
    folder: Path,
    *,
    num_workers: int = 2,
    address: str = "local",
    max_wait_hours: float | None = None,
    base: str = "base",
) -> Pool:
    cluster = Cluster(address, "prefixray-1", "cpu", 2, 0, num_workers, num_workers, 1)
    setup = WorkerSetup(base, TaskConfig(name="e2e"), TrainConfig(num_steps=1), "cpu", 1, log="sweep.log")
    setup = replace(setup, max_wait_hours=max_wait_hours)
    return Pool(cluster, setup, folder / "workers")


def fake_workers(pool: Pool) -> list[FakeWorker]:
    return [worker.actor for worker in pool.workers]  # type: ignore[misc]


def rescale_later(pool: Pool, ray: FakeRay, *, num_trials: int) -> None:
    """Rescale four times, ten seconds apart."""
    for _ in range(4):
        ray.now += 10
        pool.rescale(num_trials, 0)


def make_spec(folder: Path, number: int = 0) -> TrialSpec:
    config = TrialConfig(arm="lora", learning_rate=1e-3, num_steps=10, method=LoraTrial(rank=2))
    return TrialSpec(f"lora/{number}", config, 1, 0, (), str(folder / f"trial-{number}"))


def decode_job(number: int) -> DecodeJob:
    return DecodeJob("untuned", f"final/{number}", "test", {})


def lacking_the_base(node: str = "node") -> FakeWorker:
    worker = FakeWorker(node)
    worker.refusal = UserError("base: /nfs/base: no such folder")
    return worker


def crashing() -> FakeWorker:
    """A worker whose processes have all died while they loaded the base."""
    worker = FakeWorker()
    worker.state = ActorState("RESTARTING", MOST_LOADS, 1, "node")
    return worker


def hanging() -> FakeWorker:
    """A worker whose process does not come to an end with loading."""
    worker = FakeWorker()
    worker.state = ActorState("PENDING_CREATION", 0, 1, "node")
    return worker


DIED = f"it died {MOST_LOADS} times while it loaded the base; the end of sweep.log says more"
HUNG = f"it was not ready after {LOADING_SECONDS / 60:.0f} minutes; the end of sweep.log says more"
