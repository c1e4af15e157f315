"""The driver's side of a search without Ray: a pool and a worker's reports are played."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefixray.cluster.decode_queue import DecodeJob
from prefixray.config.schema import ArmConfig, TrackingConfig
from prefixray.config.space import AnyDimension, Choice, LogUniform
from prefixray.config.trials import PrefixTrial, TrainConfig, TrialConfig
from prefixray.driver.coordinator import Coordinator
from prefixray.driver.stage import MakeSpec, Stage
from prefixray.search.budget import Budget
from prefixray.search.fixed_study import FixedStudy
from prefixray.search.policies.contract import Policy
from prefixray.search.policies.halving import Halving
from prefixray.search.requests import Answer, Inbox, Request
from prefixray.search.storage import open_storage
from prefixray.search.study import ArmStudy
from prefixray.search.trial_source import Proposal, Record
from prefixray.tracking.tracker import open_tracker
from prefixray.trial import Report, TrialSpec, WorkerStatus

LENGTHS: Mapping[str, AnyDimension] = {"preseqlen": Choice(choice=(1, 5, 10, 20))}
SPACE: Mapping[str, AnyDimension] = {**LENGTHS, "learning_rate": LogUniform(log_uniform=(1e-4, 1e-1))}


class PlayedPool:
    """One worker with room for two trials, or for one alone; remembers the calls that steer workers."""

    num_slots, most_workers, num_ready, device_seconds, namespace = 2, 1, 1, 0.0, "namespace"

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.is_alone = self.is_spared = False
        self.calls: list[str] = []
        self.statuses: list[WorkerStatus] = []
        self.decodings: list[DecodeJob] = []  # for a worker that is idle

    def has_room(self, *, exclusive: bool) -> bool:
        if not self.keys:
            return exclusive or not self.is_spared
        return not (exclusive or self.is_alone or self.is_spared) and len(self.keys) < self.num_slots

    def reserve(self, wanted: bool) -> None:
        """There is one worker."""
        self.is_spared = wanted

    def place(self, spec: TrialSpec, *, exclusive: bool) -> None:
        self.is_alone = exclusive
        self.keys.add(spec.key)

    def release(self, key: str, *, has_ended: bool) -> None:
        self.keys.discard(key)

    def stop(self, key: str) -> None:
        self.calls.append(f"stop {key}")

    @property
    def stopped(self) -> list[str]:
        """The trials that were asked to stop, once for each time."""
        return [call.removeprefix("stop ") for call in self.calls if call.startswith("stop ")]

    def suspend(self, timeout: float) -> None:
        self.calls.append("suspend")

    def status(self, timeout: float) -> list[WorkerStatus]:
        self.calls.append("status")
        return self.statuses

    def rescale(self, num_sharing: int, num_exclusive: int) -> None:
        """There is no other device."""
        self.calls.append(f"rescale {num_sharing} {num_exclusive}")

    def news(self) -> list[str]:
        return []

    def use_idle(self, *, may_begin: bool = True) -> None:
        """Nothing is decoded here."""
        self.calls.append("use_idle" if may_begin else "use_idle later")

    def decode_when_idle(self, job: DecodeJob) -> None:
        self.decodings.append(job)


class Driver:
    """One driver after another over the same folder."""

    def __init__(
        self,
        folder: Path,
        num_trials: int = 4,
        space: Mapping[str, AnyDimension] = SPACE,
        budget: Budget | None = None,
        policy: Policy | None = None,
        dev_sample: float = 1.0,
    ) -> None:
        """Without a policy, half of the trials is stopped at step 10."""
        self.dev_sample = dev_sample
        self.folder = folder
        self.pool = PlayedPool()
        self.inbox = Inbox(folder)
        self.storage = open_storage(folder / "study.journal")
        self.tracker = open_tracker(TrackingConfig(mlflow=None), folder, "small", {})
        train = TrainConfig(num_steps=40)
        fixed = {} if "learning_rate" in space else {"learning_rate": 1e-3}
        self.arm = ArmConfig(
            name="prefix", method="prefix", fixed=fixed, dimensions=space, num_trials=num_trials, train=train
        )
        self.study = ArmStudy(self.storage, "small", self.arm, seed=1, num_startup=2)
        self.policy = policy or Halving((10,), keep=0.5)
        self.stage = Stage("prefix", self.arm, self.study, 2, self._spec(), self.policy)
        self.coordinator = self.coordinate(self.stage, budget=budget)

    def final(self) -> Coordinator:
        """The same sweep in its final stage."""
        study = FixedStudy(self.storage, "small", "final/prefix", ["prefix-1"])
        return self.coordinate(Stage("final/prefix", self.arm, study, 1, self._spec()))

    def coordinate(self, *stages: Stage, budget: Budget | None = None) -> Coordinator:
        """A coordinator of these stages, on the same pool."""
        return Coordinator(stages, self.pool, self.tracker, self.inbox, budget)  # type: ignore[arg-type]

    def start(self) -> list[str]:
        """Start all that may be started; the keys."""
        keys = []
        while isinstance(suggested := self.coordinator.next(), dict):
            keys.append(suggested["spec"].key)
        return keys

    def report(self, key: str, step: int, loss: float = 2.0, rung: int | None = None) -> bool:
        state = "done" if step == 40 else "running"
        metrics = {"dev/sample_loss": loss} if step == 10 and self.dev_sample < 1 else {"dev/loss": loss}
        metrics["dev/best_loss"] = loss
        packmates = {} if rung is None else {key: loss}
        report = Report(key, step, state, metrics, rung=rung, packmates=packmates)  # type: ignore[arg-type]
        return self.coordinator.on_report(report)

    def ask(self, request: Request) -> Answer:
        """Post, serve, and read the answer."""
        request_id = self.inbox.post(request)
        self.coordinator.serve()
        answer = self.inbox.answer(request_id, seconds=0)
        assert answer is not None
        return answer

    def states(self) -> list[str]:
        return [record.state for record in self.study.records()]

    def run_all(self) -> None:
        """Start and end trials until the search is over."""
        while self.coordinator.next() != "FINISHED":
            for key in list(self.pool.keys):
                self.report(key, 40)

    def _spec(self) -> MakeSpec:
        def spec(trial: Proposal | Record) -> TrialSpec:
            values: dict[str, Any] = {"preseqlen": 5, "mid_dim": None, "learning_rate": 1e-3, **trial.values}
            method = PrefixTrial(preseqlen=values["preseqlen"], mid_dim=values["mid_dim"], init_token="pub")
            config = TrialConfig(arm="prefix", learning_rate=values["learning_rate"], num_steps=40, method=method)
            folder = str(self.folder / "trials" / "prefix" / str(trial.number))
            shared = {"dev_sample": self.dev_sample, "resumed_from": trial.resumed_from}
            return TrialSpec(f"prefix/{trial.number}", config, 1, 0, self.policy.rungs, folder, **shared)  # type: ignore[arg-type]

        return spec
