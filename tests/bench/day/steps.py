"""Training steps and decoding beside PEFT's: times, losses, launches, memory, cuDNN's attention."""

import argparse
import gc
import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from arms import PackArm, Setting, method_of
from cases import ALL_CASES, Case, make_model
from decode import Bench as DecodingBench
from huggingface_hub import try_to_load_from_cache
from launches import LAUNCH_SECONDS, METHODS, Count, count_one, pack_step, peft_step
from table import Bench, timed
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from day import trace
from day.result import Result
from prefixray.batching.lengths import row_lengths
from prefixray.model.describe import describe
from prefixray.planning.memory import Load, pack_bytes

COUNTED = Path(__file__).with_name("counted.json")  # by launches.py, on a pretended GPU
NAMES = {"gpt2-medium": "gpt2-medium", "GPT-2-small": "gpt2", "bart-large": "facebook/bart-large"}  # on the hub
PACKS: Sequence[Sequence[int]] = ((1, 4, 16), (64,))  # a bench each: memory for few
ROUNDS = 3
GIB = 2**30
DEVICE = torch.device("cuda")
MEDIUM = "gpt2-medium, E2E, 5"


def table(result: Result, is_pretended: bool, *, case: str, method: str = "prefix") -> None:
    """Steps of PEFT and of packs."""
    chosen = _case("tiny" if is_pretended else case, result)
    methods = ("prefix", "lora") if is_pretended else (method,)
    for trained in methods:
        for packs in ((1, 2), (4,)) if is_pretended else PACKS:
            _start_afresh()
            bench = Bench(chosen, ["bf16"], packs, DEVICE, method=trained, plain=True)
            lines, peaks = bench.run(bench.arms(dev=None), ROUNDS, is_step=True)
            plain = next(line.seconds for line in lines if line.arm.name == "PEFT bf16 plain")
            for line in lines:
                row = {"arm": line.arm.name, "ms a trial": 1e3 * line.seconds, "x PEFT": line.to_peft}
                row |= {"x plain": plain / line.seconds, "target tokens/s": line.tokens, "TFLOP/s": line.flops / 1e12}
                row |= {"first loss": line.arm.losses[0], "last loss": line.arm.losses[-1]}
                result.row(f"{trained}, packs of {', '.join(map(str, packs))}", row)
            result.say(**{f"a product alone, beside packs of {packs[-1]}, in TFLOP/s": peaks["bf16"] / 1e12})
            del bench, lines, line


def _case(name: str, result: Result) -> Case:
    """A case with the weights of the cache, where they are there."""
    case, hub_name = ALL_CASES[name], NAMES.get(name.split(",")[0], "")
    is_cached = hub_name and isinstance(try_to_load_from_cache(hub_name, "model.safetensors"), str)
    result.say(weights=f"those of {hub_name}" if is_cached else "random: the cache has none", ids="random")
    if not is_cached:
        return case
    kind = AutoModelForSeq2SeqLM if "bart" in hub_name else AutoModelForCausalLM
    return replace(case, model=lambda: kind.from_pretrained(hub_name, local_files_only=True))


def launches(result: Result, is_pretended: bool) -> None:
    """Launches, uploads and waits of a step, by the profiler and as they were counted."""
    counted = json.loads(COUNTED.read_text())
    for arm in ("PEFT 1", "network 1") if is_pretended else counted:
        _start_afresh()
        step = _step_of(arm, "tiny" if is_pretended else MEDIUM)
        for _ in range(3):
            step()
        took = statistics.median(timed(step, DEVICE)[0] for _ in range(5))
        seen = profiled_step(step, is_pretended)
        row: dict[str, object] = {"arm": arm, "ms": 1e3 * took}
        row |= {"launches": seen.launches, "uploads": seen.uploads, "waits": seen.waits}
        row |= {"device's ms": 1e3 * seen.busy, "busy": f"{seen.busy / took:.0%}"}
        result.row("Steps", row | (_counted_now(step) if is_pretended else _counted_before(counted[arm])))
        for kernel, times, seconds in seen.kernels[:8]:
            result.row(f"Most time, {arm}", {"what": kernel[:100], "times": times, "ms": 1e3 * seconds})
        del step


def _step_of(arm: str, case: str) -> Callable[[], object]:
    """A step of PEFT without autocast, or of a pack."""
    model = make_model(ALL_CASES[case], torch.bfloat16, DEVICE)
    name, trials = arm.split()[0], int(arm.split()[1])
    return peft_step(model) if name == "PEFT" else pack_step(model, METHODS[name], trials)


def profiled_step(step: Callable[[], object], is_pretended: bool) -> trace.Seen:
    """What torch's profiler sees of a step; nothing on a pretended GPU, which has no kernels."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [] if is_pretended else [torch.profiler.ProfilerActivity.CUDA]
    with tempfile.TemporaryDirectory() as folder:
        with torch.profiler.profile(activities=activities) as profiler:
            step()
            torch.cuda.synchronize()
        profiler.export_chrome_trace(f"{folder}/trace.json")
        return trace.seen(json.loads(Path(folder, "trace.json").read_text())["traceEvents"])


def _counted_now(step: Callable[[], object]) -> dict[str, object]:
    count = count_one(step)
    return {f"{name} counted": round(getattr(count, name)) for name in ("launches", "uploads", "waits")}


def _counted_before(counted: dict[str, float]) -> dict[str, object]:
    count = Count(**counted, operators=Counter())
    modelled = " to ".join(f"{1e3 * count.seconds(launch):.1f}" for launch in LAUNCH_SECONDS)
    names = "launches", "uploads", "waits"
    return {**{f"{name} counted": round(counted[name]) for name in names}, "ms modelled": modelled}


def memory(result: Result, is_pretended: bool) -> None:
    """The peak of packs beside what is computed from sizes."""
    case = ALL_CASES["tiny" if is_pretended else MEDIUM]
    for method in ("prefix", "lora"):
        for size in (1, 4) if is_pretended else (1, 4, 16, 64):
            _start_afresh()
            result.row("Packs", _peak_of(case, method, size))


def _peak_of(case: Case, method: str, size: int) -> dict[str, object]:
    """Memory of two steps of a pack."""
    torch.cuda.reset_peak_memory_stats()
    model = make_model(case, torch.bfloat16, DEVICE)
    setting = Setting(case.data()[0], case.batch_size, case.preseqlen, DEVICE, method)
    arm = PackArm(model, setting, (size,))
    for _ in range(2):
        arm.step(size)
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()

    # The largest micro-batch: all rows, or as many as the pack's budget allows.
    rows = setting.batch(0) * size
    lengths, shape = row_lengths(rows), describe(model.config, model.num_parameters())
    tokens = round(lengths.decoder * len(rows))
    share = min(1.0, arm.pack.token_budget / tokens)
    load = Load(max(1, int(share * len(rows))), round(share * tokens), round(share * lengths.targets * len(rows)))
    computed = pack_bytes([method_of(setting, shape)] * size, shape, load, weight_bytes=2, on_gpu=True)
    row = {"pack": f"{size} {method}", "peak in GiB": peak / GIB, "reserved": reserved / GIB}
    row |= {"computed": computed / GIB, "computed / peak": computed / peak}
    return row | {"tokens": tokens, "of a piece, at most": arm.pack.token_budget}


def cudnn(result: Result, is_pretended: bool) -> None:
    """The first steps of a pack with cuDNN's attention and without."""
    case, size = ALL_CASES["tiny" if is_pretended else MEDIUM], 2 if is_pretended else 16
    for is_allowed in (False, True):
        _start_afresh()
        torch.backends.cuda.enable_cudnn_sdp(is_allowed)
        setting = Setting(case.data()[0], case.batch_size, case.preseqlen, DEVICE)
        arm = PackArm(make_model(case, torch.bfloat16, DEVICE), setting, (size,))
        times = [timed(partial(arm.step, size), DEVICE) for _ in range(4 if is_pretended else 8)]
        del arm
        row: dict[str, object] = {"what": "allowed" if is_allowed else "not allowed"}
        row |= {f"step {number}": 1e3 * seconds for number, (seconds, _) in enumerate(times, start=1)}
        result.row(f"ms of steps of a pack of {size}", row | {"last loss": times[-1][1]})


def decode(result: Result, is_pretended: bool) -> None:
    """Beam search, by PEFT one at a time and in batches, and by us."""
    trials, beams, sources, new_tokens = (2, 2, 4, 4) if is_pretended else (16, 5, 16, 30)
    sizes = argparse.Namespace(trials=trials, beams=beams, sources=sources, new_tokens=new_tokens, device=DEVICE)
    bench = DecodingBench(_case("tiny" if is_pretended else MEDIUM, result), ["bf16"], sizes)
    for line in bench.run(1):
        row = {"arm": line.arm.name, "sentences/s": line.speed, "x one at a time": line.to_one}
        row |= {"x batched": line.to_batched, "as PEFT's": f"{line.num_same} of {len(line.arm.found)}"}
        result.row("Beam search", row)


def _start_afresh() -> None:
    """Give back what the last arm has left; steps run without cuDNN's attention, as in a worker."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.backends.cuda.enable_cudnn_sdp(False)


PARTS: dict[str, Any] = {
    "table-medium": partial(table, case=MEDIUM),
    "table-lora": partial(table, case=MEDIUM, method="lora"),
    "table-bart": partial(table, case="bart-large, DialogSum, 200"),
    "table-small": partial(table, case="GPT-2-small, E2E, 5"),
    "table-6": partial(table, case="6-layer, E2E, 5"),
    "launches": launches,
    "memory": memory,
    "cudnn": cudnn,
    "decode": decode,
}
