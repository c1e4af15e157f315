"""What the driver writes down of trials: for the next driver, for the tracker, for the live view.

In: what happens to trials. Out: studies, result files, runs, and pictures. Read first: `ledger.py`.
"""
