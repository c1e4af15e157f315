"""What the pool refuses before anything is trained."""

from typing import Any

import pytest

from prefixray.config import ArmConfig, TrainConfig, UserError
from prefixray.pool import check_exclusive

FOUND: dict[str, Any] = {"num_parameters": 406_291_456, "device": "NVIDIA A10G"}


def _arm(method: str) -> ArmConfig:
    train = TrainConfig(num_steps=1)
    return ArmConfig(name=f"my-{method}", method=method, fixed={}, dimensions={}, num_trials=1, train=train)  # type: ignore[arg-type]


def test_full_fine_tuning_that_cannot_fit_is_refused_with_what_it_needs() -> None:
    arms = [_arm("lora"), _arm("finetune")]
    with pytest.raises(UserError) as refused:
        check_exclusive(arms, FOUND, free=6 << 30)
    assert str(refused.value) == (
        "arms.my-finetune: full fine-tuning needs 6.1 GiB (406,291,456 parameters x 16 bytes) beside the base, and a "
        "worker on NVIDIA A10G has 6.0 GiB free; remove the arm, or take a smaller base or a larger device"
    )
    check_exclusive(arms, FOUND, free=7 << 30)
    check_exclusive(arms[:1], FOUND, free=1 << 30)
