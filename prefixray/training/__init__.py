"""Many trials train in one forward of one frozen base.

In: rows, and the configurations of trials. Out: losses, reports, checkpoints and artifacts.
Read first: `pack.py`, then `trainer.py`.
"""
