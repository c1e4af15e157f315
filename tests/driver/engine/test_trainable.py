"""What a trial's seat does while its worker is not where it was: without Ray, whose answers are played."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

from prefixray.config.trials import LoraTrial, TrialConfig
from prefixray.driver.engine import trainable
from prefixray.driver.engine.trainable import TrialTrainable
from prefixray.trial import Admission, Report, TrialSpec

LAST = Report("lora/0", 10, "done", {"dev/loss": 2.0})


class PlayedWorker:
    """Lets everyone in, and has a last report for each."""

    join = SimpleNamespace(remote=lambda spec, token: Admission("joined"))
    next_report = SimpleNamespace(remote=lambda key, token: LAST)


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrialTrainable:
    """The seat of a trial that is placed on a worker."""
    config = TrialConfig(arm="lora", learning_rate=1e-3, num_steps=10, method=LoraTrial(rank=1))
    spec = TrialSpec("lora/0", config, 1, 0, (), str(tmp_path / "trial"))
    spec.place_on("worker-0")
    seat = object.__new__(TrialTrainable)
    seat.setup({"spec": spec, "namespace": "prefixray-1"})
    monkeypatch.setattr(seat._closed, "wait", lambda seconds: None)
    return seat


def _find(monkeypatch: pytest.MonkeyPatch, *found: Callable[[], Any]) -> None:
    """Have these come of looking for the worker, one after another, and the last one from then on."""
    looks = list(found)

    def get_actor(name: str, namespace: str) -> Any:  # noqa: ANN401
        return (looks.pop(0) if len(looks) > 1 else looks[0])()

    monkeypatch.setattr(trainable, "ray", SimpleNamespace(get_actor=get_actor, get=lambda answer: answer))


def _no_such() -> Any:  # noqa: ANN401
    raise ValueError("Failed to look up actor with name 'worker-0'")


def _unavailable() -> Any:  # noqa: ANN401
    raise ActorUnavailableError("it is started again", None)


def test_a_worker_that_was_given_up_while_a_trial_looked_for_it_is_no_end(
    trial: TrialTrainable, monkeypatch: pytest.MonkeyPatch
) -> None:
    _find(monkeypatch, _no_such, _unavailable, _no_such, PlayedWorker)
    assert trial.step() == {"report": LAST, "done": True}


def test_where_it_was_placed_may_be_unreadable_for_a_moment(
    trial: TrialTrainable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "trial" / "worker"
    place.rename(tmp_path / "aside")
    _find(monkeypatch, PlayedWorker)
    monkeypatch.setattr(trial._closed, "wait", lambda seconds: (tmp_path / "aside").rename(place))
    assert trial.step() == {"report": LAST, "done": True}


def test_a_seat_that_tune_has_closed_does_not_join_again(
    trial: TrialTrainable, monkeypatch: pytest.MonkeyPatch
) -> None:
    _find(monkeypatch, lambda: trial.cleanup() or _no_such(), lambda: pytest.fail("it has looked for its worker again"))
    assert trial.step()["report"].lost


def test_a_trial_that_has_moved_joins_its_new_worker_at_once(
    trial: TrialTrainable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hand_over(key: str, token: str) -> None:
        trial._spec.place_on("worker-1")

    source = SimpleNamespace(join=PlayedWorker.join, next_report=SimpleNamespace(remote=hand_over))
    _find(monkeypatch, lambda: source, PlayedWorker)
    monkeypatch.setattr(trial._closed, "wait", lambda seconds: pytest.fail("it waits"))
    assert trial.step() == {"report": LAST, "done": True}
