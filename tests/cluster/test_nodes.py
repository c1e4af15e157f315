"""Which nodes the autoscaler's file allows."""

from pathlib import Path

from prefixray.cluster.nodes import Devices, to_come

FILE = """
max_workers: 3
head_node_type: head
available_node_types:
  head: {resources: {CPU: 0, trial: 256}, node_config: {}, max_workers: 0}
  small: {resources: {CPU: 4, GPU: 1}, node_config: {}, max_workers: 2}
  large: {resources: {CPU: 32, GPU: 4}, node_config: {}, max_workers: 2}
"""


def test_the_largest_machines_count_first_up_to_the_clusters_bound(tmp_path: Path) -> None:
    path = tmp_path / "autoscaler.yaml"
    path.write_text(FILE)
    assert to_come(path) == [Devices(32, 4), Devices(32, 4), Devices(4, 1)]
    assert to_come(tmp_path / "none.yaml") == []
