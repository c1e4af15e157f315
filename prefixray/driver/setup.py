"""What the workers of a sweep are made from."""

from prefixray.cluster.comparable import as_begun
from prefixray.cluster.connect import Cluster
from prefixray.cluster.worker import WorkerSetup
from prefixray.config.schema import SweepConfig
from prefixray.driver.documents.make import document_names, task_with_exchanges
from prefixray.driver.results_folder import COMMIT, PRECISION, ResultsFolder
from prefixray.system.path_or_hub import absolute


def worker_setup(config: SweepConfig, cluster: Cluster, folder: ResultsFolder) -> WorkerSetup:
    """With absolute paths, since a worker has another working directory.

    A sweep that has begun goes on in the precision that `auto` was then, and with the commit that the hub's base had.
    """
    setup = WorkerSetup(
        absolute(config.base),
        task_with_exchanges(config, folder),
        config.train,
        cluster.device,
        cluster.num_threads,
        max_new_tokens=config.final.max_new_tokens,
        log=str((folder.path / "sweep.log").absolute()),
        trust_remote_code=config.trust_remote_code,
        max_failures=config.search.max_failures,
        num_searched=config.search.num_searched(len(document_names(config.task))),
        max_wait_hours=config.search.max_wait_hours,
    )
    return as_begun(setup, folder.begun_with(PRECISION), folder.begun_with(COMMIT))
