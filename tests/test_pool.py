"""How many workers the pool wants, and what it refuses before anything is trained."""

from typing import Any

import pytest

from prefixray.config import ArmConfig, TrainConfig, UserError
from prefixray.pool import check_exclusive, workers_wanted

SITE = {"num_layers": 12, "num_kv_heads": 16, "head_dim": 64}
SHAPE = {
    "is_encoder_decoder": True,
    "sites": {"encoder": SITE, "decoder": SITE, "cross": SITE},
    "hidden_size": 1024,
    "ffn_size": 4096,
    "vocab_size": 50_265,
    "num_parameters": 406_291_456,
}
FOUND: dict[str, Any] = {"num_parameters": 406_291_456, "device": "NVIDIA A10G", "shape": SHAPE}


def _arm(method: str, **fixed: Any) -> ArmConfig:  # noqa: ANN401
    given = {"learning_rate": 1e-4, **fixed}
    train = TrainConfig(num_steps=1)
    return ArmConfig(name=f"my-{method}", method=method, fixed=given, dimensions={}, num_trials=1, train=train)  # type: ignore[arg-type]


def test_fine_tuning_that_cannot_fit_is_refused_with_what_it_needs() -> None:
    arms = [_arm("lora", rank=2), _arm("finetune")]
    with pytest.raises(UserError) as refused:
        check_exclusive(arms, FOUND, free=6 << 30)
    assert str(refused.value) == (
        "arms.my-finetune: fine-tuning needs 6.1 GiB beside the base (16 bytes for each parameter that is trained, 4 "
        "for each other), and a worker on NVIDIA A10G has 6.0 GiB free; remove the arm, train fewer top_layers, or "
        "take a smaller base or a larger device"
    )
    check_exclusive(arms, FOUND, free=7 << 30)
    check_exclusive(arms[:1], FOUND, free=1 << 30)


def test_fine_tuning_of_the_last_blocks_needs_less() -> None:
    arm = _arm("finetune", top_layers=2, tune_embeddings=False)
    check_exclusive([arm], FOUND, free=2 << 30)
    with pytest.raises(UserError, match=r"needs 1\.\d GiB"):
        check_exclusive([arm], FOUND, free=1 << 30)


@pytest.mark.parametrize(
    ("num_trials", "num_full", "num_devices", "most", "wanted"),
    [
        (16, 1, 0, 8, 1),  # a pack holds them all: one machine is asked for
        (16, 4, 0, 8, 4),  # four at a time
        (16, 1, 3, 8, 3),  # what is there is used
        (2, 1, 3, 8, 2),  # but no more than there are trials
        (64, 16, 0, 8, 8),  # and the cluster has its bounds
        (0, 0, 5, 8, 1),  # one stays, for what comes next
    ],
)
def test_devices_that_are_there_are_used_and_more_are_asked_for_only_when_packs_are_full(
    num_trials: int, num_full: int, num_devices: int, most: int, wanted: int
) -> None:
    assert workers_wanted(num_trials, num_full, num_devices=num_devices, most=most) == wanted
