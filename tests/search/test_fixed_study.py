"""The final stage's list of runs."""

from pathlib import Path

from support.studies import SPACE, ask, make_arm, run_all, start_and_kill

from prefixray.search.fixed_study import FixedStudy
from prefixray.search.storage import open_storage, repair_journal


def test_a_fixed_list_is_run_once_in_order_and_may_grow(tmp_path: Path) -> None:
    study = FixedStudy(open_storage(tmp_path / "study.journal"), "sweep", "final", ["prefix-1", "lora-1", "prefix-1"])
    assert [proposal.values["item"] for proposal in run_all(study)] == ["prefix-1", "lora-1"]
    study = FixedStudy(open_storage(tmp_path / "study.journal"), "sweep", "final", ["prefix-1", "lora-1", "lora-2"])
    assert [proposal.values["item"] for proposal in run_all(study)] == ["lora-2"]
    assert [record.values["item"] for record in study.best(3)] == ["prefix-1", "lora-1", "lora-2"]


def test_a_run_of_a_killed_driver_is_adopted_when_its_list_is_known_or_withdrawn(tmp_path: Path) -> None:
    start_and_kill(tmp_path, make_arm(SPACE, 4))
    journal = tmp_path / "study.journal"
    repair_journal(journal)
    other = FixedStudy(open_storage(journal), "sweep", "final", ["adapter-1"])
    assert [(p.values["item"], p.adopted) for p in run_all(other)] == [("adapter-1", False)]
    other = FixedStudy(open_storage(journal), "sweep", "final", ["adapter-1", "prefix-1", "prefix-2"])
    assert [(p.values["item"], p.adopted) for p in run_all(other)] == [("prefix-1", True), ("prefix-2", False)]
    ask(FixedStudy(open_storage(journal), "sweep", "final", ["old-1"]))
    changed = FixedStudy(open_storage(journal), "sweep", "final", ["new-1"])
    run_all(changed)
    changed.withdraw()
    assert {record.state for record in changed.records()} == {"done"}
    assert [record.values["item"] for record in changed.records()][-1] == "new-1"


def test_a_run_that_has_ended_and_whose_result_is_lost_runs_once_more(tmp_path: Path) -> None:
    def opened(*without_result: str) -> FixedStudy:
        storage, items = open_storage(tmp_path / "study.journal"), ["lora-1", "lora-2", "lora-3"]
        return FixedStudy(storage, "sweep", "final", items, without_result=without_result)

    first = opened("lora-1", "lora-2", "lora-3")
    first.tell(ask(first).number, "failed", None)
    first.tell(ask(first).number, "done", 2.0)
    ask(first)  # the driver is killed
    again = opened("lora-1", "lora-2", "lora-3")
    assert [record.values["item"] for record in again.records()] == ["lora-3"]
    proposals = run_all(again)
    assert [(each.values["item"], each.adopted) for each in proposals] == [
        ("lora-3", True),
        ("lora-1", False),
        ("lora-2", False),
    ]
    for study in (again, opened()):
        assert [(record.values["item"], record.state) for record in study.records()] == [
            ("lora-3", "done"),
            ("lora-1", "done"),
            ("lora-2", "done"),
        ]
    assert run_all(opened()) == []
