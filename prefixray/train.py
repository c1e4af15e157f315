"""Train one configuration, without Ray: a pack of one. What the file searches is taken from --set, or from the middle.

python -m prefixray.train sweeps/quickstart.yaml --arm prefix --set preseqlen=20 --set learning_rate=1e-2
"""

import argparse
import hashlib
import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from prefixray.config.load import load_sweep
from prefixray.config.schema import ArmConfig
from prefixray.config.space import AnyDimension, Choice, Int, LogUniform, Uniform
from prefixray.config.trials import TrialConfig
from prefixray.errors import UserError
from prefixray.system.exit_codes import leave
from prefixray.system.logs import quieten
from prefixray.system.machine import num_cpus
from prefixray.system.records import Scalar
from prefixray.trial import Report, TrialSpec

if TYPE_CHECKING:
    from prefixray.training.trainer import Trainer

NUM_REPORTS = 8  # where the file sets no eval_every


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print a line per report, say where the artifact is; 1 where the trial failed, 2 for the user to mend."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.threads < 1 or options.replicate < 0:
        parser.error("--threads must be 1 or more, --replicate 0 or more")
    try:
        names = [arm.name for arm in load_sweep(options.sweep, (), options.scale).arms]
        if options.arm not in names:
            raise UserError(f"--arm: {options.arm}: no such arm; they are {', '.join(names)}")
        overrides = [text if "." in text.partition("=")[0] else f"arms.{options.arm}.{text}" for text in options.set]
        config = load_sweep(options.sweep, overrides, options.scale)
        trial = _configuration(config.arm(options.arm))
        quieten()
        from prefixray.training.trainer import load_trainer

        spec = _spec(trial, Path("runs") / config.name / "train", seed=config.search.seed, replicate=options.replicate)
        print(f"{config.name}  {options.arm}  {_shown(trial)}   {spec.folder}", flush=True)
        trainer = load_trainer(
            config.base,
            config.task,
            config.train,
            device=options.device,
            num_threads=options.threads,
            max_new_tokens=config.final.max_new_tokens,
            trust_remote_code=config.trust_remote_code,
        )
        report = _train(trainer, spec, options.profile)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if report.state != "done":
        return 1
    print(f"\npython -m prefixray.decode {spec.files.artifact} --split test")
    return 0


def _train(trainer: "Trainer", spec: TrialSpec, profile: str | None) -> Report:
    """Run a trial to its end; its last report."""
    from prefixray.training.trainer import profiled

    first = report = Report(spec.key, trainer.admit(spec), "running")
    while trainer.keys():
        is_warm = trainer.steps()[spec.key] == first.step + 1
        with profiled(profile) if profile is not None and is_warm else nullcontext():
            reports = trainer.run()
        for report in reports:
            print(_line(report, spec.config.num_steps), flush=True)
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m prefixray.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", help="the sweep's YAML file")
    parser.add_argument("--scale", action="append", default=[], metavar="NAME", help="a scale of the file: laptop")
    parser.add_argument("--arm", required=True, help="which arm of it")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a value of the arm: preseqlen=20"
    )
    parser.add_argument(
        "--replicate", type=int, default=0, help="whose seeds: 0 as in the search, 1.. as in the final stage"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--profile", metavar="FILE", help="write a trace of the second step, print where its time goes")
    parser.add_argument("--threads", type=int, default=num_cpus(), help="on a CPU (all)")
    return parser


def _configuration(arm: ArmConfig) -> TrialConfig:
    """A configuration of the arm: what the file says is to be tried first, else the middle of every dimension."""
    values: dict[str, Scalar] = {}
    for key, dimension in arm.dimensions.items():
        if arm.is_searched(key, values):
            values[key] = arm.first[0][key] if arm.first else _middle(dimension)
    trial = arm.trial(values)
    if trial.eval_every is None:
        trial = trial.model_copy(update={"eval_every": max(1, trial.num_steps // NUM_REPORTS)})
    return trial


def _middle(dimension: AnyDimension) -> Scalar:
    match dimension:
        case Choice():
            return dimension.choice[len(dimension.choice) // 2]
        case Uniform():
            return sum(dimension.uniform) / 2
        case LogUniform():
            return math.sqrt(math.prod(dimension.log_uniform))
        case Int():
            return sum(dimension.int_) // 2
        case _:
            assert_never(dimension)


def _spec(trial: TrialConfig, folder: Path, *, seed: int, replicate: int) -> TrialSpec:
    """The folder is the configuration's own, so that the same command goes on where it was interrupted."""
    digest = hashlib.sha256(f"{trial.model_dump_json()}/{seed}/{replicate}".encode()).hexdigest()[:8]
    place = folder / f"{trial.arm}-{digest}"
    return TrialSpec(f"{trial.arm}/0", trial, seed, replicate, rungs=(), folder=str(place))


def _shown(trial: TrialConfig) -> str:
    values = {**trial.method.model_dump(exclude={"method"}), "learning_rate": trial.learning_rate}
    return "  ".join(
        f"{key} {value:.2g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )


def _line(report: Report, num_steps: int) -> str:
    if report.state == "failed":
        return f"step {report.step}/{num_steps}  failed: {report.note}"
    names = ("train/loss", "dev/loss", "train/clipped_share", "train/learning_rate")
    return f"step {report.step}/{num_steps}  " + "  ".join(f"{name} {report.metrics[name]:.4g}" for name in names)


if __name__ == "__main__":
    leave(main)
