"""What a training step and a decoded token ask of a GPU, counted on a pretended one, and what that would take an H100.

    python tests/bench/launches.py                         # gpt2-medium's shape, E2E, batch 10; minutes on a CPU
    python tests/bench/launches.py --arms "network 16" "lora 16" --top 12    # and the most frequent operators of each
    python tests/bench/launches.py --small                 # two arms of a tiny shape, for trying this file
    python tests/bench/launches.py --json tests/bench/day/counted.json   # for gpu_day.py to compare with

Operators (a launch each), uploads, and operators for which the host waits are counted on models of one and two narrow
layers: they are linear in the number of layers and do not depend on the width. Bytes (what operators read and write)
and FLOPs are counted, too: they are linear in layers and vocabulary and quadratic in the width, so that counts at
eight small shapes give them for any shape. A ninth shape shows whether all of that holds.

Attention counts as one operator, as CUDA's fused ones are, with the bytes of their arguments and results: flash
attention's are queries, keys, values, output and sums. The CPU's operators stand for them here, so what CUDA's kernels
move inside of one is left out. The milliseconds are a model, not a measurement: the larger of what the host takes to
launch, 5 or 10 us each, and what the device takes, FLOPs at 70 % of 790 TFLOP/s and bytes at 3.0 TB/s, one after the
other.
"""

import argparse
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from support.pretend_gpu import device

if "torch" not in sys.modules:  # else somebody wants the steps alone, on the device that there is
    device.pretend()

import numpy as np
import torch
from arms import PeftArm, Setting
from cases import EOS, e2e, gpt2
from decode import Numbers, number_template
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from prefixray.config.schema import DecodingSettings
from prefixray.config.trials import AdapterTrial, AnyTrial, LoraTrial, PrefixTrial, TrialConfig
from prefixray.decoding.generate import generate
from prefixray.model.base import wrap_model
from prefixray.model.fast_cuda import unpadded
from prefixray.system.logs import quieten
from prefixray.training import loss
from prefixray.training.member import Seeds
from prefixray.training.pack import Pack

HEADS, BATCH_SIZE, PREFIX, BEAMS = 16, 10, 5, 5
METHODS: dict[str, AnyTrial] = {
    "network": PrefixTrial(preseqlen=PREFIX, mid_dim=512, init_token=None),
    "flat": PrefixTrial(preseqlen=PREFIX, mid_dim=None, init_token=None),
    "lora": LoraTrial(rank=4),
    "adapter": AdapterTrial(bottleneck=64),
}
ARMS = (
    "PEFT 1",
    *(f"{name} {count}" for name in ("network", "flat") for count in (1, 4, 16, 64)),
    *(f"{name} {count}" for name in ("lora", "adapter") for count in (1, 4, 16)),
    "decode 1",
    "decode 16",
)
FLOPS_A_SECOND, BYTES_A_SECOND, LAUNCH_SECONDS = 0.7 * 790e12, 3.0e12, (5e-6, 10e-6)
MASK_MULTIPLE = 8  # of numbers, at which memory-efficient attention wants the rows of a mask
BLOCK, VOCABULARY = loss.BLOCK["cuda"], 50257  # of GPT-2: the head works in blocks of so many logits


@dataclass(frozen=True)
class Shape:
    """Of a model."""

    layers: int
    width: int
    vocabulary: int

    def terms(self) -> list[float]:
        """What counts are sums of: those of the layers, and those of embeddings and head."""
        width, vocabulary = self.width / 64, self.vocabulary / 1000
        of_width = (1.0, width, width**2)
        return [*of_width, *(self.layers * power for power in of_width), vocabulary, vocabulary * width]


SHAPES = [Shape(1, width, 800) for width in (32, 64)]
SHAPES += [Shape(layers, width, 400) for layers in (1, 2) for width in (32, 64, 96)]
CHECK = Shape(4, 128, 1200)
MEDIUM = Shape(24, 1024, VOCABULARY)


@dataclass(frozen=True)
class Count:
    """Of a step of all trials, or of a token of all hypotheses."""

    launches: float
    uploads: float
    waits: float
    megabytes: float
    gigaflops: float
    operators: Counter[str]

    def numbers(self) -> list[float]:
        return [self.launches, self.uploads, self.waits, self.megabytes, self.gigaflops]

    def seconds(self, launch: float) -> float:
        """Of an H100, by the model."""
        of_device = 1e9 * self.gigaflops / FLOPS_A_SECOND + 1e6 * self.megabytes / BYTES_A_SECOND
        return max(self.launches * launch, of_device)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--layers", type=int, default=MEDIUM.layers)
    parser.add_argument("--top", type=int, default=0, help="operators to name, of each arm")
    parser.add_argument("--json", type=Path, help="keep the counts of these arms in this file, too")
    parser.add_argument("--small", action="store_true", help="a small shape and few arms")
    options = parser.parse_args()
    torch.set_num_threads(1)
    quieten()
    torch.nn.functional.scaled_dot_product_attention = fused_attention  # type: ignore[assignment]
    unpadded.knows = lambda dtype, head_dim: dtype == torch.bfloat16  # type: ignore[assignment]  # small shapes' heads, too
    arms = ("PEFT 1", "network 4") if options.small else options.arms
    shape = CHECK if options.small else replace(MEDIUM, layers=options.layers)
    print(f"{shape}, counted on a pretended GPU; ms: modelled for an H100, per trial, launches of 5 and 10 us")
    print(f"{'':<12} launches uploads  waits       GB   TFLOP      ms a trial        x PEFT")
    of_peft: list[float] = []
    for arm in arms:
        found, trials = extrapolated(arm, shape), int(arm.split()[1])
        ms = [1e3 * found.seconds(launch) / trials for launch in LAUNCH_SECONDS]
        of_peft = ms if arm == "PEFT 1" else of_peft
        times = [] if arm.startswith("decode") or not of_peft else [a / b for a, b in zip(of_peft, ms, strict=True)]
        line = f"{arm:<12} {found.launches:8.0f} {found.uploads:7.0f} {found.waits:6.0f} {found.megabytes / 1e3:8.2f}"
        line += f" {found.gigaflops / 1e3:7.2f}  {ms[0]:6.2f} {ms[1]:7.2f} "
        print(line + " ".join(f"{ratio:6.2f}" for ratio in times), flush=True)
        for name, number in found.operators.most_common(options.top):
            print(f"{'':<14}{number:6d} {name}")
        if options.json:
            kept = json.loads(options.json.read_text()) if options.json.exists() else {}
            names = "launches", "uploads", "waits", "megabytes", "gigaflops"
            kept[arm] = dict(zip(names, (round(number, 1) for number in found.numbers()), strict=True))
            options.json.write_text(json.dumps(kept, indent=1) + "\n")


def extrapolated(arm: str, shape: Shape) -> Count:
    """The counts of an arm at a shape; a shape that took no part in them and is missed by over 1 % is told."""
    counts = [counted(arm, one) for one in SHAPES]
    weights = np.linalg.solve(
        np.array([one.terms() for one in SHAPES]), np.array([count.numbers() for count in counts])
    )
    of_check = np.array(counted(arm, CHECK).numbers())
    apart = (np.array(CHECK.terms()) @ weights - of_check) / of_check.clip(1e-9)
    if np.abs(apart).max() > 0.01:
        print(f"{arm}: do not rely on it: launches, uploads, waits, MB, GFLOP of a ninth shape missed by {apart}")
    return Count(*(np.array(shape.terms()) @ weights), operators=counts[-1].operators)  # of two layers


def counted(arm: str, shape: Shape) -> Count:
    """The counts of the second step, or of one more token."""
    loss.BLOCK["cuda"] = BLOCK * shape.vocabulary // VOCABULARY  # as many blocks as with GPT-2's vocabulary
    name, trials = arm.split()[0], int(arm.split()[1])
    torch.manual_seed(1)
    model = gpt2(shape.layers, shape.width, HEADS, shape.vocabulary).requires_grad_(False)
    model = model.to("cuda", torch.bfloat16).train(False)
    if name == "decode":
        token = decoder(model, trials)
        shorter, longer = (count_one(lambda length=length: token(length)) for length in (4, 8))
        numbers = [(more - less) / 4 for less, more in zip(shorter.numbers(), longer.numbers(), strict=True)]
        return Count(*numbers, operators=longer.operators - shorter.operators)
    step = peft_step(model) if name == "PEFT" else pack_step(model, METHODS[name], trials)
    step()
    return count_one(step)


def count_one(run: Callable[[], object]) -> Count:
    """Count in one run; FLOPs in another."""
    with device.counting():
        run()
    launched, waited, moved = Counter(device.launched), Counter(device.waited), sum(device.moved.values())
    flops = {op: formula for op, formula in ATTENTION.items()}
    with FlopCounterMode(display=False, custom_mapping=flops) as counter:  # type: ignore[arg-type]
        run()
    uploads = waited.pop("upload", 0)
    operators = launched + Counter({f"{name} (waits)": count for name, count in waited.items()})
    sums = [launched.total(), uploads, waited.total(), moved / 1e6, counter.get_total_flops() / 1e9]
    return Count(*map(float, sums), operators=operators)


def peft_step(model: Any) -> Callable[[], object]:  # noqa: ANN401
    """PEFT's prefix tuning with its projection on a model that is bf16 as a whole."""
    setting, steps = Setting(e2e()[0], BATCH_SIZE, PREFIX, model.device), itertools.count()
    arm = PeftArm(model, setting, autocast=False)
    return lambda: arm.step(next(steps) % 2)


def pack_step(model: Any, method: AnyTrial, trials: int) -> Callable[[], object]:  # noqa: ANN401
    """A step of a pack of trials of one method, always over the same rows."""
    pack, keys = pack_of(model, method, trials)
    for member in pack.members.values():
        rows = [member.next_rows(), member.next_rows()]
        member.next_rows = lambda ahead=0, rows=rows: rows[0]  # type: ignore[method-assign, misc]
    return lambda: pack.step(keys)


def pack_of(model: Any, method: AnyTrial, trials: int) -> tuple[Pack, list[str]]:  # noqa: ANN401
    """A pack of trials of one method that see different rows, and their keys."""
    pack, keys = Pack(wrap_model(model, None, name="random", digest=""), e2e()[0], pad_id=EOS), []  # type: ignore[arg-type]
    for replicate in range(trials):
        recipe = {"num_steps": 10**6, "batch_size": BATCH_SIZE, "learning_rate": 1e-6}
        recipe["max_grad_norm"] = 1e-6  # clipped at every shape: whether a norm is above a limit is linear in nothing
        config = TrialConfig(arm="counted", method=method, **recipe)  # type: ignore[arg-type]
        keys.append(f"{replicate}")
        pack.admit(keys[-1], config, Seeds.derive(1, replicate))
    return pack, keys


def decoder(model: Any, trials: int) -> Callable[[int], object]:  # noqa: ANN401
    """A beam search for one source under each of some trials' prefixes, to hypotheses of a given length."""
    base = replace(wrap_model(model, None, name="random", digest=""), tokenizer=Numbers())  # type: ignore[arg-type]
    pack, inserts = Pack(base, e2e()[0], pad_id=EOS), []
    for replicate in range(trials):
        config = TrialConfig(arm="counted", method=METHODS["flat"], learning_rate=1e-3, num_steps=1)
        member = pack.admit(f"{replicate}", config, Seeds.derive(1, replicate))
        inserts.append(member.method.insert(None))
    row = e2e()[0][0]
    source = " ".join(map(str, row.ids[: row.num_prompt]))

    def run(length: int) -> object:
        decoding = DecodingSettings(num_beams=BEAMS, min_new_tokens=length, max_new_tokens=length)
        return generate(base, number_template(base.tokenizer), [source] * trials, inserts, decoding)

    return run


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention in one operator and one for its backward, as CUDA has it; a mask of bools becomes one of numbers.

    As in torch, a mask whose rows do not lie at multiples of 8 is copied for memory-efficient attention.
    """
    assert dropout_p == 0.0 and not enable_gqa
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
    if attn_mask is not None and any(step % MASK_MULTIPLE for step in attn_mask.stride()[:-1]):
        num_keys = attn_mask.shape[-1]
        fillers = MASK_MULTIPLE - num_keys % MASK_MULTIPLE
        attn_mask = torch.nn.functional.pad(attn_mask, (0, fillers))[..., :num_keys]
    options = {"attn_mask": attn_mask, "scale": scale}
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, **options
    )[0]
    return out


def _forward_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


def _backward_flops(
    grad: object, query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object
) -> int:
    return 5 * sdpa_flop_count(query, key, value) // 2  # five products, the forward has two


ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward_flops,
}

if __name__ == "__main__":
    main()
