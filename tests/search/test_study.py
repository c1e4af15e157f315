"""The search of an arm: what it proposes, and what outlives a killed driver."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.studies import GRID, SPACE, ask, distinct, make_arm, open_study, run_all, start_and_kill

from prefixray.config.schema import SamplerName, SearchConfig, SweepConfig
from prefixray.config.space import AnyDimension, Cases, Choice, Int, LogUniform, Uniform
from prefixray.config.trials import TrainConfig
from prefixray.errors import UserError
from prefixray.search.storage import open_storage, repair_journal
from prefixray.search.study import ArmStudy, search_trial
from prefixray.search.trial_source import Proposal
from prefixray.system.records import Scalar


def test_a_larger_num_trials_extends_the_study(tmp_path: Path) -> None:
    assert len(run_all(open_study(tmp_path, make_arm(SPACE, 3)))) == 3
    assert open_study(tmp_path, make_arm(SPACE, 3)).ask() is None
    longer = open_study(tmp_path, make_arm(SPACE, 7))
    assert len(run_all(longer)) == 4
    assert len(longer.records()) == 7


def test_proposals_after_a_relaunch_are_not_a_repeat(tmp_path: Path) -> None:
    arm = make_arm(SPACE, 12)
    first = open_study(tmp_path, arm)
    proposals = [ask(first) for _ in range(3)]
    for proposal in proposals:
        first.tell(proposal.number, "done", 2.0)
    proposals += run_all(open_study(tmp_path, arm))
    assert distinct(proposals) == 12


def test_the_same_sweep_proposes_the_same(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    once, again = (run_all(open_study(tmp_path / name, make_arm(SPACE, 8))) for name in "ab")
    assert [proposal.values for proposal in once] == [proposal.values for proposal in again]


def test_a_small_grid_is_tried_whole_and_no_point_twice(tmp_path: Path) -> None:
    study = open_study(tmp_path, make_arm(GRID, 20))
    proposals = run_all(study)
    assert len(proposals) == distinct(proposals) == 8
    assert len(study.records()) == 8
    assert study.ask() is None


def test_what_is_to_be_tried_first_is_tried_first_and_once(tmp_path: Path) -> None:
    paper: dict[str, Scalar] = {"preseqlen": 5, "learning_rate": 0.05}
    arm = make_arm(SPACE, 3, first=(paper, paper, {"learning_rate": 0.001}))
    study = open_study(tmp_path, arm)
    assert ask(study).values == paper
    assert ask(study).values["learning_rate"] == 0.001
    again = open_study(tmp_path, make_arm(SPACE, 6, first=(*arm.first, {"preseqlen": 20, "learning_rate": 0.002})))
    assert [ask(again).adopted for _ in range(2)] == [True, True]
    assert ask(again).values == {"preseqlen": 20, "learning_rate": 0.002}
    assert [paper == proposal.values for proposal in run_all(again)] == [False] * 3


def test_a_dimension_is_absent_where_its_condition_does_not_hold(tmp_path: Path) -> None:
    dropout = Choice(choice=(0.0, 0.1), when={"mid_dim": (512,)})
    width = Int(int=(1, 2), when={"init_token": ("table",)})
    arm = make_arm({"mid_dim": GRID["mid_dim"], "prefix_dropout": dropout, "preseqlen": width}, 20)
    proposals = run_all(open_study(tmp_path, arm.model_copy(update={"fixed": {"init_token": "table"}})))
    assert len(proposals) == distinct(proposals) == 2 * (1 + 2)
    assert all(("prefix_dropout" in p.values) == (p.values["mid_dim"] == 512) for p in proposals)
    (tmp_path / "other").mkdir()
    others = run_all(open_study(tmp_path / "other", arm.model_copy(update={"fixed": {"init_token": None}})))
    assert len(others) == 3
    assert all("preseqlen" not in p.values for p in others)


def test_each_case_of_a_key_is_searched_in_its_own_range(tmp_path: Path) -> None:
    flat, network = (1e-3, 4e-2), (3e-5, 1e-3)
    rates = Cases(
        cases=(
            LogUniform(log_uniform=flat, when={"mid_dim": (None,)}),
            LogUniform(log_uniform=network, when={"mid_dim": (512,)}),
        )
    )
    first = {"mid_dim": 512, "learning_rate": 2e-4}
    arm = make_arm({"mid_dim": GRID["mid_dim"], "learning_rate": rates}, 12, first=(first,))
    study = open_study(tmp_path, arm)
    proposals = run_all(study)
    assert proposals[0].values == first
    for proposal in proposals:
        low, high = flat if proposal.values["mid_dim"] is None else network
        rate = proposal.values["learning_rate"]
        assert isinstance(rate, float) and low <= rate <= high
    assert {proposal.values["mid_dim"] for proposal in proposals} == {None, 512}
    assert [record.values for record in study.records()] == [proposal.values for proposal in proposals]
    with pytest.raises(UserError, match="prefix/0 has these values already"):
        study.add(first, "a request")
    number = study.add({"mid_dim": None, "learning_rate": 1e-2}, "another request")
    assert ask(study) == Proposal(number, {"mid_dim": None, "learning_rate": 1e-2}, adopted=False)
    # What Optuna's own tools show: a parameter for each case.
    names = {name for trial in study._study.get_trials() for name in trial.params}
    assert names == {"mid_dim", "learning_rate if mid_dim=None", "learning_rate if mid_dim=512"}


def test_a_trial_with_cases_is_adopted_and_a_grid_with_cases_is_tried_whole(tmp_path: Path) -> None:
    lengths = Cases(
        cases=(Choice(choice=(1, 5), when={"mid_dim": (None,)}), Choice(choice=(5, 10, 20), when={"mid_dim": (512,)}))
    )
    arm = make_arm({"mid_dim": GRID["mid_dim"], "preseqlen": lengths}, 20)
    running = ask(open_study(tmp_path, arm))
    study = open_study(tmp_path, arm)
    assert ask(study) == Proposal(running.number, running.values, adopted=True)
    study.tell(running.number, "done", 1.0)
    assert study.size() == 5 and len(run_all(study)) == 4


def test_an_arm_with_nothing_to_search_is_one_trial(tmp_path: Path) -> None:
    assert [proposal.values for proposal in run_all(open_study(tmp_path, make_arm({}, 1)))] == [{}]
    assert open_study(tmp_path, make_arm({}, 1)).ask() is None


def test_the_sampler_learns_where_trials_fail(tmp_path: Path) -> None:
    arm = make_arm({"learning_rate": LogUniform(log_uniform=(1e-5, 1e-1))}, num_trials=24)
    num_failed = 0
    for repeat in range(8):
        study = ArmStudy(open_storage(tmp_path / f"{repeat}.journal"), "sweep", arm, seed=repeat, num_startup=6)
        running: list[Proposal] = []
        for _ in range(arm.num_trials):
            while len(running) < 6 and (proposal := study.ask()) is not None:
                running.append(proposal)
            ended = running.pop(0)
            rate = float(ended.values["learning_rate"] or 0)
            fails = rate > 3e-3  # while the best would be at 1e-2
            study.tell(ended.number, "failed" if fails else "done", None if fails else (math.log10(rate) + 2) ** 2)
            num_failed += fails
        assert len(study.best(24)) == sum(record.state == "done" for record in study.records())
    assert num_failed / 8 < 10.5  # a random search has 9.1; told nothing, TPE seeks failures out and has 13


def test_a_trial_of_a_killed_driver_is_adopted_under_its_number(tmp_path: Path) -> None:
    arm = make_arm(SPACE, 4)
    number, preseqlen, learning_rate = start_and_kill(tmp_path, arm)
    repair_journal(tmp_path / "study.journal")
    study = open_study(tmp_path, arm)
    adopted = ask(study)
    assert adopted == Proposal(1, {"preseqlen": int(preseqlen), "learning_rate": float(learning_rate)}, adopted=True)
    assert int(number) == 1
    study.report(1, 20, 2.5)
    study.tell(1, "done", 2.5)
    assert dict(study.records()[1].reports) == {10: 3.0, 20: 2.5}
    rest = run_all(study)
    assert [proposal.adopted for proposal in rest] == [False, False]
    assert [record.state for record in study.records()] == ["done"] * 4


def test_arms_share_a_journal_without_sharing_trials(tmp_path: Path) -> None:
    prefix = open_study(tmp_path, make_arm(SPACE, 3))
    lora = open_study(tmp_path, make_arm(SPACE, 2).model_copy(update={"name": "lora"}))
    ask(prefix)
    assert [proposal.number for proposal in run_all(lora)] == [0, 1]
    assert len(run_all(prefix)) == 2
    assert len(prefix.records()) == 3


NUMBERS: Mapping[str, AnyDimension] = {
    "learning_rate": LogUniform(log_uniform=(1e-5, 1e-1)),
    "prefix_dropout": Uniform(uniform=(0.0, 0.5)),
}


def _loss(proposal: Proposal) -> float:
    """The lowest loss, 1, is at a learning rate of 1e-2 and a dropout of 0.1."""
    rate, dropout = (float(proposal.values[key] or 0) for key in NUMBERS)
    return 1 + (math.log10(rate) + 2) ** 2 + 4 * (dropout - 0.1) ** 2


@pytest.mark.parametrize(("sampler", "half"), [("tpe", 12), ("gp", 4), ("cmaes", 12), ("random", 12)])
def test_every_sampler_proposes_within_the_space_and_goes_on_after_a_relaunch(
    tmp_path: Path, sampler: SamplerName, half: int
) -> None:
    """Three trials run at a time, every third is stopped, and the driver is started anew after half of them."""
    for num_trials in (half, 2 * half):
        study = open_study(tmp_path, make_arm(NUMBERS, num_trials), sampler)
        running: list[Proposal] = []
        while (proposal := study.ask()) is not None or running:
            running += [] if proposal is None else [proposal]
            if len(running) == 3 or proposal is None:
                ended = running.pop(0)
                study.report(ended.number, 20, _loss(ended))
                study.tell(ended.number, "stopped" if ended.number % 3 == 2 else "done", _loss(ended))
    assert len(study.records()) == 2 * half
    assert len({str(record.values) for record in study.records()}) == 2 * half
    assert all(NUMBERS[key].contains(value) for record in study.records() for key, value in record.values.items())
    traces = {
        "tpe": "tpe:relative_params",
        "gp": "gp:relative_params",
        "cmaes": "cma:generation",
    }  # of Optuna's classes
    last = study._study.get_trials()[-1].system_attrs
    assert sampler == "random" or any(name.startswith(traces[sampler]) for name in last)


def test_a_grid_is_tried_in_the_order_of_its_seed_each_point_once(tmp_path: Path) -> None:
    lengths = Cases(cases=(Choice(choice=(1, 5), when={"mid_dim": (None,)}), Int(int=(2, 4), when={"mid_dim": (512,)})))
    dimensions = {"mid_dim": GRID["mid_dim"], "preseqlen": lengths, "prefix_dropout": Choice(choice=(0.0, 0.1))}
    some = run_all(open_study(tmp_path, make_arm(dimensions, 4), "grid"))
    study = open_study(tmp_path, make_arm(dimensions, 20), "grid")
    taken_back = next(point for key, point in (study._grid or {}).items() if key not in study._tried())
    assert study.drop(study.add(taken_back, "a request"), "another")
    rest = run_all(study)
    assert distinct([*some, *rest]) == len(some) + len(rest) == 2 * (2 + 3), "what is taken back has its turn"
    points = [list(proposal.values.values()) for proposal in some]
    assert points != sorted(points, key=str)


def test_the_sampler_learns_from_paused_trials_as_from_stopped_ones(tmp_path: Path) -> None:
    proposed = []
    for name in ("stopped", "paused"):
        (tmp_path / name).mkdir()
        study = open_study(tmp_path / name, make_arm(SPACE, 12))
        for loss in (2.0, 3.0, 2.5, 4.0, 1.5, 3.5):
            number = ask(study).number
            study.report(number, 10, loss)
            if name == "paused":
                study.pause(number, 10, {})
            else:
                study.tell(number, "stopped", None)
        proposed.append([ask(study).values for _ in range(3)])
    assert proposed[0] == proposed[1]


def test_the_record_of_a_trial_says_where_its_losses_are_divergences(tmp_path: Path) -> None:
    config = SweepConfig.model_construct(search=SearchConfig(num_trials=1, rungs=()), train=TrainConfig(num_steps=40))
    for fixed, is_divergence in ({"objective": "distill"}, True), ({}, None):
        arm = make_arm(SPACE, 1, fixed=fixed)
        (tmp_path / str(is_divergence)).mkdir()
        study = open_study(tmp_path / str(is_divergence), arm)
        ask(study)
        (record,) = study.records()
        assert search_trial(config, arm, record).get("is_divergence") is is_divergence
