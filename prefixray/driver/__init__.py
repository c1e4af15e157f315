"""The sweep itself: one process that searches, trains the winners again, and writes the results.

In: a `SweepConfig`. Out: the folder `runs/NAME`. Ray Tune carries trials to workers and their reports back.
Read first: `run.py`, the story of a sweep; then `coordinator.py`, the life of a trial.
"""
