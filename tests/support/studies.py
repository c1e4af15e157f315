"""Studies for tests: small spaces, a search that is run to its end, and a driver that is killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from prefixray.config.schema import ArmConfig, SamplerName
from prefixray.config.space import AnyDimension, Choice, LogUniform
from prefixray.config.trials import TrainConfig
from prefixray.search.storage import open_storage
from prefixray.search.study import ArmStudy
from prefixray.search.trial_source import Proposal, TrialSource
from prefixray.system.records import Scalar

LEARNING_RATE = LogUniform(log_uniform=(1e-4, 1e-1))
SPACE: Mapping[str, AnyDimension] = {"preseqlen": Choice(choice=(1, 5, 10, 20)), "learning_rate": LEARNING_RATE}
GRID: Mapping[str, AnyDimension] = {"preseqlen": Choice(choice=(1, 5, 10, 20)), "mid_dim": Choice(choice=(None, 512))}

DRIVER = """
import sys, time
from pathlib import Path
from prefixray.config.schema import ArmConfig
from prefixray.search.fixed_study import FixedStudy
from prefixray.search.storage import open_storage
from prefixray.search.study import ArmStudy

arm = ArmConfig.model_validate_json(sys.argv[2])
storage = open_storage(Path(sys.argv[1]))
search = ArmStudy(storage, "sweep", arm, seed=1, num_startup=2)
done, left = search.ask(), search.ask()
search.report(done.number, 10, 2.0)
search.tell(done.number, "done", 2.0)
search.report(left.number, 10, 3.0)
final = FixedStudy(storage, "sweep", "final", ["prefix-1", "prefix-2"])
final.ask()
print(left.number, left.values["preseqlen"], left.values["learning_rate"], flush=True)
time.sleep(60)
"""


def make_arm(
    dimensions: Mapping[str, AnyDimension],
    num_trials: int,
    first: tuple[Mapping[str, Scalar], ...] = (),
    fixed: Mapping[str, Scalar] | None = None,
) -> ArmConfig:
    return ArmConfig(
        name="prefix",
        method="prefix",
        fixed=fixed or {},
        dimensions=dimensions,
        num_trials=num_trials,
        first=first,
        train=TrainConfig.model_validate({"num_steps": 40}),
    )


def open_study(folder: Path, arm: ArmConfig, sampler: SamplerName = "tpe") -> ArmStudy:
    return ArmStudy(open_storage(folder / "study.journal"), "sweep", arm, seed=1, num_startup=2, sampler=sampler)


def run_all(study: TrialSource) -> list[Proposal]:
    """Ask and tell until there is nothing to ask."""
    proposals = []
    while (proposal := study.ask()) is not None:
        proposals.append(proposal)
        study.tell(proposal.number, "done", 2.0 + proposal.number % 5)
    return proposals


def ask(study: TrialSource) -> Proposal:
    proposal = study.ask()
    assert proposal is not None
    return proposal


def distinct(proposals: list[Proposal]) -> int:
    return len({tuple(sorted(proposal.values.items(), key=str)) for proposal in proposals})


def start_and_kill(folder: Path, arm: ArmConfig) -> list[str]:
    """Run a driver until one trial is done and one is running, kill it, and return what it said of the latter."""
    command = [sys.executable, "-c", DRIVER, str(folder / "study.journal"), arm.model_dump_json(by_alias=True)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        line = driver.stdout.readline()
        os.kill(driver.pid, signal.SIGKILL)
    return line.split()
