"""Which devices there are here, and which nodes the autoscaler's file allows."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from prefixray.cluster import nodes
from prefixray.cluster.nodes import Devices, may_be_larger, num_gpus_here, to_come

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


@pytest.mark.parametrize(
    ("visible", "torch", "count"),
    [(None, "2.13.0", 2), ("0,1", "2.13.0", 2), ("-1", "2.13.0", 0), ("0,-1,1", "2.13.0", 1), (None, "2.13.0+cpu", 0)],
)
def test_gpus_that_are_switched_off_or_that_torch_cannot_use_are_none(
    visible: str | None, torch: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = None if visible is None else visible.split(",")
    manager = SimpleNamespace(
        get_current_process_visible_accelerator_ids=lambda: ids, get_current_node_num_accelerators=lambda: 2
    )
    monkeypatch.setattr(nodes, "get_accelerator_manager_for_resource", lambda _: manager)
    monkeypatch.setattr(nodes, "version", lambda _: torch)
    assert num_gpus_here() == count


def test_a_larger_machine_may_come_where_the_cloud_has_several_names_for_them_or_none(tmp_path: Path) -> None:
    path = tmp_path / "autoscaler.yaml"
    path.write_text(FILE)
    assert may_be_larger(path) is True and may_be_larger(tmp_path / "none.yaml") is None
    template = (Path(__file__).resolve().parents[2] / "cluster.yaml").read_text()
    path.write_text(template)
    assert may_be_larger(path) is False, "spot and on_demand are the same machine"
    path.write_text(template[::-1].replace("g5.xlarge"[::-1], "g5.12xlarge"[::-1], 1)[::-1])
    assert may_be_larger(path) is True
