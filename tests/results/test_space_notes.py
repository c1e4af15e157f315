"""What a sweep says of its own space."""

import math

import pytest
from support.studies import make_arm

from prefixray.config.schema import ArmConfig
from prefixray.config.space import Cases, Choice, Int, LogUniform, Uniform
from prefixray.results.record import SearchTrial
from prefixray.results.space_notes import divergence_note, edge_notes, space_notes
from prefixray.system.records import Scalar

FLAT, NETWORK = LogUniform(log_uniform=(1e-3, 4e-2)), LogUniform(log_uniform=(3e-5, 1e-3))
ARM = make_arm(
    {
        "preseqlen": Choice(choice=(1, 5, 10, 20)),
        "mid_dim": Choice(choice=(None, 512)),
        "learning_rate": Cases(
            cases=(
                FLAT.model_copy(update={"when": {"mid_dim": (None,)}}),
                NETWORK.model_copy(update={"when": {"mid_dim": (512,)}}),
            )
        ),
    },
    8,
)


def trial(number: int, mid_dim: int | None, dev_loss: float | None, state: str = "done") -> SearchTrial:
    config: dict[str, Scalar] = {"preseqlen": 10, "mid_dim": mid_dim, "learning_rate": 1e-3 * (1 + number)}
    return SearchTrial(
        arm="prefix", number=number, config=config, step=40, num_steps=40, dev_loss=dev_loss, state=state, rung=None
    )


@pytest.mark.parametrize(
    ("winner", "notes"),
    [
        (
            {"preseqlen": 10, "mid_dim": None, "learning_rate": 4e-2},
            ["prefix: the winner's learning_rate 0.04 is the largest allowed (0.001 to 0.04); widen it"],
        ),
        (
            {"preseqlen": 20, "mid_dim": 512, "learning_rate": 3e-5},
            [
                "prefix: the winner's preseqlen 20 is the largest allowed (1 to 20); widen it",
                "prefix: the winner's learning_rate 3e-05 is the smallest allowed (3e-05 to 0.001); widen it",
            ],
        ),
        ({"preseqlen": 10, "mid_dim": 512, "learning_rate": 3e-4}, []),
        ({"preseqlen": 10, "mid_dim": None, "learning_rate": 2e-2}, []),
        ({"preseqlen": 1, "mid_dim": None, "learning_rate": 2e-2}, []),  # nothing is shorter than 1
    ],
)
def test_a_winner_at_an_end_of_its_range_is_named(winner: dict[str, Scalar], notes: list[str]) -> None:
    assert edge_notes(ARM, winner) == notes


def test_a_value_near_an_end_is_at_the_end_on_the_scale_of_its_range() -> None:
    arm = make_arm(
        {"learning_rate": FLAT, "prefix_dropout": Uniform(uniform=(0.0, 0.5)), "preseqlen": Int(int=(2, 40))}, 8
    )
    assert edge_notes(arm, {"learning_rate": 3.8e-2, "prefix_dropout": 0.01, "preseqlen": 20}) == [
        "prefix: the winner's learning_rate 0.038 is near the largest allowed (0.001 to 0.04); widen it"
    ]
    assert len(edge_notes(arm, {"learning_rate": 1e-2, "prefix_dropout": 0.49, "preseqlen": 2})) == 2
    long = make_arm({"preseqlen": Choice(choice=(32, 64, 128))}, 3)
    assert edge_notes(long, {"preseqlen": 128}) == [
        "prefix: the winner's preseqlen 128 is the largest allowed (32 to 128); widen it"
    ]


def test_a_value_with_which_most_trials_diverged_is_named() -> None:
    flat = [trial(number, None, 1.6 + number / 10) for number in range(4)]
    network = [trial(4, 512, 5.6), trial(5, 512, 7.1, "stopped"), trial(6, 512, None, "failed")]
    said = "prefix: 3 of 3 trials with mid_dim 512 diverged: their learning rates may be too large"
    assert divergence_note("prefix", [*flat, *network], 3.2) == said
    assert divergence_note("prefix", [*flat, trial(4, 512, 5.6), trial(5, 512, 1.7), trial(6, 512, 1.8)], 3.2) is None
    assert divergence_note("prefix", flat, 3.2) is None
    assert divergence_note("prefix", [*network, trial(7, 512, 2.0)], 3.2) == (
        "prefix: 3 of 4 trials diverged: their learning rates may be too large"
    )
    assert divergence_note("prefix", [trial(0, None, math.nan), trial(1, None, 1.6)], 3.2) is None, "too few"


def test_an_arm_with_nothing_to_search_is_named_with_its_learning_rate() -> None:
    fixed = ArmConfig.model_validate(
        {**make_arm({}, 1, fixed={"learning_rate": 5e-5}).model_dump(), "name": "finetune", "method": "finetune"}
    )
    search = [trial(number, None, 1.6) for number in range(3)]
    winners: dict[str, dict[str, Scalar]] = {
        "prefix": {"preseqlen": 10, "mid_dim": None, "learning_rate": 2e-2},
        "finetune": {},
    }
    assert space_notes([ARM, fixed], winners, search) == [
        "not searched, so ranked by one learning rate alone: finetune (5e-05)"
    ]
    assert space_notes([fixed], {"finetune": {}}, []) == [], "nothing is ranked"
    assert space_notes([ARM, fixed], {"prefix": winners["prefix"]}, search) == [], "its runs failed"


def test_a_divergence_from_a_teacher_is_no_measure_of_another_loss() -> None:
    lora = ArmConfig.model_validate({**ARM.model_dump(), "name": "lora", "method": "lora"})
    distilled: list[SearchTrial] = [
        {**trial(number, None, 0.2), "arm": "lora", "is_divergence": True} for number in range(3)
    ]
    others = [trial(number, None, 1.6) for number in range(3)]
    assert space_notes([ARM, lora], {}, [*distilled, *others]) == []
    near: SearchTrial = {**distilled[0], "dev_loss": 0.04}
    assert space_notes([lora], {}, [*distilled, near]) == [], "0.2 nats is five times 0.04, and no divergence"
    assert (
        "3 of 4 trials diverged" in space_notes([ARM], {}, [*(trial(n, None, 9.0) for n in range(3)), *others[:1]])[0]
    )
