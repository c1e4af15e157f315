"""Dropout that does not depend on the device, on the order of draws, or on how a batch was cut.

In: a seed, a step, a row's number. Out: which elements are dropped.
Read first: `hashed_draws.py`, then `row_dropout.py`.
"""
