"""Train one configuration, without Ray. Searched values come from --set, else from `first`, else from mid-range.

prefixray train sweeps/quickstart.yaml --arm prefix --set preseqlen=20 --set learning_rate=1e-2
"""

import hashlib
import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, assert_never

import typer

from prefixray.config.files.found import find_sweep_file
from prefixray.config.load import load_sweep
from prefixray.config.schema import ArmConfig, SweepConfig
from prefixray.config.seeds import subset_of
from prefixray.config.space import AnyDistribution, Choice, Int, LogUniform, Uniform
from prefixray.config.trials import TrialConfig
from prefixray.data import check_own_data
from prefixray.data.documents.made import check_teacher
from prefixray.errors import UserError
from prefixray.system.command_line import Device, Entry, Scales, SweepFile, repeated
from prefixray.system.exit_codes import leave
from prefixray.system.logs import quieten
from prefixray.system.machine import check_four_bit, num_cpus, wait_passively
from prefixray.system.path_or_hub import check_base, expanded, is_commit
from prefixray.system.records import Scalar
from prefixray.trial import Report, TrialSpec

if TYPE_CHECKING:
    from prefixray.training.facts import WorkerFacts
    from prefixray.training.trainer import Trainer

NUM_REPORTS = 8  # where the file sets no eval_every


def train(
    file: SweepFile,
    scales: Scales,
    arm: Annotated[str, typer.Option(help="the arm of the file that is trained")],
    values: Annotated[list[str], repeated("--set", "KEY=VALUE", "a value of the arm: preseqlen=20")],
    *,
    replicate: Annotated[
        int, typer.Option(min=0, help="the seeds of: 0 the search; 1, 2 and so on the final runs")
    ] = 0,
    device: Device = "auto",
    profile: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="write a trace of the second step, and print where its time goes"),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="threads on a CPU", default_factory=num_cpus, show_default="all")],
) -> int:
    """Train, print a line per report, and print the command that decodes the artifact; 1 if the trial failed."""
    file = find_sweep_file(file)
    names = [known.name for known in load_sweep(file, (), scales).arms]
    if arm not in names:
        raise UserError(f"--arm: {arm}: no such arm; they are {', '.join(names)}")
    overrides = [text if "." in text.partition("=")[0] else f"arms.{arm}.{text}" for text in values]
    config = load_sweep(file, overrides, scales)
    trial = _configuration(config.arm(arm))
    check_own_data(config.task)
    quieten()
    check_base(config.base)
    if config.train.precision == "4bit" and device != "auto":  # torch knows what that is, and `load_trainer` refuses
        check_four_bit(has_gpu=device.startswith("cuda"))
    wait_passively()
    from prefixray.training.trainer import load_trainer

    print(f"{config.name}  {arm}  {_shown(trial)}", flush=True)
    trainer = load_trainer(
        config.base,
        config.task,
        config.train,
        device=device,
        num_threads=threads,
        max_new_tokens=config.final.max_new_tokens,
        trust_remote_code=config.trust_remote_code,
    )
    if trial.objective == "distill":
        assert config.task.exchanges is not None, "the task is loaded"
        names, studies = [document.name for document in trainer.task.documents], expanded(config.task.exchanges)
        check_teacher(studies, names, base=config.base, digest=trainer.base.digest, is_own=False)
    spec = _spec(trial, config, replicate, trainer.describe())
    print(spec.folder, flush=True)
    if _train(trainer, spec, profile).state != "done":
        return 1
    print(f"\nprefixray decode {spec.files.artifact} --split test")
    return 0


def _train(trainer: "Trainer", spec: TrialSpec, profile: str | None) -> Report:
    """Run a trial to its end; returns its last report."""
    from prefixray.training.profiling import profiled

    first = report = Report(spec.key, trainer.admit(spec), "running")
    while trainer.keys():
        is_warm = trainer.steps()[spec.key] == first.step + 1
        with profiled(profile) if profile is not None and is_warm else nullcontext():
            reports = trainer.run()
        for report in reports:
            print(_line(report, spec.config.num_steps), flush=True)
    return report


def _configuration(arm: ArmConfig) -> TrialConfig:
    """The configuration that the file has tried first; if it names none, the middle of every dimension."""
    values: dict[str, Scalar] = {}
    for key in arm.dimensions:
        if (distribution := arm.distribution(key, values)) is not None:
            values[key] = arm.first[0][key] if arm.first else _middle(distribution)
    trial = arm.trial(values)
    if trial.eval_every is None:
        trial = trial.model_copy(update={"eval_every": max(1, trial.num_steps // NUM_REPORTS)})
    return trial


def _middle(distribution: AnyDistribution) -> Scalar:
    match distribution:
        case Choice():
            return distribution.choice[len(distribution.choice) // 2]
        case Uniform():
            return sum(distribution.uniform) / 2
        case LogUniform():
            return math.sqrt(math.prod(distribution.log_uniform))
        case Int():
            return sum(distribution.int_) // 2
        case _:
            assert_never(distribution)


def _spec(trial: TrialConfig, config: SweepConfig, replicate: int, facts: "WorkerFacts") -> TrialSpec:
    """The trial in a folder of all that its numbers depend on, so that the same command goes on where it stopped.

    Files may have another content under the same name; another commit of the hub may have the same. In low data the
    trial trains on the replicate's subset, of several documents on the first.
    """
    seed, low = config.search.seed, config.task.low_data
    content = [digest for digest in facts.content if not is_commit(digest)]
    data = f"{config.base}/{config.task.model_dump_json()}/{'/'.join(content)}"
    digest = hashlib.sha256(f"{data}/{trial.model_dump_json()}/{seed}/{replicate}".encode()).hexdigest()[:8]
    folder = Path("runs") / config.name / "train" / f"{trial.arm}-{digest}"
    subset = 0 if low is None else subset_of(replicate, low.num_subsets)
    return TrialSpec(
        f"{trial.arm}/0",
        trial,
        seed,
        replicate,
        rungs=(),
        folder=str(folder),
        subsets=(subset,),
        decoding=config.final.decoding.model_dump(),
    )


def _shown(trial: TrialConfig) -> str:
    values = {**trial.method.model_dump(exclude={"method"}), "learning_rate": trial.learning_rate}
    return "  ".join(
        f"{key} {value:.2g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )


def _line(report: Report, num_steps: int) -> str:
    if report.state == "failed":
        return f"step {report.step}/{num_steps}  failed: {report.note}"
    names = ("train/loss", "dev/loss", "train/clipped_share", "train/learning_rate")
    known = [name for name in names if name in report.metrics]  # train/loss is missing until a step has been done
    return f"step {report.step}/{num_steps}  " + "  ".join(f"{name} {report.metrics[name]:.4g}" for name in known)


main = Entry(train, "prefixray train", __doc__)

if __name__ == "__main__":
    leave(main)
