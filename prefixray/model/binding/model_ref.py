"""A model, known to its own hooks.

A binder that held its model would be part of a ring, since the model's hooks hold the binder. The weights of a
fine-tuned model whose trial has ended would then stay in memory until Python looks for garbage, which may be never.
"""

import copy
import weakref

from transformers import PreTrainedModel


class ModelRef:
    """Gives the model, and does not keep it; a deep copy of the model knows the copy."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._ref = weakref.ref(model)

    def __call__(self) -> PreTrainedModel:
        """The model, which lives while its hooks run."""
        model = self._ref()
        assert model is not None, "who uses a model's binder holds the model"
        return model

    def __deepcopy__(self, memo: dict[int, object]) -> "ModelRef":
        """`memo` has the model's copy already, since the model leads here."""
        return ModelRef(copy.deepcopy(self(), memo))
