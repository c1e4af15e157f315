"""Decode a split again with what a sweep has trained, and score it.

python -m prefixray.decode runs/quickstart --split test        # the best prefix of the final stage
python -m prefixray.decode runs/quickstart --arm adapter       # another arm
python -m prefixray.decode runs/quickstart/trials/prefix/3/artifact --split dev
"""

from pathlib import Path
from typing import Annotated

import typer

from prefixray.metrics import label
from prefixray.results.hypotheses import Split, find_artifact, find_evaluation, read_hypotheses, write_hypotheses
from prefixray.system.command_line import ARTIFACT_HELP, Device, Entry
from prefixray.system.exit_codes import leave
from prefixray.system.logs import quieten

_SETTING = typer.Option(help="in place of the recorded value")


def decode(
    where: Annotated[str, typer.Argument(metavar="WHERE", help=ARTIFACT_HELP)],
    *,
    split: Annotated[Split, typer.Option(help="the split to decode")] = "test",
    arm: Annotated[str | None, typer.Option(help="of a sweep: the arm; if not given, its best prefix")] = None,
    out: Annotated[
        Path | None, typer.Option(help="the folder for the three files; if not given, one beside the artifact")
    ] = None,
    device: Device = "cpu",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="run Python files that the base brings")
    ] = False,
    num_beams: Annotated[int | None, _SETTING] = None,
    min_new_tokens: Annotated[int | None, _SETTING] = None,
    max_new_tokens: Annotated[int | None, _SETTING] = None,
    length_penalty: Annotated[float | None, _SETTING] = None,
    batch_size: Annotated[int | None, _SETTING] = None,
) -> None:
    """Write hypotheses, references and sources, and print the scores."""
    quieten()
    settings = {
        "num_beams": num_beams,
        "min_new_tokens": min_new_tokens,
        "max_new_tokens": max_new_tokens,
        "length_penalty": length_penalty,
        "batch_size": batch_size,
    }
    artifact, recorded = find_artifact(where, arm)
    from prefixray.decoding.evaluate import decode_artifact  # torch, once there is something to decode

    decoded = decode_artifact(
        artifact,
        split,
        device=device,
        decoding={**recorded, **{key: value for key, value in settings.items() if value is not None}},
        trust_remote_code=trust_remote_code,
        evaluation=find_evaluation(where),
    )
    out = out or artifact.parent / "decoded"
    write_hypotheses(out, split, decoded.hypotheses, decoded.sources)
    print(f"{artifact}: {split}, {len(decoded.sources)} sources")
    print("  ".join(f"{label(metric)} {scored.corpus():.4g}" for metric, scored in decoded.scores.items()))
    if (artifact.parent / f"{split}.hyp").is_file():
        earlier = read_hypotheses(artifact.parent, split)
        num_same = sum(a == b for a, b in zip(earlier, read_hypotheses(out, split), strict=False))
        print(f"{num_same} of {len(earlier)} hypotheses are those of the final stage")
    print(f"{out}/{split}.hyp  .ref  .src")


main = Entry(decode, "prefixray decode", __doc__)

if __name__ == "__main__":
    leave(main)
