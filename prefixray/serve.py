"""Serve what sweeps have trained, in OpenAI's form: each artifact is a model, and all of them share one batch.

prefixray serve runs/quickstart                      # at http://127.0.0.1:8000/v1
prefixray serve runs/quickstart/final/lora-0-1/artifact my=runs/e2e_small/trials/lora/2/artifact

`model` is a name of /v1/models: an arm's (its first final run), a final run's (final/lora-0-1), that of an arm's best
trial (prefix/0), or untuned. Fine-tuned models are left out. Ctrl-C ends the server.
"""

from typing import Annotated

import typer

from prefixray.system.command_line import Device, Entry
from prefixray.system.exit_codes import interruptible, leave
from prefixray.system.logs import quieten
from prefixray.system.machine import wait_passively


def serve(
    where: Annotated[
        list[str],
        typer.Argument(
            metavar="WHERE",
            help="artifacts' folders, and sweeps: results folders, names or YAMLs; NAME=WHERE names a model",
        ),
    ],
    *,
    host: Annotated[str, typer.Option(help="the address; one that others can reach needs a token")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="PREFIXRAY_TOKEN", show_envvar=False, help="what clients must send; better in PREFIXRAY_TOKEN"
        ),
    ] = None,
    seats: Annotated[int, typer.Option(min=1, help="answers that are written at once")] = 16,
    queue: Annotated[int, typer.Option(min=0, help="requests that wait for a seat; the next gets 429")] = 64,
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="of a prompt; a longer one gets 400")] = 2048,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="of an answer; a request for more gets 400")] = 1024,
    device: Device = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="run Python files that the base brings")
    ] = False,
) -> None:
    """Load the base and all artifacts, print the models' names, and answer until a signal ends it."""
    quieten()
    wait_passively()
    from prefixray.serving.names import find_models

    named = find_models(where)
    from prefixray.serving.engine import Engine  # torch, once there is something to serve
    from prefixray.serving.http.guard import check_binding
    from prefixray.serving.http.server import Server, bind_socket
    from prefixray.serving.models import Limits, load_models

    check_binding(host, token)
    with bind_socket(host, port) as bound, interruptible():
        models = load_models(named.folders, device=device, trust_remote_code=trust_remote_code)
        for name, model in models.by_name.items():
            print(f"{name}: {model.about}")
        for name in named.left_out:
            print(f"{name}: left out: a fine-tuned model shares no batch")
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{bound.getsockname()[1]}/v1  (Ctrl-C ends it)", flush=True)
        engine = Engine(models, Limits(seats, queue, max_prompt_tokens, max_new_tokens))
        Server(engine, token=token).run_on(bound)


main = Entry(serve, "prefixray serve", __doc__)

if __name__ == "__main__":
    leave(main)
