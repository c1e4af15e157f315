"""Ray: where workers run, and which trial runs on which worker.

In: the devices of this machine or of a cluster; trials that want a slot. Out: workers that train and decode, replaced
when they die.
Read first: `worker.py`, then `pool.py`.
"""
