"""Decode a split again with what a sweep has trained, and score it.

python -m prefixray.decode runs/quickstart --split test        # the best prefix of the final stage
python -m prefixray.decode runs/quickstart --arm adapter       # another arm
python -m prefixray.decode runs/quickstart/trials/prefix/3/artifact --split dev
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefixray.errors import UserError
from prefixray.metrics import label
from prefixray.results.hypotheses import find_artifact, read_hypotheses, write_hypotheses
from prefixray.system.exit_codes import leave
from prefixray.system.logs import quieten

_SETTINGS = ("num_beams", "min_new_tokens", "max_new_tokens", "length_penalty", "batch_size")


def main(argv: Sequence[str] | None = None) -> int:
    """Write hypotheses, references and sources, print the scores; 2 where there is nothing to decode."""
    options = _parser().parse_args(argv)
    quieten()
    changed = {key: value for key in _SETTINGS if (value := getattr(options, key)) is not None}
    try:
        artifact, recorded = find_artifact(options.where, options.arm)
        from prefixray.decoding.evaluate import decode_artifact  # torch, once there is something to decode

        settings, code = {**recorded, **changed}, options.trust_remote_code
        decoded = decode_artifact(
            artifact, options.split, device=options.device, decoding=settings, trust_remote_code=code
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    out = Path(options.out) if options.out else artifact.parent / "decoded"
    write_hypotheses(out, options.split, decoded.hypotheses, decoded.sources)
    print(f"{artifact}: {options.split}, {len(decoded.sources)} sources")
    print("  ".join(f"{label(metric)} {scored.corpus():.4g}" for metric, scored in decoded.scores.items()))
    if (artifact.parent / f"{options.split}.hyp").is_file():
        earlier = read_hypotheses(artifact.parent, options.split)
        num_same = sum(a == b for a, b in zip(earlier, read_hypotheses(out, options.split), strict=False))
        print(f"{num_same} of {len(earlier)} hypotheses are those of the final stage")
    print(f"{out}/{options.split}.hyp  .ref  .src")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m prefixray.decode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("where", help="a sweep's results folder, its name or YAML; or an artifact's folder")
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="what is decoded (test)")
    parser.add_argument("--arm", help="of a sweep: the arm (its best prefix)")
    parser.add_argument("--out", help="where the three files go (beside the artifact)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python files that the base brings")
    for key in _SETTINGS:
        kind = float if key == "length_penalty" else int
        parser.add_argument(f"--{key.replace('_', '-')}", type=kind, help="in place of what was recorded")
    return parser


if __name__ == "__main__":
    leave(main)
