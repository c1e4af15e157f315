"""Policies: which trials of an arm get steps.

In: dev losses at rungs. Out: which trials pass, pause or stop, and which paused ones are resumed.
Read first: `contract.py`, then `halving.py`, `settling.py` and `freeze_thaw.py`; `choice.py` makes the one that a sweep
file names, and `replay.py` replays whole searches.
"""
