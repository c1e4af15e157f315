"""How the next configuration of an arm is proposed.

In: an arm's search space and the trials of its study. Out: values of the searched keys.
Read first: `parameters.py`, then `samplers.py`.
"""
