"""Ray Tune as the engine of a sweep: it asks the coordinator for trials, and hands it their reports.

In: a coordinator. Out: its trials have run. Read first: `tune.py`; then `trainable.py`, what Tune runs for each trial.
"""
