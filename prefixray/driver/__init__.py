"""The sweep itself: one process that searches, trains the winners again, and writes the table.

In: a `SweepConfig`. Out: the folder `runs/NAME`. Ray Tune carries trials to workers and their reports back.
Read first: `run.py`, then `coordinator.py`.
"""
