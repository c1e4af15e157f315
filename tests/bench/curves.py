"""Dev-loss curves of random configurations, over whole schedules: what `policies.py` replays.

    python tests/bench/curves.py prefix_e2e lora_e2e mixed_e2e --workers 2
    python tests/bench/curves.py prefix_dialogsum --dialogsum FOLDER --workers 2
    python tests/bench/curves.py prefix_e2e --num 2 --steps 8 --out /tmp/curves    # a try
    python tests/bench/curves.py lora_e2e --skip 66 --num 82 --out /tmp/new        # 16 on which nothing was chosen

Each set is one JSON file in `prefixray/planning/curves/`, which `prefixray plan` reads too: a list of configurations,
each with its dev losses by step: over all of dev under `curve`, and over a sample of a quarter of it, on which a rung
may judge, under `sample`. A configuration that diverges is stopped, and its last training loss stands at all later
steps (null where that is not finite). The file is written anew after each pack, and what is in it is not trained
again, so that a run that was killed goes on. `about.txt` beside it gets the command and the machine. All
configurations of a set see the same batches in the same order; each pack trains on one base, each worker is a process
with one thread.

With `--samples` no configuration is added: those of a file that lack losses over the sample at the default's rungs
before the last are trained again up to there, for these.
"""

import argparse
import json
import math
import multiprocessing
import platform
import random
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rates import BATCH_SIZE, MID_DIM, SMOLLM2, WORDS, Trainer

from prefixray.config.trials import AdapterTrial, LoraTrial, PrefixTrial, TrialConfig
from prefixray.planning.recorded import FOLDER
from prefixray.results.command_run import source_commit
from prefixray.search.policies.choice import AUTO_SHARES
from prefixray.system.atomic_files import write_whole
from prefixray.system.logs import quieten
from prefixray.system.machine import cpu_fact

NUM_STEPS, WARMUP_SHARE = 40, 0.1
SHARES = tuple(step / 40 for step in (1, 2, 3, 4, 6, 8, 10, 13, 16, 20, 24, 28, 34, 40))  # of the schedule, reported

Values = dict[str, Any]


def draw_prefix(rng: random.Random, data: str) -> Values:
    """A prefix, flat or behind a network, at a rate of its parametrisation's range."""
    mid_dim = rng.choice([None, MID_DIM])
    return {
        "method": "prefix",
        "preseqlen": rng.choice([1, 5, 10, 20, 40, 80]),
        "mid_dim": mid_dim,
        "init_token": rng.choice([WORDS[data], "restaurant" if data == "e2e" else "summarize", None]),
        "lr": _log_uniform(rng, 1e-2, 3e-1) if mid_dim is None else _log_uniform(rng, 1e-4, 2e-3),
    }


def draw_lora(rng: random.Random, data: str) -> Values:
    """LoRA of some rank."""
    return {"method": "lora", "rank": rng.choice([2, 4, 8, 16, 32, 64]), "lr": _log_uniform(rng, 3e-4, 3e-2)}


def draw_any(rng: random.Random, data: str) -> Values:
    """A prefix, LoRA or an adapter."""
    adapter = {"method": "adapter", "bottleneck": rng.choice([8, 32, 128, 256]), "lr": _log_uniform(rng, 3e-4, 3e-2)}
    return rng.choice([draw_prefix(rng, data), draw_lora(rng, data), adapter])


@dataclass(frozen=True)
class CurveSet:
    """What is drawn, and on what data it is trained."""

    data: str
    draw: Callable[[random.Random, str], Values]
    seed: int


SETS = {
    "prefix_e2e": CurveSet("e2e", draw_prefix, 1),
    "lora_e2e": CurveSet("e2e", draw_lora, 2),
    "mixed_e2e": CurveSet("e2e", draw_any, 3),
    "prefix_dialogsum": CurveSet("dialogsum", draw_prefix, 4),
}


@dataclass(frozen=True)
class Work:
    """A pack of configurations, and how far it is trained."""

    data: str
    num_steps: int  # of the schedule
    reported: Sequence[int]  # steps
    pack: Sequence[Values]


def main(arguments: Sequence[str] | None = None) -> None:
    """Record what is missing of the sets that are named."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # its workers shall not outlive it
    folders = {"e2e": None, "webnlg": None, "dialogsum": options.dialogsum}
    for name in options.sets:
        if SETS[name].data != "e2e" and folders[SETS[name].data] is None:
            raise SystemExit(f"{name}: needs --{SETS[name].data} FOLDER")
    options.out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.workers, _begin, (options.base, folders, options.num_train or "all")) as pool:
        for name in options.sets:
            file = options.out / f"{name}.json"
            entries = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
            packs, started = _missing(name, entries, options), time.monotonic()
            num_before = sum(_has_samples(entry, options.steps) for entry in entries)
            if not packs:
                print(f"{name}: nothing is missing")
            for pack in pool.imap_unordered(_record, packs):
                entries = _with(entries, pack)
                lines = ",\n".join(json.dumps(entry, allow_nan=False) for entry in entries)
                write_whole(file, f"[\n{lines}\n]\n")
                minutes = (time.monotonic() - started) / 60
                print(f"{name}: {len(entries)} of {options.num - options.skip}, {minutes:.1f} min", flush=True)
                num_recorded = sum(_has_samples(entry, options.steps) for entry in entries) - num_before
                note = _note(name, num_recorded, minutes, options)
            if packs:
                with (options.out / "about.txt").open("a", encoding="utf-8") as about:
                    about.write(note)


def configurations(name: str, num: int, skip: int = 0) -> list[Values]:
    """The first configurations of a set but `skip`, those of one kind side by side: packs need little padding."""
    drawn = SETS[name]
    rng = random.Random(drawn.seed)
    return sorted([drawn.draw(rng, drawn.data) for _ in range(num)][skip:], key=json.dumps)


def trial(values: Values, num_steps: int) -> TrialConfig:
    """A drawn configuration as a trial's."""
    settings = {key: value for key, value in values.items() if key not in ("method", "lr")}
    kind: Any = {"prefix": PrefixTrial, "lora": LoraTrial, "adapter": AdapterTrial}[values["method"]]
    warmup_steps = round(WARMUP_SHARE * num_steps)
    recipe: Values = {"batch_size": BATCH_SIZE, "num_steps": num_steps, "warmup_steps": warmup_steps}
    return TrialConfig(arm="curves", learning_rate=values["lr"], method=kind(**settings), **recipe)


def reported(num_steps: int) -> list[int]:
    """The steps of a schedule at which dev is evaluated."""
    return sorted({max(1, round(share * num_steps)) for share in SHARES})


def _missing(name: str, entries: Sequence[Values], options: argparse.Namespace) -> list[Work]:
    """Packs of what is not in the file; with `--samples`, of what lacks losses over the sample there."""
    steps = reported(options.steps)
    if options.samples:
        left = [_values(entry) for entry in entries if not _has_samples(entry, options.steps)]
        steps = _sampled(options.steps)
    else:
        done = [_values(entry) for entry in entries]
        left = [values for values in configurations(name, options.num, options.skip) if values not in done]
    packs = [left[start : start + options.pack] for start in range(0, len(left), options.pack)]
    return [Work(SETS[name].data, options.steps, steps, pack) for pack in packs]


def _sampled(num_steps: int) -> list[int]:
    """The rungs of the default at which a sample is compared."""
    return [max(1, round(share * num_steps)) for share in AUTO_SHARES[:-1]]


def _has_samples(entry: Values, num_steps: int) -> bool:
    return entry.get("sample", {}).keys() >= {str(step) for step in _sampled(num_steps)}


def _values(entry: Values) -> Values:
    """A configuration without what was recorded of it."""
    return {key: value for key, value in entry.items() if key not in ("curve", "sample")}


def _with(entries: Sequence[Values], pack: Sequence[Values]) -> list[Values]:
    """The entries with those of a pack: what is known of a configuration stays."""
    known = {json.dumps(_values(entry)): entry for entry in entries}
    for entry in pack:
        key = json.dumps(_values(entry))
        before = known.get(key, {})
        sample = entry["sample"] | before.get("sample", {})
        known[key] = {**entry, **before, "sample": sample}
    return list(known.values())


def _begin(base: str, folders: dict[str, str | None], num_train: Any) -> None:  # noqa: ANN401
    global _trainer
    torch.set_num_threads(1)
    quieten()
    _trainer = Trainer(base, folders, num_train)


def _record(work: Work) -> list[Values]:
    configs = {str(number): trial(values, work.num_steps) for number, values in enumerate(work.pack)}
    followed, _ = _trainer.follow(work.data, configs, work.reported)
    lines = []
    for values, each in zip(work.pack, followed.values(), strict=True):
        lasting = each.training_losses[-1]
        curves = {"curve": each.curve, "sample": each.sample}
        lines.append(values | {name: _whole(curve, lasting, work.reported) for name, curve in curves.items()})
    return lines


def _whole(curve: dict[int, float], lasting: float, steps: Sequence[int]) -> dict[str, float | None]:
    """The curve at all these steps, as JSON has them; after a trial was stopped, its last training loss."""
    losses = {step: curve.get(step, lasting) for step in steps}
    return {str(step): round(loss, 4) if math.isfinite(loss) else None for step, loss in losses.items()}


def _note(name: str, num_recorded: int, minutes: float, options: argparse.Namespace) -> str:
    command = shlex.join(["python", "tests/bench/curves.py", *sys.argv[1:]])
    machine = f"{cpu_fact('model name') or platform.processor()}, {options.workers} workers of one thread"
    facts = f"torch {torch.__version__}, commit {source_commit()}, {time.strftime('%Y-%m-%d', time.gmtime())}"
    return f"{name}.json: {num_recorded} configurations in {minutes:.1f} min by `{command}` on {machine}; {facts}\n"


def _log_uniform(rng: random.Random, low: float, high: float) -> float:
    return float(f"{low * (high / low) ** rng.random():.3g}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", choices=SETS, metavar="SET", help="; ".join(SETS))
    parser.add_argument("--dialogsum", metavar="FOLDER", help="its files, for prefix_dialogsum")
    parser.add_argument("--base", default=SMOLLM2)
    parser.add_argument("--num", type=int, default=64, help="configurations of each set")
    parser.add_argument("--skip", type=int, default=0, help="of these, how many to leave out")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="of a schedule; one file has one")
    parser.add_argument("--num-train", type=int, help="examples to train on; without, all, as a sweep has them")
    parser.add_argument("--pack", type=int, default=8, help="configurations that are trained together")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--samples", action="store_true", help="of recorded configurations that have none; see above")
    parser.add_argument("--out", type=Path, default=FOLDER)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
