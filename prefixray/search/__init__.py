"""The search of one sweep: Optuna studies, halving, requests from outside, the budget, and the state of its trials.

In: an arm's search space and the dev losses of its trials. Out: the next configuration, and which trials go on.
No torch and no Ray: all of it runs in the driver.
Read first: `trial_source.py`, then `study.py` and `policies/`.
"""
