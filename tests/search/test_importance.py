"""How much each searched value matters."""

import math
from pathlib import Path

import pytest
from support.studies import GRID, LEARNING_RATE, SPACE, ask, make_arm, open_study

from prefixray.config.space import Cases, Choice, Int, LogUniform, Uniform
from prefixray.search.importance import parameter_importance
from prefixray.search.storage import open_storage
from prefixray.system.records import Scalar


def test_importance_is_worked_out_from_the_finished_trials_or_from_all_at_the_first_rung(tmp_path: Path) -> None:
    flat: dict[str, tuple[Scalar, ...]] = {"mid_dim": (None,)}
    space = {**SPACE, "mid_dim": GRID["mid_dim"], "depth": Int(int=(1, 4), when=flat)}  # one that not every trial has
    arm = make_arm(space, 24)
    study = open_study(tmp_path, arm)
    journal = tmp_path / "study.journal"
    losses = {}

    def reach_the_first_rung() -> None:
        proposal = ask(study)
        losses[proposal.number] = 1.0 + abs(math.log10(float(proposal.values["learning_rate"] or 1)) + 2)
        study.report(proposal.number, 8, losses[proposal.number])

    for _ in range(9):
        reach_the_first_rung()
    assert parameter_importance(open_storage(journal), "sweep", arm, (8, 16)) is None, "too few trials"
    while len(losses) < 24:
        reach_the_first_rung()
    found = parameter_importance(open_storage(journal), "sweep", arm, (8, 16))
    assert found is not None and (found["step"], found["num_trials"]) == (8, 24)
    assert set(found["shares"]) == set(space) and sum(found["shares"].values()) == pytest.approx(1)
    assert max(found["shares"], key=lambda key: found["shares"][key]) == "learning_rate"
    for number, loss in losses.items():
        study.tell(number, "done" if number < 10 else "stopped", loss)
    found = parameter_importance(open_storage(journal), "sweep", arm, (8, 16))
    assert found is not None and (found["step"], found["num_trials"]) == (40, 10), "the finished ones are enough"
    assert (
        parameter_importance(open_storage(journal), "sweep", make_arm({"learning_rate": LEARNING_RATE}, 24), (8,))
        is None
    )


def test_a_key_with_cases_has_one_importance(tmp_path: Path) -> None:
    cases = (
        LogUniform(log_uniform=(1e-3, 1e-1), when={"mid_dim": (None,)}),
        LogUniform(log_uniform=(1e-5, 1e-3), when={"mid_dim": (512,)}),
    )
    arm = make_arm({"mid_dim": GRID["mid_dim"], "learning_rate": Cases(cases=cases)}, 24)
    study = open_study(tmp_path, arm)
    for _ in range(24):
        proposal = ask(study)
        study.tell(proposal.number, "done", 1.0 + abs(math.log10(float(proposal.values["learning_rate"] or 1)) + 2))
    found = parameter_importance(open_storage(tmp_path / "study.journal"), "sweep", arm, ())
    assert found is not None and set(found["shares"]) == {"mid_dim", "learning_rate"}
    assert sum(found["shares"].values()) == pytest.approx(1)


def test_a_choice_of_whole_numbers_and_a_range_between_them_have_one_importance(tmp_path: Path) -> None:
    cases = (
        Uniform(uniform=(0.01, 0.1), when={"mid_dim": (None,)}),
        Choice(choice=(0, 1), when={"mid_dim": (512,)}),
    )
    arm = make_arm({"mid_dim": GRID["mid_dim"], "weight_decay": Cases(cases=cases), "learning_rate": LEARNING_RATE}, 24)
    study = open_study(tmp_path, arm)
    for number in range(24):
        study.tell(ask(study).number, "done", 1.0 + number)
    found = parameter_importance(open_storage(tmp_path / "study.journal"), "sweep", arm, ())
    assert found is not None and set(found["shares"]) == {"mid_dim", "weight_decay", "learning_rate"}
