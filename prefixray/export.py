"""Write an artifact as others load it, or put it on the hub.

python -m prefixray.export runs/quickstart --format peft --out my-prefix          # a sweep's best prefix
python -m prefixray.export runs/quickstart/final/lora-0-1/artifact --format peft --out my-lora
python -m prefixray.export runs/quickstart --format hub --out my-prefix           # what --push would upload
python -m prefixray.export runs/quickstart --push USER/NAME                       # after `hf auth login`
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefixray.errors import UserError
from prefixray.system.exit_codes import leave
from prefixray.system.logs import quieten


def main(argv: Sequence[str] | None = None) -> int:
    """Write it and say how it is loaded; 2 where the user has something to mend."""
    options = _parser().parse_args(argv)
    quieten()
    try:
        if options.out is None and options.push is None:
            raise UserError("--out: name a folder to write, or --push USER/NAME")
        if options.out is not None and options.push is not None:
            raise UserError("--push: writes no folder; leave --out out, or take --format hub --out to look at it first")
        from prefixray.results.hypotheses import find_artifact

        print(_export(options, find_artifact(options.source, options.arm)[0]))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m prefixray.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="an artifact's folder, or a sweep: its results folder, its name or its YAML")
    parser.add_argument("--arm", help="of a sweep: which arm's best run (the best prefix)")
    parser.add_argument(
        "--format",
        choices=["peft", "hub"],
        default="peft",
        help="peft: for PeftModel.from_pretrained; hub: the artifact, its model card and peft's files (peft)",
    )
    parser.add_argument("--out", type=Path, help="the folder to write, a new one")
    parser.add_argument("--push", metavar="USER/NAME", help="upload the hub's form of it to this model on the hub")
    parser.add_argument("--private", action="store_true", help="where --push makes the model, for you alone")
    parser.add_argument("--license", help="of your artifact, as the hub names licences: apache-2.0, cc-by-sa-4.0 ..")
    return parser


def _export(options: argparse.Namespace, artifact: Path) -> str:
    """Do it; what is said of it."""
    if options.push is not None:
        from prefixray.artifacts.hub import push

        url = push(artifact, options.push, private=options.private, licence=options.license)
        return f"{artifact} -> {url}"
    if options.format == "hub":
        from prefixray.artifacts.hub import export_hub

        export_hub(artifact, options.out, licence=options.license)
        return f"{artifact} -> {options.out}\n\nits card is {options.out / 'README.md'}; --push USER/NAME uploads it"
    from prefixray.artifacts.peft import export_peft

    export_peft(artifact, options.out)
    base = "base: the transformers model it was tuned on"
    load = f"model = PeftModel.from_pretrained(base, {str(options.out)!r})  # {base}"
    return f"{artifact} -> {options.out}\n\nfrom peft import PeftModel\n{load}"


if __name__ == "__main__":
    leave(main)
