"""Speeds are kept, and are the work of a sweep over its seconds."""

import json
import math
from pathlib import Path

from support.small_plan import speed

from prefixray.batching.lengths import Lengths
from prefixray.config.schema import SweepConfig
from prefixray.model.base import Base
from prefixray.planning.flops import decoding_flops, forward_flops
from prefixray.planning.speeds import load_speeds, measured_speeds, store_speeds
from prefixray.training.facts import WorkerFacts


def test_the_newest_speed_of_a_kind_is_kept_and_a_damaged_cache_is_an_empty_one(cache: Path) -> None:
    store_speeds([speed("a", "shared", 1e9), speed("b", "shared", 2e9)])
    store_speeds([speed("a", "shared", 3e9)])
    assert {one.base: one.flops_per_second for one in load_speeds()} == {"a": 3e9, "b": 2e9}
    (cache / "throughput.json").write_text('[{"base": 1}]')
    assert load_speeds() == []


def test_the_speed_of_a_sweep_is_its_work_over_its_seconds(
    config: SweepConfig, tiny_llama: Base, tmp_path: Path
) -> None:
    lengths, shape = Lengths(0, 20, 8), tiny_llama.shape
    facts = WorkerFacts(
        base_digest="0",
        num_parameters=30_000,
        precision="fp32",
        data_digest="0",
        num_test_total=2,
        metrics=("bleu",),
        device="cpu",
        num_threads=1,
        shape=shape,
        free_bytes=1 << 30,
        num_dev=2,
        num_test=2,
        train_lengths=lengths,
        dev_lengths=lengths,
    )
    recipe = {"learning_rate": 1e-3, "num_steps": 8, "batch_size": 2, "grad_accumulation": 3}
    trial = {
        **recipe,
        "arm": "prefix",
        "method": {"method": "prefix", "preseqlen": 1, "mid_dim": 2, "init_token": None},
    }
    metrics = {"train/seconds": 5.0, "train/tokens": 192}
    folder = tmp_path / "trials" / "prefix" / "0"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"config": trial, "step": 4, "metrics": metrics, "replicate": 0}))
    (one,) = measured_speeds(config, tmp_path, facts, since=0.0)
    once = forward_flops(shape, lengths)
    assert one.flops == 4 * 6 * 2 * once + 2 * 2 * once, "four steps of six rows, and dev twice: at 2 and at 4"
    assert (one.kind, one.seconds, one.target_tokens, one.flops_per_second) == ("shared", 5.0, 192, one.flops / 5)
    assert measured_speeds(config, tmp_path, facts, since=math.inf) == []
    (three,) = measured_speeds(config, tmp_path, facts, since=0.0, num_documents=3)
    assert three.flops == 3 * one.flops, "a trial of the search trains on each of three documents"
    for name in ("untuned", "prefix-0-1@a", "in_context@a"):
        decoded = tmp_path / "final" / name / "test.json"
        decoded.parent.mkdir(parents=True)
        decoded.write_text(json.dumps({"seconds": 1.0}))
    _, decode = measured_speeds(config, tmp_path, facts, since=0.0, num_documents=4)
    final = config.final
    each = decoding_flops(shape, lengths.source, num_beams=final.num_beams, max_new_tokens=final.max_new_tokens)
    assert (decode.seconds, decode.flops) == (2.0, 2 * each + 2 * each / 4), "two sources, and those of one of four"
