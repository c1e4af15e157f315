"""Write an artifact as others load it.

python -m prefixray.export runs/quickstart --format peft --out my-prefix          # a sweep's best prefix
python -m prefixray.export runs/quickstart/final/lora-0-1/artifact --format peft --out my-lora
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefixray.config import UserError
from prefixray.exits import leave


def main(argv: Sequence[str] | None = None) -> int:
    """Write it and say how it is loaded; 2 where the user has something to mend."""
    parser = argparse.ArgumentParser(
        prog="python -m prefixray.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="an artifact's folder, or a sweep: its results folder, its name or its YAML")
    parser.add_argument("--arm", help="of a sweep: which arm's best run (the best prefix)")
    parser.add_argument("--format", choices=["peft"], default="peft", help="peft: for PeftModel.from_pretrained")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write")
    options = parser.parse_args(argv)
    try:
        from prefixray.hypotheses import best_artifact
        from prefixray.peft_format import export_peft
        from prefixray.sweepfile import find_sweep

        source = Path(options.source)
        is_artifact = source.is_dir() and any(source.glob("*_config.json"))
        artifact = source if is_artifact else best_artifact(find_sweep(options.source), options.arm)[0]
        export_peft(artifact, options.out)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{artifact} -> {options.out}\n\nfrom peft import PeftModel")
    print(
        f"model = PeftModel.from_pretrained(base, {str(options.out)!r})  # base: the transformers model it was tuned on"
    )
    return 0


if __name__ == "__main__":
    leave(main)
