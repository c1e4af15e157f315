"""Decode a split again with what a sweep has trained, and score it.

prefixray decode runs/quickstart --split test        # the best prefix of the final stage
prefixray decode runs/quickstart --arm adapter       # another arm
prefixray decode runs/manuals --document guide       # of a sweep over several documents
prefixray decode runs/quickstart/trials/prefix/3/artifact --split dev

In bf16 a hypothesis depends on the device, on the number of threads and on the sources that share its batch. So the
final stage's batches and threads are taken, unless options say otherwise, and hypotheses that differ are counted.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefixray.data.texts import one_line
from prefixray.metrics import label
from prefixray.planning.slots import cpu_workers
from prefixray.reporting.live import CountBar
from prefixray.results.artifacts import Found, find_artifact
from prefixray.results.hypotheses import Split, read_hypotheses, write_hypotheses
from prefixray.system.command_line import ARTIFACT_HELP, ArmOfSweep, Device, Entry
from prefixray.system.exit_codes import leave
from prefixray.system.logs import quieten
from prefixray.system.machine import num_cpus, wait_passively

if TYPE_CHECKING:
    from prefixray.decoding.evaluate import Decoded

_SETTING = typer.Option(help="in place of the recorded value")


def decode(
    where: Annotated[str, typer.Argument(metavar="WHERE", help=ARTIFACT_HELP)],
    *,
    split: Annotated[Split, typer.Option(help="the split to decode")] = "test",
    arm: ArmOfSweep = None,
    document: Annotated[
        str | None, typer.Option(help="of a sweep over several documents: the document whose artifact is taken")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="the folder for hypotheses, references and sources; if not given, one beside the artifact"),
    ] = None,
    device: Device = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="on a CPU; if not given, those of the final stage, else a worker's")
    ] = None,
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
    found = find_artifact(where, arm, document)
    num_threads = threads or min(found.num_threads(split) or cpu_workers(num_cpus())[1], num_cpus())
    wait_passively()
    from prefixray.decoding.evaluate import decode_artifact  # torch, once there is something to decode

    with CountBar("sources", sys.stderr) as bar:
        decoded = decode_artifact(
            found,
            split,
            num_threads=num_threads,
            device=device,
            decoding={key: value for key, value in settings.items() if value is not None},
            trust_remote_code=trust_remote_code,
            on_progress=bar.show,
        )
    out = out or found.artifact.parent / "decoded"
    write_hypotheses(out, split, decoded.hypotheses, decoded.sources)
    _report(found, split, decoded, num_threads)
    print(f"{out}/{split}.hyp  .ref  .src")


def _report(found: Found, split: Split, decoded: "Decoded", num_threads: int) -> None:
    """Print what was decoded on what, the scores, and how many hypotheses are those of the final stage."""
    of_cpu = f"{num_threads} thread{'s' if num_threads > 1 else ''} of the CPU"
    run_on = of_cpu if decoded.device == "cpu" else "the GPU"
    print(f"{found.artifact}: {split}, {len(decoded.sources)} sources, in {decoded.precision} on {run_on}")
    print("  ".join(f"{label(metric)} {scored.corpus():.4g}" for metric, scored in decoded.scores.items()))
    for problem in decoded.unscored.values():
        print(f"not scored: {problem}")
    if not (found.artifact.parent / f"{split}.hyp").is_file():
        return
    earlier = read_hypotheses(found.artifact.parent, split)
    num_same = sum(a == one_line(b) for a, b in zip(earlier, decoded.hypotheses, strict=False))
    is_rounded = num_same < len(earlier) and decoded.precision != "fp32"
    why = f"; in {decoded.precision} they depend on the device, --threads and the batches" if is_rounded else ""
    print(f"{num_same} of {len(earlier)} hypotheses are those of the final stage{why}")


main = Entry(decode, "prefixray decode", __doc__)

if __name__ == "__main__":
    leave(main)
