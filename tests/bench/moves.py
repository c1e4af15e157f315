"""What it brings that a trial moves from a full worker to an idle one: a search with moves, and one without.

    python tests/bench/moves.py                        # three times each, in turn; minutes
    python tests/bench/moves.py --case tiny --repeats 1     # shows that it runs

Two arms are long and two are short, and the long ones begin on the same worker: without moves the other worker has
nothing to do once the short ones have ended. Each search is timed from its first trial's place to its last trial's end,
as the sweep's files say. The losses of both searches stand beside the times.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import yaml
from processes import Watched
from sweep_arms import ENVIRONMENT
from sweep_cases import CASES, prepare, sweep_file
from sweep_log import lines
from table import ratios, spread

LONG, SHORT = 24, 2  # steps
ARMS = {"long1": LONG, "short1": SHORT, "long2": LONG, "short2": SHORT}  # in the order in which workers get them
DRIVERS = {
    "with moves": "from prefixray.sweep import main; raise SystemExit(main())",
    "without": (
        "from prefixray.cluster.pool import Pool; Pool._begin_move = lambda pool: None; "
        "from prefixray.sweep import main; raise SystemExit(main())"
    ),
}
GIVES_UP_SECONDS = 600.0


def main() -> None:
    """Run both searches in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="SmolLM2-135M, E2E", metavar="CASE", help="; ".join(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    out = Path(tempfile.mkdtemp(prefix="moves-"))
    spec = prepare(CASES[options.case], out)
    sweep = yaml.safe_load(sweep_file(spec, "search", rungs=[]))
    sweep["arms"] = {
        name: {
            "method": "prefix",
            "init_token": None,
            "preseqlen": 10,
            "mid_dim": 512,
            "learning_rate": {"choice": [5e-4]},
            "num_steps": steps,
        }
        for name, steps in ARMS.items()
    }
    sweep["train"]["warmup_steps"] = 1
    sweep["search"]["num_trials"] = 1
    found: dict[str, list[tuple[float, list[float]]]] = {name: [] for name in DRIVERS}
    for number in range(options.repeats):
        for name, driver in DRIVERS.items():
            folder = out / f"{name.replace(' ', '-')}-{number}"
            folder.mkdir()
            (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False), encoding="utf-8")
            found[name].append(timed(driver, folder))
            print(f"{name:<12} {found[name][-1][0]:>6.1f} s  dev losses {found[name][-1][1]}", flush=True)
    seconds = {name: [second for second, _ in runs] for name, runs in found.items()}
    medians = ", ".join(f"{name} {statistics.median(own):.1f} s" for name, own in seconds.items())
    print(f"\n{medians}; without / with moves: {spread(ratios(seconds['without'], seconds['with moves']))}")


def timed(driver: str, folder: Path) -> tuple[float, list[float]]:
    """Seconds from the first trial's place to the last one's end, and the trials' dev losses."""
    results = folder / "runs" / "search"
    with Watched([sys.executable, "-c", driver, "sweep.yaml"], folder, ENVIRONMENT) as watched:
        began = time.monotonic()
        while len(files := sorted((results / "trials").glob("*/*/result.json"))) < len(ARMS):
            if watched.process.poll() is not None or time.monotonic() > began + GIVES_UP_SECONDS:
                sys.exit(f"it has not come to its end:\n{(folder / 'output.txt').read_text(errors='replace')}")
            time.sleep(0.2)
        watched.interrupt()
    placed = min(when for when, message in lines(results / "sweep.log") if "is placed on" in message)
    losses = [round(json.loads(file.read_text())["metrics"]["dev/loss"], 4) for file in files]
    return max(file.stat().st_mtime for file in files) - placed, losses


if __name__ == "__main__":
    main()
