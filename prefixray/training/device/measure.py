"""Measures what a step takes on a GPU: a small one and a large one of a trial that is there for that alone."""

import logging
import math
import time
from collections.abc import Sequence

import torch

from prefixray.batching.lengths import Lengths
from prefixray.batching.rows import Row
from prefixray.config.trials import PrefixTrial, TrialConfig
from prefixray.system.machine import available_bytes, give_back
from prefixray.training.device.costs import Costs, MeasuredStep, costs_of
from prefixray.training.member import Seeds
from prefixray.training.pack import Pack

logger = logging.getLogger(__name__)

LARGE = 1 << 14  # tokens of the large step, where they have room
METHOD = PrefixTrial(preseqlen=1, mid_dim=None, init_token=None)
_KEY = "measured"


def measure(pack: Pack, mean: Lengths) -> None:
    """Have a pack on a GPU, which holds no trial yet, cut rows by what two steps take there.

    `mean` is how long the rows are on average. Where not even one row has room, nothing changes: a trial will tell its
    user so.
    """
    costs = _costs(pack, mean)
    if costs is not None:
        pack.layout.costs = costs
        pack.token_budget = pack.first_budget = costs.token_budget


def _costs(pack: Pack, mean: Lengths) -> Costs | None:
    assert not pack.members, "trials would be measured, too"
    rows, length = pack.train, max(1.0, mean.encoder + mean.decoder)
    enough = 2 * math.ceil(length * len(rows))  # tokens, for all rows in one piece
    free, first_budget = free_bytes(pack.base.device), pack.token_budget
    num_rows = max(2, min(len(rows), round(LARGE / length)))
    small = _step(pack, rows, 1, enough)
    large = None if small is None else _step(pack, rows, num_rows, enough)
    while small is not None and large is None and num_rows > 2:
        num_rows //= 2
        large = _step(pack, rows, num_rows, enough)
    pack.token_budget = first_budget
    if small is None or large is None or large.tokens <= small.tokens:
        return None
    costs = costs_of(small, large, width=pack.base.shape.hidden_size, free_bytes=free)
    logger.info(
        "measured: %.1f ms for a step of %d tokens, %.1f ms and %.2f GiB for %d; micro-batches of up to %d tokens",
        *(1e3 * small.seconds, small.tokens, 1e3 * large.seconds, large.num_bytes / 2**30, large.tokens),
        costs.token_budget,
    )
    return costs


def free_bytes(device: torch.device) -> int:
    """Memory of a device that this process may still take."""
    if device.type != "cuda":
        give_back()  # what loading has freed
        return available_bytes()
    free, total = torch.cuda.mem_get_info(device)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(device)) - torch.cuda.memory_reserved(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, min(free, allowed) + unused)


def _step(pack: Pack, rows: Sequence[Row], num_rows: int, enough: int) -> MeasuredStep | None:
    """A step of a trial over so many rows; the first one warms up. None where they do not fit in one piece."""
    device, recipe = pack.base.device, {"num_steps": 2, "learning_rate": 1e-6}
    config = TrialConfig(arm=_KEY, method=METHOD, batch_size=num_rows, **recipe)  # type: ignore[arg-type]
    pack.token_budget = budget = enough * (1 + num_rows // len(rows))
    member = pack.admit(_KEY, config, Seeds.derive(0, 0), rows=rows)
    try:
        tokens = sum(sum(row.lengths) for row in member.next_rows())
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        results = [pack.step([_KEY])[_KEY]]
        num_bytes = torch.cuda.max_memory_allocated(device) - before
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        results.append(pack.step([_KEY])[_KEY])
        torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
    finally:
        pack.drop(_KEY)
        torch.cuda.empty_cache()
    fits = pack.token_budget == budget and all(result.failed is None for result in results)
    return MeasuredStep(tokens, seconds, num_bytes) if fits else None
