"""Run a sweep: search, final stage, table. Run it again to continue it.

python -m prefixray.sweep sweeps/quickstart.yaml
python -m prefixray.sweep sweeps/quickstart.yaml --set search.num_trials=16     # extends it
python -m prefixray.sweep sweeps/e2e_small.yaml --address auto                  # on the Ray cluster that runs here
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefixray.config import UserError
from prefixray.logs import quieten, to_file
from prefixray.sweepfile import load_sweep

_EXAMPLE = 100  # letters of the source that the snippet for Python shows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweep and print its table; 2 where the user has something to mend, 130 where they interrupted."""
    options = _parser().parse_args(argv)
    file = Path(options.sweep)
    try:
        config = load_sweep(file, options.set)  # before anything heavy is imported: a typo is reported at once
        quieten()
        to_file(Path("runs") / config.name / "sweep.log")
        from prefixray.driver import run_sweep
        from prefixray.tables import render_text

        outcome = run_sweep(config, file, address=options.address)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted; to go on: python -m prefixray.sweep {options.sweep}", file=sys.stderr)
        return 130
    print(render_text(outcome.results))
    print(_what_next(outcome.folder, outcome.tracking_uri, outcome.results["examples"][0]["source"]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m prefixray.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", help="the sweep's YAML file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override: arms.prefix.preseqlen=20"
    )
    parser.add_argument("--address", help="a Ray cluster to join; auto: the one that runs on this machine")
    return parser


def _what_next(folder: Path, tracking_uri: str | None, source: str) -> str:
    """Where everything is, and what to type next."""
    shown = source if len(source) <= _EXAMPLE else f"{source[:_EXAMPLE]}..."
    tracking = ""
    if tracking_uri is not None:
        is_server = tracking_uri.startswith("http")
        tracking = f"{tracking_uri}\n" if is_server else f"mlflow ui --backend-store-uri {tracking_uri}\n"
    return f"""
{folder}: results.json .md .csv, final/ (artifacts, hypotheses), trials/, study.journal, sweep.log
{tracking}python -m prefixray.decode {folder} --split test
python -m prefixray.report {folder}

from prefixray.evaluation import Tuned
tuned = Tuned.best("{folder}")
print(tuned.generate([{shown!r}]))"""


if __name__ == "__main__":
    sys.exit(main())
