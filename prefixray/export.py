"""Write an artifact in a form that other programs load, or put it on the hub.

prefixray export runs/quickstart --format peft --out my-prefix          # a sweep's best prefix
prefixray export runs/quickstart/final/lora-0-1/artifact --format peft --out my-lora
prefixray export runs/quickstart --format cache --out my-cache          # past key values, for transformers alone
prefixray export runs/quickstart --format hub --out my-prefix           # what --push would upload
prefixray export runs/quickstart --push USER/NAME                       # after `hf auth login`
"""

from pathlib import Path
from typing import Annotated, Literal, assert_never

import typer

from prefixray.artifacts.record import check_new
from prefixray.errors import UserError
from prefixray.system.command_line import ARTIFACT_HELP, ArmOfSweep, Entry
from prefixray.system.exit_codes import leave
from prefixray.system.logs import quieten

Form = Literal["peft", "cartridge", "cache", "hub"]


def export(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=ARTIFACT_HELP)],
    *,
    arm: ArmOfSweep = None,
    document: Annotated[
        str | None, typer.Option(help="of a sweep over several documents: the document whose artifact is taken")
    ] = None,
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            help="peft: for PeftModel.from_pretrained; cartridge: a prefix as PEFT's CARTRIDGE; cache: a prefix as "
            "transformers' past key values; hub: the artifact, its model card and peft's files",
        ),
    ] = "peft",
    out: Annotated[Path | None, typer.Option(help="the folder to write, a new one")] = None,
    push: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="upload the hub's form to this model on the hub")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="if --push makes the model, it is for you alone")] = False,
    licence: Annotated[
        str | None,
        typer.Option("--license", help="of your artifact, as the hub names licences: apache-2.0, cc-by-sa-4.0 .."),
    ] = None,
) -> None:
    """Write the artifact, and print how it is loaded."""
    quieten()
    if out is None and push is None:
        raise UserError("--out: name a folder to write, or --push USER/NAME")
    if out is not None and push is not None:
        raise UserError("--push: writes no folder; leave --out out, or take --format hub --out to look at it first")
    if out is not None:
        check_new(out)
    from prefixray.results.artifacts import find_artifact

    artifact = find_artifact(source, arm, document).artifact
    if out is not None:
        print(f"{artifact} -> {out}\n\n{_write(artifact, form, out, licence)}")
    elif push is not None:
        from prefixray.artifacts.hub import push as push_to_hub

        print(f"{artifact} -> {push_to_hub(artifact, push, private=private, licence=licence)}")


def _write(artifact: Path, form: Form, out: Path, licence: str | None) -> str:
    """Write the folder; returns how it is used."""
    match form:
        case "hub":
            from prefixray.artifacts.hub import export_hub

            export_hub(artifact, out, licence=licence)
            return f"its card is {out / 'README.md'}; --push USER/NAME uploads it"
        case "cache":
            from prefixray.artifacts.cache import export_cache

            return export_cache(artifact, out)
        case "peft" | "cartridge":
            from prefixray.artifacts.peft import export_peft

            return export_peft(artifact, out, "PREFIX_TUNING" if form == "peft" else "CARTRIDGE")
        case _:
            assert_never(form)


main = Entry(export, "prefixray export", __doc__)

if __name__ == "__main__":
    leave(main)
