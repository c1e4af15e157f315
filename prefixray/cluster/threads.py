"""How many threads a worker on a CPU borrows from the workers beside it that have nothing to do.

So the last trial of a search does not leave all cores but one idle. What a second thread is worth is measured by
`tests/bench/threads.py`.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefixray.cluster.worker_handle import WorkerHandle


def borrowed_threads(workers: "Iterable[WorkerHandle]", own: int) -> dict[str, int]:
    """The threads that each worker with trials may borrow, by its name; every worker has `own` to use or to lend."""
    by_node = defaultdict[str, list["WorkerHandle"]](list)
    for worker in workers:
        if worker.is_ready:
            by_node[worker.node].append(worker)
    borrowed = dict[str, int]()
    for there in by_node.values():
        num_lent = own * sum(worker.is_idle for worker in there)
        training = [worker.name for worker in there if worker.trials]
        for number, name in enumerate(training):
            borrowed[name] = num_lent // len(training) + (number < num_lent % len(training))
    return borrowed
