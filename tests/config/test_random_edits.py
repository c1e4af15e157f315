"""Sweep files with random edits cause nothing but a user error."""

import json
from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.sweep_files import VALID, load

from prefixray.errors import UserError

_SETTINGS = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_NAMES = st.sampled_from(["choice", "int", "log_uniform", "when", "method", "first", "preseqlen", "train", "rungs"])
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3), max_leaves=6
)


def _only_a_user_error(text: str, overrides: Sequence[str] = ()) -> None:
    try:
        load(text, *overrides)
    except UserError as error:
        assert all(problem.startswith(("x.yaml", "--set ")) for problem in error.problems)


@_SETTINGS
@given(st.data())
def test_a_file_with_random_edits_causes_nothing_but_a_user_error(data: st.DataObject) -> None:
    text = VALID
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text) - 1))
        end = min(len(text), start + data.draw(st.integers(0, 6)))
        text = text[:start] + data.draw(st.text(alphabet=" \n:{}[],-'\"&*!#|>%019e.ax\t\\", max_size=4)) + text[end:]
    _only_a_user_error(text)


@_SETTINGS
@given(st.data())
def test_any_value_anywhere_causes_nothing_but_a_user_error(data: st.DataObject) -> None:
    keys = ["name", "base", "task", "task.num_dev", "train", "train.warmup_steps", "arms", "arms.prefix", "search"]
    keys += ["arms.prefix.preseqlen", "arms.prefix.first", "arms.prefix.learning_rate.log_uniform", "search.rungs"]
    keys += ["arms.prefix.prefix_dropout.when", "arms.finetune.method", "final", "final.metric", "tracking.mlflow"]
    overrides = [f"{data.draw(st.sampled_from(keys))}={json.dumps(data.draw(_VALUES))}" for _ in range(2)]
    _only_a_user_error(VALID, overrides)
