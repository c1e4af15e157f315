"""Ray: the workers that train and decode, and which trial runs on which worker.

In: the devices of this machine or of a cluster; trials that want a slot. Out: trained trials and decoded sources, from
workers that are replaced when they die.
Read first: `worker.py` and `loop.py`, which run on the devices; then `fleet.py` and `pool.py`, which run in the driver.
"""
