"""Fine-tuning, whose trials take a whole worker each: the memory that they need, and the wait for a device with it."""

from collections.abc import Callable, Sequence

from prefixray.cluster.connect import Cluster
from prefixray.cluster.fleet import DeviceWait, await_large
from prefixray.cluster.nodes import may_be_larger
from prefixray.cluster.worker_handle import WorkerHandle
from prefixray.config.schema import ArmConfig
from prefixray.errors import UserError
from prefixray.planning.memory import BYTES_PER_TRAINED, largest_trial
from prefixray.training.facts import WorkerFacts


class ExclusiveTrials:
    """The exclusive trials of a sweep, by the memory of the largest one; none are known at first."""

    def __init__(self, cluster: Cluster, max_wait_hours: float | None) -> None:
        self._cluster, self._max_wait_hours = cluster, max_wait_hours
        self._num_bytes = 0  # that the largest one takes beside the base
        self._wait = DeviceWait(cluster, max_wait_hours)

    def measure(
        self, arms: Sequence[ArmConfig], facts: WorkerFacts, look: Callable[[], Sequence[WorkerHandle]]
    ) -> str | None:
        """Find out what the arms' trials need; what to say where no worker has that memory, and another one may.

        Raises a `UserError` where none can come that has it: on one machine, on a cluster whose autoscaler starts
        machines of one kind, and on one without an autoscaler once all its workers are there. `look` gives the workers.
        """
        self._num_bytes = max(exclusive_bytes(arms, facts).values(), default=0)
        that = f" with {self._num_bytes / 2**30:.1f} GiB free for fine-tuning"
        self._wait = DeviceWait(self._cluster, self._max_wait_hours, that)
        seen, may_come = [*look()], may_be_larger() if self._cluster.is_elastic else False
        if may_come is None:
            may_come = await_large(look, self.fit)
            seen += look()
        try:
            check_exclusive(arms, facts, max((worker.free_bytes for worker in seen), default=0))
        except UserError as error:
            if not may_come:
                raise
            problem = "fine-tuning waits for a larger device than the first one (search.max_wait_hours)"
            return f"{problem}: {'; '.join(error.problems)}"
        return None

    def fit(self, worker: WorkerHandle) -> bool:
        """Whether the worker has the memory for each of them."""
        return self._num_bytes <= worker.free_bytes

    def num_useless(self, workers: Sequence[WorkerHandle], num_left: int, num_workers_sharing: int) -> int:
        """How many workers are too small for those that are left, and are not needed for other trials."""
        ready = [worker for worker in workers if worker.is_ready]
        num_large = sum(map(self.fit, ready))
        return 0 if num_large >= num_left else max(0, len(ready) - num_large - num_workers_sharing)

    def look(self, workers: Sequence[WorkerHandle], num_left: int) -> None:
        """Note whether a device is there for those that are left. Raises `NoWorkers` where it has taken too long."""
        num_large = sum(worker.has_device and self.fit(worker) for worker in workers)
        self._wait.look(num_large, 0 if any(worker.trials for worker in workers) else num_left)


def check_exclusive(arms: Sequence[ArmConfig], facts: WorkerFacts, free: int) -> None:
    """Refuse fine-tuning that cannot fit: master weights, and gradients and Adam's moments of what trains, in fp32."""
    problems = [
        f"arms.{name}: fine-tuning needs {need / 2**30:.1f} GiB beside the base ({BYTES_PER_TRAINED} bytes for each "
        f"parameter that is trained, 4 for each other), and a worker on {facts.device} has {free / 2**30:.1f} GiB "
        "free; remove the arm, train fewer top_layers, or take a smaller base or a larger device"
        for name, need in exclusive_bytes(arms, facts).items()
        if need > free
    ]
    if problems:
        raise UserError(*problems)


def exclusive_bytes(arms: Sequence[ArmConfig], facts: WorkerFacts) -> dict[str, int]:
    """Bytes that the largest trial of each exclusive arm takes on a worker, by arm."""
    return {arm.name: largest_trial(arm, facts.shape) for arm in arms if arm.exclusive}
