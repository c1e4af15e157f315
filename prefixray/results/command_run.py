"""Which runs of the command made a sweep's results: their command lines, their versions and the time they took."""

import json
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path

from prefixray.errors import redacted
from prefixray.results.record import CommandRun, Results, Stored, is_finished, runs_of

PACKAGES = ("prefixray", "torch", "transformers", "ray", "optuna", "mlflow", "sacrebleu", "numpy")


def versions() -> dict[str, str]:
    """The versions of the packages that a sweep's numbers can depend on."""
    return {package: metadata.version(package) for package in PACKAGES}


def command_run(command: Sequence[str], *, began: float, minutes: float) -> CommandRun:
    """A record of this process's run, which began at `began` in seconds since 1970. Credentials are left out.

    `command` is its command line, word by word; no words where a sweep was run from Python.
    """
    words = [redacted(word) for word in command]
    given = {key: [value for word, value in pairwise(words) if word == key] for key in _CHANGES}
    return CommandRun(
        command=words,
        scales=given["--scale"],
        overrides=given["--set"],
        commit=source_commit(),
        versions=versions(),
        began=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        minutes=minutes,
    )


def runs_so_far(
    earlier: Stored | None, now: Stored, this: CommandRun, *, has_trained: bool = False
) -> list[CommandRun]:
    """The runs that made the results `now`: those of the `earlier` results, and `this` where it has trained anything.

    So running a finished sweep's command again leaves its record as it was. A run that has ended early may have trained
    what neither result shows: then `has_trained` says so.
    """
    if earlier is None:
        return [this]
    runs = _known_runs(earlier)
    others = [run for run in runs if run["began"] != this["began"]]
    is_new = has_trained or len(others) < len(runs) or bool(_trained(now) - _trained(earlier))
    return [*others, this] if is_new else runs


def machine_of(results: Results, earlier: Results | None) -> dict[str, object]:
    """The machine that has trained: the earlier results' where no run has trained since, wherever they are scored."""
    if earlier is not None and earlier.get("runs") == results["runs"]:
        return earlier["machine"]
    return results["machine"]


def source_commit() -> str | None:
    """The commit of the program's own code, with `+changes` where its files differ from it.

    It is known where the program runs from a checkout, and where pip installed it from a repository; None elsewhere.
    """
    root = Path(__file__).resolve().parents[2]
    own = "prefixray/__init__.py"
    if _git(root, "ls-files", "--error-unmatch", own) is not None and (commit := _git(root, "rev-parse", "HEAD")):
        return commit + ("+changes" if _git(root, "status", "--porcelain", "--", "prefixray") else "")
    try:
        installed = json.loads(metadata.distribution("prefixray").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, json.JSONDecodeError):
        return None
    found = installed.get("vcs_info", {}).get("commit_id")
    return found if isinstance(found, str) else None


_CHANGES = ("--scale", "--set")


def _git(folder: Path, *words: str) -> str | None:
    """What git prints; None where it fails or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _known_runs(stored: Stored) -> list[CommandRun]:
    """The runs in a record; of an older record the last run alone is known, by its time and its versions."""
    if "runs" in stored or not is_finished(stored):
        return list(stored.get("runs", ()))
    minutes = stored.get("budget", {}).get("minutes")
    if not isinstance(minutes, int | float):
        return []
    older = CommandRun(
        command=[], scales=[], overrides=[], commit=None, versions=stored["versions"], began="", minutes=minutes
    )
    return [older]


def _trained(stored: Stored) -> Counter[tuple[object, ...]]:
    """How far each trial has come, and the final runs."""
    search = [(trial["arm"], trial["number"], trial["step"], trial["state"]) for trial in stored["search"]]
    seeds = [seed for arm in stored["arms"] for seed in arm["seeds"]] if is_finished(stored) else []
    return Counter([*search, *((run["folder"],) for seed in seeds for run in runs_of(seed))])
