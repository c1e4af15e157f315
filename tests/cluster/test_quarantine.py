"""Who may be in the pack after a death: the worker that comes next reads the record of the one before it."""

from collections.abc import Collection
from pathlib import Path

import pytest

from prefixray.cluster import quarantine as quarantine_module
from prefixray.cluster.quarantine import Quarantine

PACK = ("a", "b", "c", "d", "e")
MAX_FAILURES = 2


class Sweep:
    """Trials that take a step at a time together, and workers that die of what is in the step."""

    def __init__(self, record: Path, trials: Collection[str] = PACK) -> None:
        self._record = record
        self.quarantine = Quarantine(record, MAX_FAILURES)
        self.steps, self.failed = dict.fromkeys(trials, 0), dict[str, str]()
        self.pack: list[str] = []
        self.num_tries = dict.fromkeys(trials, 0)
        self.num_deaths = 0

    def admit(self) -> list[str]:
        """Let all try to join."""
        for key in self.steps:
            refusal = self.quarantine.refusal(key)
            if refusal is not None:
                self.failed[key] = refusal
            elif key not in self.pack and self.quarantine.may_join(key, self.pack):
                self.pack.append(key)
        for key in self.failed:
            self.steps.pop(key, None)
            self.quarantine.forget(key, has_ended=True)
        return sorted(self.pack)

    def step(self, killers: Collection[str] = (), at: int = 3, most: int = 99) -> None:
        """A step of the pack; a worker dies of a killer's step `at`, and of a pack of more than `most`."""
        self.quarantine.note_running({key: self.steps[key] for key in self.pack})
        if len(self.pack) > most or any(self.steps[key] == at for key in self.pack if key in killers):
            self.die()
            return
        for key in self.pack:
            self.steps[key] += 1
        if self.quarantine.note_survival({key: self.steps[key] for key in self.pack}):
            self.pack = []

    def die(self) -> None:
        """End the worker; the next one takes its place, and the trials go back to an older checkpoint."""
        self.num_deaths += 1
        for key in self.pack:
            self.num_tries[key] += 1
            self.steps[key] = max(0, self.steps[key] - 1)
        self.pack = []
        self.quarantine = Quarantine(self._record, MAX_FAILURES)


def test_before_any_death_all_may_join(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "record")
    assert sweep.admit() == sorted(PACK) and sweep.quarantine.last_death is None
    assert Quarantine(None, MAX_FAILURES).may_join("a", PACK)


@pytest.mark.parametrize("killer", PACK)
def test_a_trial_that_always_kills_its_worker_is_found_and_the_others_are_not_blamed(
    tmp_path: Path, killer: str
) -> None:
    sweep = Sweep(tmp_path / "record")
    for _ in range(60):
        sweep.admit()
        sweep.step([killer])
    assert list(sweep.failed) == [killer]
    assert f"died {MAX_FAILURES + 1} times with no other trial in the pack" in sweep.failed[killer]
    assert min(sweep.steps.values()) > 20, "the others go on"
    assert sweep.num_deaths <= 3 + MAX_FAILURES + 1  # three halvings of five leave one
    assert max(tries for key, tries in sweep.num_tries.items() if key != killer) <= 3


def test_two_killers_are_both_found(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "record")
    for _ in range(80):
        sweep.admit()
        sweep.step(["b", "e"])
    assert sorted(sweep.failed) == ["b", "e"] and min(sweep.steps.values()) > 20


def test_a_worker_that_is_killed_from_outside_costs_nobody_anything(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "record")
    for number in range(1, 40):
        sweep.admit()
        sweep.step()
        if number % 10 == 0:
            sweep.quarantine.forget("another that has ended", has_ended=True)
            sweep.quarantine.note_running({key: sweep.steps[key] for key in sweep.pack})
            sweep.die()
            assert len(sweep.admit()) == 3
    assert not sweep.failed and sweep.admit() == sorted(PACK)


def test_a_lone_trial_is_set_aside_only_where_it_gets_no_further(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "record", ["a"])
    for _ in range(10):  # it dies ever later
        sweep.admit()
        sweep.step()
        sweep.step()
        sweep.quarantine.note_running(sweep.steps)
        sweep.die()
    assert not sweep.failed
    sweep.steps["a"] = 5
    for _ in range(3 * MAX_FAILURES + 3):
        sweep.admit()
        sweep.step(["a"], at=5)
        if sweep.failed:
            break
    assert list(sweep.failed) == ["a"]


def test_trials_that_are_too_many_for_the_worker_share_it_in_halves_until_one_ends(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "record")
    for _ in range(30):
        sweep.admit()
        sweep.step(most=3)
    assert not sweep.failed and sweep.num_deaths <= 4
    assert len(sweep.pack) == 2
    sweep.steps.pop(sweep.pack.pop())
    sweep.quarantine.forget("a", has_ended=False)
    assert len(sweep.admit()) == 2, "one that pauses makes no room"
    sweep.quarantine.forget("a", has_ended=True)
    assert len(sweep.admit()) == 4


def test_a_death_between_two_steps_is_nobodys(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "record")
    sweep.admit()
    sweep.step()
    sweep.quarantine.note_cause("RuntimeError: gone")
    sweep.die()
    assert sweep.quarantine.last_death == "RuntimeError: gone, between two steps"
    assert sweep.admit() == sorted(PACK)


def test_suspects_that_do_not_come_hold_up_nobody_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(tmp_path / "record")
    sweep.admit()
    sweep.quarantine.note_running(sweep.steps)
    sweep.die()
    assert not sweep.quarantine.may_join("e", [])
    monkeypatch.setattr(quarantine_module.time, "monotonic", lambda: 1e12)
    assert not sweep.quarantine.may_join("e", ["a"])  # it waits for those who came
    sweep.quarantine.forget("a", has_ended=True)
    assert sweep.quarantine.may_join("e", [])


def test_a_process_that_is_ended_on_purpose_is_no_death_and_leaves_no_suspects(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "record")
    sweep.admit()
    sweep.step()
    sweep.quarantine.note_retirement()
    again = Quarantine(tmp_path / "record", MAX_FAILURES)
    assert again.num_deaths == 0 and again.last_death is None
    assert all(again.may_join(key, ["another"]) for key in PACK)
    again.note_running({"a": 1})
    assert Quarantine(tmp_path / "record", MAX_FAILURES).num_deaths == 1, "only once"


@pytest.mark.parametrize("killer", PACK)
def test_a_trial_that_kills_every_worker_it_is_moved_to_is_found(tmp_path: Path, killer: str) -> None:
    """Each worker is lost with its machine, so no other reads its record in its place."""
    trials, gone = dict.fromkeys(PACK, 3), [tmp_path / "0"]
    Quarantine(gone[0], MAX_FAILURES).note_running(trials)
    for number in range(1, 20):
        here = tmp_path / str(number)
        quarantine = Quarantine(here, MAX_FAILURES)
        has_suspects = quarantine.inherit(gone[-1], list(trials))
        if quarantine.refusal(killer) is not None:
            break
        assert has_suspects, "others make room"
        pack: list[str] = []
        while killer not in pack:  # those whose turn comes first get past their step
            pack = [key for key in trials if quarantine.may_join(key, pack)]
            quarantine.note_running({key: trials[key] for key in pack})
            if killer not in pack:
                trials |= {key: trials[key] + 1 for key in pack}
                quarantine.note_survival({key: trials[key] for key in pack})
        gone.append(here)
    assert f"died {MAX_FAILURES + 1} times with no other trial in the pack" in (quarantine.refusal(killer) or "")
    assert len(gone) <= 3 + MAX_FAILURES + 1  # three halvings of five leave one
    assert all(quarantine.refusal(key) is None for key in PACK if key != killer)


def test_what_is_known_of_a_trial_is_where_it_was_last(tmp_path: Path) -> None:
    first = Quarantine(tmp_path / "0", MAX_FAILURES)
    first.note_running({"a": 3})
    second = Quarantine(tmp_path / "1", MAX_FAILURES)
    second.inherit(tmp_path / "0", ["a"])
    second.note_running({"a": 3})
    assert not second.note_survival({"a": 4}), "past its step it is free"
    first = Quarantine(tmp_path / "0", 0)
    assert first.refusal("a") is not None, "this worker has not heard of that"
    first.inherit(tmp_path / "1", ["a"])
    assert first.refusal("a") is None


def test_trials_of_a_worker_that_died_between_two_steps_or_left_no_record_come_as_they_are(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "1", MAX_FAILURES)
    Quarantine(tmp_path / "0", MAX_FAILURES)
    for record in ("0", "none"):
        assert not quarantine.inherit(tmp_path / record, PACK)
        assert all(quarantine.may_join(key, PACK) for key in PACK)


def test_a_record_is_read_to_the_end_of_its_line_though_a_longer_one_was_there(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "record", MAX_FAILURES)
    quarantine.note_cause("an error " * 100)
    quarantine.note_cause("short")
    assert Quarantine(tmp_path / "record", MAX_FAILURES).last_death == "short, between two steps"


@pytest.mark.parametrize("left", [b'{"num_deaths": 2, "runni', b"\0" * 4096, b"[]\n", b'{"an_older": 1}\n', b"\xff\n"])
def test_a_worker_starts_from_a_record_that_its_disk_has_damaged(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "record").write_bytes(left)
    quarantine = Quarantine(tmp_path / "record", MAX_FAILURES)
    assert quarantine.num_deaths == 1 and quarantine.may_join("a", PACK)
    assert Quarantine(tmp_path / "record", MAX_FAILURES).num_deaths == 2, "it is written anew"


def test_a_worker_starts_where_no_record_can_be_kept(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "no folder" / "record", MAX_FAILURES)
    quarantine.note_running({"a": 1})
    assert quarantine.note_survival({"a": 2}) is False and quarantine.may_join("b", ["a"])
