"""What each worker of a sweep did at which time, as the file `timeline.jsonl` in the sweep's folder.

In: what the workers do now, asked a few times a second. Out: the file, and the same as spans of time.
Read first: `keeper.py`, which writes the file; then `read.py`.
"""
