"""Make an artifact of a checkpoint that the original (XiangLi1999/PrefixTuning) has written.

python -m prefixray.convert data2textprefixtune_y_5 --base gpt2-medium --out my-prefix
python -m prefixray.convert xsumprefixtune_y_200/pytorch_model.bin --base facebook/bart-large --out my-prefix
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefixray.artifacts.record import check_new
from prefixray.data.catalog import CATALOG, default_task
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.system.exit_codes import leave
from prefixray.system.logs import quieten


def main(argv: Sequence[str] | None = None) -> int:
    """Write it and say how it is decoded; 2 where the user has something to mend."""
    options = _parser().parse_args(argv)
    quieten()
    try:
        check_new(options.out)
        from prefixray.artifacts.li_liang import convert_checkpoint
        from prefixray.artifacts.store import save_artifact
        from prefixray.model.base import load_base

        base = load_base(options.base)
        name = options.task or default_task(is_encoder_decoder=base.shape.is_encoder_decoder)
        task = TaskConfig.model_validate({"name": name, "path": options.task_path or None})
        tensors, record = convert_checkpoint(options.checkpoint, base, task)
        save_artifact(options.out, tensors, record)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    method = record["config"]["method"]
    count = sum(tensor.numel() for tensor in tensors.values())
    print(f"{options.checkpoint} -> {options.out}")
    print(f"{method['preseqlen']} positions at {method['sites']}, {count:,} numbers, positions {record['positions']}\n")
    print(f"python -m prefixray.decode {options.out} --split test")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m prefixray.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="the folder with pytorch_model.bin, or that file")
    parser.add_argument("--base", required=True, help="what it was trained on: a hub id or a folder")
    parser.add_argument("--out", required=True, type=Path, help="the artifact's folder, a new one")
    parser.add_argument(
        "--task", choices=tuple(CATALOG), help="what it was trained for (e2e; of an encoder-decoder xsum)"
    )
    parser.add_argument("--task-path", help="where that task's data lies, as task.path of a sweep file")
    return parser


if __name__ == "__main__":
    leave(main)
