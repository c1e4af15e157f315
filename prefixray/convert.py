"""Make an artifact of a checkpoint that the original (XiangLi1999/PrefixTuning) has written.

prefixray convert data2textprefixtune_y_5 --base gpt2-medium --out my-prefix
prefixray convert xsumprefixtune_y_200/pytorch_model.bin --base facebook/bart-large --out my-prefix
"""

from pathlib import Path
from typing import Annotated

import typer

from prefixray.artifacts.record import check_new
from prefixray.config.scales import papers_form
from prefixray.data.catalog import TaskName, default_task
from prefixray.data.task_config import TaskConfig
from prefixray.system.command_line import Entry
from prefixray.system.exit_codes import leave
from prefixray.system.logs import quieten
from prefixray.system.path_or_hub import check_base


def convert(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="the folder with pytorch_model.bin, or that file")
    ],
    base: Annotated[str, typer.Option(help="the base it was trained on: a hub id or a folder")],
    out: Annotated[Path, typer.Option(help="the artifact's folder, a new one")],
    task: Annotated[
        TaskName | None,
        typer.Option(help="the task it was trained for; if not given, e2e, and for an encoder-decoder xsum"),
    ] = None,
    task_path: Annotated[
        str | None, typer.Option(help="where that task's data lies, as task.path of a sweep file")
    ] = None,
) -> None:
    """Write the artifact, and print how it is decoded."""
    quieten()
    check_new(out)
    check_base(base)
    from prefixray.artifacts.li_liang import convert_checkpoint
    from prefixray.artifacts.store import save_artifact
    from prefixray.model.base import load_base

    loaded = load_base(base)
    name = task or default_task(is_encoder_decoder=loaded.shape.is_encoder_decoder)
    config = TaskConfig.model_validate({"name": name, "path": task_path or None, **papers_form(name)})
    tensors, record = convert_checkpoint(checkpoint, loaded, config)
    save_artifact(out, tensors, record)
    method = record["config"]["method"]
    count = sum(tensor.numel() for tensor in tensors.values())
    print(f"{checkpoint} -> {out}")
    print(f"{method['preseqlen']} positions at {method['sites']}, {count:,} numbers, positions {record['positions']}\n")
    print(f"prefixray decode {out} --split test")


main = Entry(convert, "prefixray convert", __doc__)

if __name__ == "__main__":
    leave(main)
