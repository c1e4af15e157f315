"""The backend of a GPU."""

from prefixray.model.plain import PlainBackend


class CUDABackend(PlainBackend):
    """Stock torch, with the products of many trials as one."""

    stacks_trials = True
