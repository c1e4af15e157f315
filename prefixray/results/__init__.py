"""A sweep's results: the types of `results.json`, scores with intervals, and the comparison of arms.

In: hypotheses and scores on disk. Out: `results.json`, and a finished sweep as Python objects. No torch from here up.
Read first: `record.py`, then `compare.py`.
"""
