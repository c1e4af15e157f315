"""A worker whose trials follow a known curve instead of training."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefixray.batching.lengths import Lengths
from prefixray.cluster.worker import Worker, WorkerSetup
from prefixray.config.schema import ArmConfig
from prefixray.data import Task, load_task
from prefixray.model.shape import Shape, SiteShape
from prefixray.results.hypotheses import Split, split_sources, write_hypotheses
from prefixray.training.facts import WorkerFacts
from prefixray.trial import Report, TrialSpec

SHAPE = Shape(
    is_encoder_decoder=False,
    sites={"decoder": SiteShape(num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8)},
    hidden_size=8,
    ffn_size=32,
    vocab_size=16,
    num_parameters=1000,
    is_tied=True,
    max_positions=1024,
)


class CurveTrainer:
    """In place of `Trainer`: a step is nothing, and the loss falls from 3 towards a value that the rate decides."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.last_tokens = 0
        self.evaluating = 0.0
        self._specs: dict[str, TrialSpec] = {}
        self._steps: dict[str, int] = {}
        self._parked: set[str] = set()

    def describe(self) -> WorkerFacts:
        """As `Trainer.describe`."""
        lengths = Lengths(encoder=0.0, decoder=8.0, targets=4.0)
        return WorkerFacts(
            base_digest="none",
            num_parameters=1000,
            precision="fp32",
            data_digest="none",
            num_test_total=len(self.task.test_sources),
            metrics=self.task.metrics,
            device="cpu",
            num_threads=1,
            shape=SHAPE,
            free_bytes=1 << 40,
            num_dev=len(self.task.dev),
            num_test=len(self.task.test_sources),
            train_lengths=lengths,
            dev_lengths=lengths,
        )

    def check(self, arms: Sequence[ArmConfig]) -> None:
        """Nothing can be wrong with them."""

    def admit(self, spec: TrialSpec) -> int:
        """Let a trial begin."""
        self._specs[spec.key], self._steps[spec.key] = spec, 0
        return 0

    def drop(self, key: str) -> None:
        """Let a trial go."""
        self._specs.pop(key, None)
        self._steps.pop(key, None)
        self._parked.discard(key)

    def go_on(self, key: str) -> None:
        """The verdict of a rung was to go on."""
        self._parked.discard(key)

    def keys(self) -> list[str]:
        """The trials that run."""
        return list(self._specs)

    def parked(self) -> list[str]:
        """The trials that wait at a rung."""
        return list(self._parked)

    def steps(self) -> dict[str, int]:
        """How many steps each trial has done."""
        return dict(self._steps)

    def costs(self, key: str) -> dict[str, float]:
        """What a trial has taken: nothing was trained."""
        return {}

    def checkpoint(self, keys: Iterable[str]) -> list[str]:
        """Nothing to keep: a trial that comes back begins anew, and its study knows its reports; so none moves."""
        return []

    def run(self) -> list[Report]:
        """A step and a report of every trial that is not parked."""
        reports = [self._step(key) for key in self.keys() if key not in self._parked]
        for report in reports:
            if report.state == "done":
                self.drop(report.key)
        self.last_tokens = len(reports)
        return reports

    def _step(self, key: str) -> Report:
        spec = self._specs[key]
        step = self._steps[key] = self._steps[key] + 1
        end = 1.5 + (abs(spec.config.learning_rate - 1e-3) ** 0.5)
        loss = end + (3.0 - end) * 0.8**step
        metrics = {"dev/loss": loss, "dev/best_loss": loss, "train/loss": loss, "train/grad_norm": 1.0}
        metrics |= {"train/learning_rate": spec.config.learning_rate, "train/tokens": float(step)}
        if step == spec.config.num_steps:
            return Report(key, step, "done", metrics)
        if step in spec.rungs:
            self._parked.add(key)
            return Report(key, step, "running", metrics, rung=step, packmates={key: loss})
        return Report(key, step, "running", metrics)


class CurveWorker(Worker):
    """The real worker around that trainer; it decodes every source as its first reference.

    As with the real one torch is imported where it is made: the process of the trials' seats loads its class.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        from prefixray.training import trainer

        trainer.load_trainer = lambda *_, **__: CurveTrainer(load_task(setup.task))  # type: ignore[assignment]
        self._task = setup.task
        super().__init__(setup)

    def decode(self, artifact: str | None, folder: str, split: Split, settings: Mapping[str, Any]) -> None:
        """As `Worker.decode`."""
        sources = split_sources(load_task(self._task), split)
        write_hypotheses(Path(folder), split, [one.references[0] for one in sources], sources)
