"""A journal that a killed driver has left."""

from pathlib import Path

import pytest
from support.studies import GRID, SPACE, ask, make_arm, open_study, run_all

from prefixray.search.fixed_study import FixedStudy
from prefixray.search.storage import has_studies, open_storage, repair_journal


@pytest.mark.parametrize("num_lines", range(1, 16))
def test_a_driver_may_die_after_any_line_of_the_journal(tmp_path: Path, num_lines: int) -> None:
    arm = make_arm(GRID, 4, first=({"preseqlen": 5, "mid_dim": None},))
    ask(study := open_study(tmp_path, arm))
    study.report(0, 10, 2.0)
    study.tell(0, "done", 2.0)
    ask(study)
    journal = tmp_path / "study.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:num_lines]) + b'{"op_code": 4, "worker')
    (tmp_path / "study.journal.lock").touch()
    repair_journal(journal)
    assert not (tmp_path / "study.journal.lock").exists()
    proposals = run_all(again := open_study(tmp_path, arm))
    records = open_study(tmp_path, arm).records()
    assert [record.state for record in records] == ["done"] * 4
    assert len({tuple(record.values.values()) for record in records}) == 4
    assert len(proposals) in (3, 4)
    assert again.ask() is None


def test_repairing_a_journal_that_is_whole_or_absent_changes_nothing(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    repair_journal(journal)
    assert not journal.exists()
    run_all(open_study(tmp_path, make_arm(SPACE, 2)))
    before = journal.read_bytes()
    repair_journal(journal)
    assert journal.read_bytes() == before


def test_it_is_known_whether_a_journal_has_a_final_stage_too(tmp_path: Path) -> None:
    finals = ("small/final/", "small/candidates/")
    open_study(tmp_path, make_arm(GRID, 4))
    storage = open_storage(tmp_path / "study.journal")
    assert not has_studies(storage, finals)
    FixedStudy(storage, "small", "final/prefix", ["0@1"])
    assert has_studies(storage, finals) and not has_studies(storage, ("other/final/",))
