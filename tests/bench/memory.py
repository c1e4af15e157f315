"""Memory of a pack on a base of BART-large's shape (random weights), computed, and measured in a process of its own.

python tests/bench/memory.py               # the computed table
python tests/bench/memory.py --measure 1 4 # and two of its points measured: two training steps each, minutes
"""

import argparse
import resource
import subprocess
import sys

from prefixray.config.trials import PrefixTrial, TrialConfig
from prefixray.planning.memory import Load, pack_bytes

NUM_TRIALS = (1, 4, 16)
PREFIX = PrefixTrial(preseqlen=200, mid_dim=800, init_token=None)
SOURCE, TARGET = 512, 60  # tokens of an XSum row at most
BUDGET = 2048  # padded tokens of a micro-batch, as on a CPU
GIB = 2**30


def main() -> None:
    """Print the table, or (in the process that is measured) one figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=int, nargs="*", default=[], metavar="TRIALS", help="points to measure")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help="with gradient checkpointing")
    options = parser.parse_args()
    if options.alone is not None:
        print(_measured(options.alone, is_checkpointed=options.checkpointing))
        return
    flags = ["--checkpointing"] if options.checkpointing else []
    print(f"BART-large, fp32, preseqlen {PREFIX.preseqlen}, mid_dim {PREFIX.mid_dim}, {SOURCE} + {TARGET} tokens a row")
    print("trials  computed GiB  measured GiB")
    for count in sorted({*NUM_TRIALS, *options.measure}):
        measured = "-"
        if count in options.measure:
            command = [sys.executable, __file__, "--alone", str(count), *flags]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            measured = f"{int(output.split()[-1]) / GIB:.2f}"
        print(f"{count:6}  {_computed(count, options.checkpointing) / GIB:12.2f}  {measured:>12}", flush=True)


def _computed(num_trials: int, is_checkpointed: bool) -> int:
    from transformers import BartConfig

    from prefixray.model.describe import describe

    shape = describe(BartConfig(), 406_291_456)
    rows = max(1, BUDGET // (SOURCE + TARGET))
    load = Load(rows, rows * TARGET, rows * TARGET, is_checkpointed, rows * SOURCE)
    return pack_bytes([PREFIX] * num_trials, shape, load)


def _measured(num_trials: int, *, is_checkpointed: bool) -> int:
    """Peak resident memory of two steps, less what the process holds without a model."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    from prefixray.batching.rows import Row
    from prefixray.model.base import checkpointed, wrap_model
    from prefixray.training.member import Seeds
    from prefixray.training.pack import Pack

    before = _peak()
    base = wrap_model(BartForConditionalGeneration(BartConfig()), None, name="bart-large", digest="")  # type: ignore[arg-type]
    base = checkpointed(base) if is_checkpointed else base
    draw = torch.Generator().manual_seed(1)
    ids = [torch.randint(4, 50_000, (length,), generator=draw).tolist() for length in (SOURCE, TARGET + 2)]
    pack = Pack(base, [Row(tuple(ids[1]), 2, tuple(ids[0]))] * 4, pad_id=1, token_budget=BUDGET)
    config = TrialConfig(
        arm="prefix", num_steps=2, batch_size=max(1, 3 // num_trials), learning_rate=1e-4, method=PREFIX
    )
    keys = [f"prefix/{number}" for number in range(num_trials)]
    for number, key in enumerate(keys):
        pack.admit(key, config, Seeds.derive(number, 0))
    for _ in range(2):
        pack.step(keys)
    return _peak() - before


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
