"""The backend of a GPU."""

from prefixray.model.plain import PlainBackend


class CUDABackend(PlainBackend):
    """Stock torch, with the products and the updates of many trials as one."""

    stacks_trials = True
    updates_together = True
