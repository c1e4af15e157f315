"""The benchmark: a training step and a validation against PEFT's prefix tuning or LoRA, on every case, in one table.

    python tests/bench/table.py                                   # all cases on one CPU thread, in minutes
    python tests/bench/table.py --case "6-layer, E2E, 5" --rounds 5
    python tests/bench/table.py --case "gpt2-medium, E2E, 5" --device cuda --plain     # and PEFT without autocast
    python tests/bench/table.py --case "gpt2-medium, E2E, 5" --device cuda --method lora
    python tests/bench/table.py --case "6-layer, E2E, 5" --profile trace.json    # where a step's time goes

All arms of a case run in turn in one process, which is the case's own, a matrix product alone among them, on a CPU the
faster one of MKL's and oneDNN's; the first round warms up and is not counted. Times are CPU seconds of the process,
which others on the machine do not lengthen; on a GPU they are the clock's, in ms. Losses of the first and the last
round stand beside them, so that nobody wins by training less. Nothing here imports Ray, Optuna or MLflow.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from arms import METHODS, PackArm, PeftArm, Setting
from cases import ALL_CASES, CASES, Case, make_model

from prefixray.batching.lengths import row_lengths
from prefixray.batching.rows import Row
from prefixray.model.describe import describe
from prefixray.model.fast_cpu.onednn import linear
from prefixray.planning.flops import forward_flops
from prefixray.system.logs import quieten
from prefixray.training.profiling import profiled

Value = TypeVar("Value")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
PEAK_SIZES = (512, 1024, 4096)  # a product of the shape that a micro-batch's are of
HEAD = f"{'':<16} {{unit:>8}}  {'x the first':<17} {'x PEFT':>6} {'tok/s':>6} {'GFLOP/s':>7} {'peak':>5}  losses"


@dataclass
class Arm:
    """Something that is timed, round by round."""

    name: str
    precision: str
    trials: int
    run: Callable[[int], float]  # a round's number -> a loss
    seconds: list[float] = field(default_factory=list)  # per trial
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Line:
    """What was found of an arm."""

    arm: Arm
    seconds: float  # of a trial
    to_first: list[float]  # by round, how many times as long the first arm took
    to_peft: float  # and PEFT in the same precision, in the middle
    tokens: float  # target tokens a second
    flops: float  # a second
    share: float  # of the speed of a product alone


def main() -> None:
    """Print the table."""
    parser = make_parser(__doc__, list(ALL_CASES), profiled_part="our largest pack's step")
    parser.add_argument("--packs", type=int, nargs="+", help="trials at once (each case has its own)")
    parser.add_argument("--method", choices=METHODS, default="prefix", help="what the trials train")
    parser.add_argument("--plain", action="store_true", help="PEFT's bf16 without autocast, too")
    options = parser.parse_args()
    names = options.case or list(CASES)
    if len(names) > 1:
        for name in names:
            subprocess.run(_command(name, options), check=True)
        return
    torch.set_num_threads(1)
    quieten()
    case, precisions = ALL_CASES[names[0]], options.precision or list(PRECISIONS)
    packs, device = options.packs or case.packs, torch.device(options.device)
    bench = Bench(case, precisions, packs, device, method=options.method, plain=options.plain)
    if options.profile:
        _profile(bench, precisions[-1], options.profile)
        return
    unit = "ms/trial" if device.type == "cuda" else "s/trial"
    method = "" if options.method == "prefix" else f"{options.method}, "
    print(f"{names[0]}: {method}batch {case.batch_size}, {device_name(options.device)}\n{HEAD.format(unit=unit)}")
    bench.show("training step", bench.arms(dev=None), options.rounds)
    bench.show(f"validation, {len(bench.dev)} rows", bench.arms(dev=bench.dev), max(1, options.rounds - 1))


def _command(name: str, options: argparse.Namespace) -> list[str]:
    """The same for one case."""
    command = [sys.executable, __file__, "--case", name, "--rounds", str(options.rounds), "--device", options.device]
    command += ["--packs", *map(str, options.packs)] if options.packs else []
    command += ["--profile", options.profile] if options.profile else []
    command += ["--method", options.method, *(["--plain"] if options.plain else [])]
    return command + [word for precision in options.precision or () for word in ("--precision", precision)]


def make_parser(description: str | None, cases: Sequence[str], *, profiled_part: str) -> argparse.ArgumentParser:
    """What every benchmark of one process is asked."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=cases, action="append", metavar="CASE", help="; ".join(cases))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="both")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", metavar="FILE", help=f"write a trace of {profiled_part} instead")
    return parser


class Bench:
    """The models of a case, and what is run on them."""

    def __init__(
        self,
        case: Case,
        precisions: Sequence[str],
        packs: Sequence[int],
        device: torch.device,
        *,
        method: str = "prefix",
        plain: bool = False,
    ) -> None:
        train, self.dev = case.data()
        self._setting = Setting(train, case.batch_size, case.preseqlen, device, method)
        self._precisions, self.packs, self._device = precisions, packs, device
        models = {name: make_model(case, PRECISIONS[name], device) for name in precisions}
        self._shape = describe(models[precisions[0]].config, models[precisions[0]].num_parameters())
        self.ours = {name: PackArm(model, self._setting, packs) for name, model in models.items()}
        self._peft = {name: self._peft_arm(case, name) for name in precisions}
        if plain and "bf16" in precisions:
            self._peft["bf16 plain"] = self._peft_arm(case, "bf16", autocast=False)

    def _peft_arm(self, case: Case, precision: str, *, autocast: bool = True) -> PeftArm:
        """PEFT on a model of its own, from our tensors where that can be."""
        arm = PeftArm(make_model(case, PRECISIONS[precision], self._device), self._setting, autocast=autocast)
        if self._setting.method == "prefix" and not self._shape.is_encoder_decoder:
            arm.start_from(self.ours[precision].prefix)
        return arm

    def arms(self, *, dev: Sequence[Row] | None) -> list[Arm]:
        """PEFT and our packs in every precision: of a training step, or of a validation on `dev`."""
        arms = []
        for name in self._precisions:
            for own_name, peft in self._peft.items():
                if own_name.split()[0] == name:
                    theirs = (lambda _, p=peft: p.validate(dev)) if dev else (lambda number, p=peft: p.step(number))
                    arms.append(Arm(f"PEFT {own_name}", name, 1, theirs))
            ours = self.ours[name]
            for size in self.packs:
                mine = (lambda _, o=ours, s=size: o.validate(dev, s)) if dev else (lambda _, o=ours, s=size: o.step(s))
                arms.append(Arm(f"pack of {size} {name}", name, size, mine))
        return arms

    def show(self, title: str, arms: Sequence[Arm], rounds: int) -> None:
        """Run the arms in turn and print their part of the table."""
        lines, peaks = self.run(arms, rounds, is_step=title == "training step")
        print(title)
        for line in lines:
            arm, on_gpu = line.arm, self._device.type == "cuda"
            print(
                f"{arm.name:<16} {line.seconds * (1e3 if on_gpu else 1):8.3f}  {spread(line.to_first):<17} "
                f"{line.to_peft:6.2f} {line.tokens:6.0f} {line.flops / 1e9:7.0f} {line.share:5.0%}  "
                f"{arm.losses[0]:.4f} {arm.losses[-1]:.4f}"
            )
        rates = ", ".join(f"{name} {peak / 1e9:.0f}" for name, peak in peaks.items())
        print(f"a matrix product alone: {rates} GFLOP/s\n", flush=True)

    def run(self, arms: Sequence[Arm], rounds: int, *, is_step: bool) -> tuple[list[Line], dict[str, float]]:
        """Run the arms in turn: what was found of each, and a product's FLOPs a second by precision."""
        found: dict[str, list[float]] = {name: [] for name in self._precisions}
        for number in range(rounds + 1):
            for name, speeds in found.items():
                speeds.append(self._product_speed(PRECISIONS[name]))
            for arm in arms:
                spent, loss = timed(lambda arm=arm, number=number: arm.run(number), self._device)
                arm.losses.append(loss)
                if number:
                    arm.seconds.append(spent / arm.trials)
        peaks = {name: statistics.median(speeds) for name, speeds in found.items()}
        steps = [self._setting.batch(number) for number in range(1, rounds + 1)] if is_step else [self.dev]
        work = statistics.mean(2 * forward_flops(self._shape, row_lengths(rows)) * len(rows) for rows in steps)
        targets = statistics.mean(sum(row.num_targets for row in rows) for rows in steps)
        lines = []
        for arm in arms:
            middle = statistics.median(arm.seconds)
            speed = (work if is_step else work / 2) / middle
            alike = next(other for other in arms if other.name == f"PEFT {arm.precision}")
            to_first, to_peft = (ratios(other.seconds, arm.seconds) for other in (arms[0], alike))
            share = speed / peaks[arm.precision]
            lines.append(Line(arm, middle, to_first, statistics.median(to_peft), targets / middle, speed, share))
        return lines, peaks

    def _product_speed(self, dtype: torch.dtype) -> float:
        rows, inner, columns = PEAK_SIZES
        left = torch.randn(rows, inner, device=self._device).to(dtype)
        right = torch.randn(columns, inner, device=self._device).to(dtype)

        def run() -> float:
            for _ in range(5):
                linear(left, right)
            return 0.0

        return 5 * 2.0 * rows * inner * columns / timed(run, self._device)[0]


def _profile(bench: Bench, precision: str, file: str) -> None:
    size = max(bench.packs)
    bench.ours[precision].step(size)  # warm
    print(f"a step of a pack of {size}, {precision}")
    with profiled(file):
        bench.ours[precision].step(size)


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """How many times as long the first took, round by round."""
    return [one / other for one, other in zip(theirs, ours, strict=True)]


def spread(found: Sequence[float]) -> str:
    """Their median, and the least and the most."""
    return f"{statistics.median(found):.2f} [{min(found):.2f}, {max(found):.2f}]"


def timed(run: Callable[[], Value], device: torch.device) -> tuple[float, Value]:
    """CPU seconds of this process, which other processes do not lengthen; on a GPU the clock's."""
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
    started = clock()
    value = run()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - started, value


def device_name(name: str) -> str:
    return torch.cuda.get_device_name() if name.startswith("cuda") else "one CPU thread"


if __name__ == "__main__":
    main()
