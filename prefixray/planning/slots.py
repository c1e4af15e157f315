"""How many trials run at once, from memory and from the arms' settings."""

import math

from prefixray.config.schema import ArmConfig, SweepConfig

MOST_SLOTS = 64  # trials in a pack at most, whatever the memory
FIRST_AT_ONCE = 8  # trials of an arm that start together, where it has as many
_MEMORY_SHARE = 0.6  # of the memory beside the base, for trials; the rest is for activations
_FILLED_SHARE = 0.9  # of the memory beside the base and measured activations; the rest is for gaps between tensors


def num_slots(free_bytes: float, trial_bytes: float, step_bytes: int | None = None) -> int:
    """Trials that a worker takes at once, from the bytes free beside the base and the largest trial's state.

    `step_bytes`: what the tokens of a step take, where that was measured.
    """
    for_trials = _MEMORY_SHARE * free_bytes if step_bytes is None else _FILLED_SHARE * (free_bytes - step_bytes)
    return max(1, min(MOST_SLOTS, int(for_trials / trial_bytes)))


def num_at_once(arm: ArmConfig, concurrency: int | None, *, num_slots: int, num_workers: int) -> int:
    """Trials of an arm at once."""
    slots = num_workers if arm.exclusive else num_slots * num_workers
    return min(slots, concurrency or default_at_once(arm.num_trials))


def default_at_once(num_trials: int) -> int:
    """Trials of an arm at once where the sweep file does not say it.

    It is a quarter, so that the sampler learns from generation to generation, but at least 8: the first ones are drawn
    at random anyway.
    """
    return max(min(num_trials, FIRST_AT_ONCE), math.ceil(num_trials / 4))


def most_at_once(config: SweepConfig, num_workers: int, num_documents: int = 0) -> int:
    """Trials that a sweep over so many documents, or over none, has at once at most, final runs included.

    The workers' memory may allow less.
    """
    num_final = most_final_runs(config, num_documents)
    wanted = sum((config.search.concurrency or default_at_once(arm.num_trials)) + num_final for arm in config.arms)
    return min(MOST_SLOTS * num_workers, wanted)


def most_final_runs(config: SweepConfig, num_documents: int) -> int:
    """Runs of an arm that the final stage has at once at most: those for the table, or those of the candidates."""
    final, num_searched = config.final, config.search.num_searched(num_documents)
    return max(final.num_seeds * max(1, num_documents), final.candidates * num_searched)


def cpu_workers(num_cpus: int) -> tuple[int, int]:
    """How many workers a machine without GPUs has, and the threads of each.

    Two with half the threads each beat one with all: 15 % on two idle cores, and more on busy ones, where every
    operation waits for the slowest thread.
    """
    num_workers = min(2, num_cpus)
    return num_workers, num_cpus // num_workers
