"""Print what a sweep would do, take and cost. Nothing is started, nor are the base's weights downloaded.

prefixray plan sweeps/quickstart.yaml
prefixray plan sweeps/xsum.yaml --set base=FOLDER --prices prices.yaml     # prices.yaml: A10G: 1.5
"""

from prefixray.config.files.found import check_options, find_sweep_file
from prefixray.config.load import load_sweep
from prefixray.data import check_own_data
from prefixray.system.command_line import Entry, Overrides, Prices, Scales, SweepFile
from prefixray.system.exit_codes import leave
from prefixray.system.logs import quieten


def plan(file: SweepFile, scales: Scales, overrides: Overrides, prices: Prices = None) -> None:
    """Print the plan."""
    file = find_sweep_file(file)
    config = load_sweep(file, overrides, scales)  # before anything heavy
    check_options(file, config.name, overrides, scales)
    check_own_data(config.task)
    quieten()
    from prefixray.planning.text import plan_text, read_prices

    print(plan_text(config, file, {} if prices is None else read_prices(prices)))


main = Entry(plan, "prefixray plan", __doc__)

if __name__ == "__main__":
    leave(main)
