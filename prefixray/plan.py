"""Print what a sweep would do, take and cost, before anything is started or downloaded but the base's configuration.

python -m prefixray.plan sweeps/quickstart.yaml
python -m prefixray.plan sweeps/xsum.yaml --set base=FOLDER --prices prices.yaml     # prices.yaml: A10G: 1.5
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefixray.config.load import load_sweep
from prefixray.errors import UserError
from prefixray.system.exit_codes import leave
from prefixray.system.logs import quieten


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan; 2 where the user has something to mend."""
    parser = argparse.ArgumentParser(
        prog="python -m prefixray.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path, help="the sweep's YAML file")
    parser.add_argument("--scale", action="append", default=[], metavar="NAME", help="a scale of the file: laptop")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override: train.num_steps=20")
    parser.add_argument(
        "--prices", type=Path, help="a YAML file of dollars per hour by device; without it no cost is told"
    )
    options = parser.parse_args(argv)
    try:
        config = load_sweep(options.sweep, options.set, options.scale)  # before anything heavy
        quieten()
        from prefixray.planning.text import plan_text, read_prices

        print(plan_text(config, options.sweep, {} if options.prices is None else read_prices(options.prices)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    leave(main)
