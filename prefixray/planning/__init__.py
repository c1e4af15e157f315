"""What a sweep would take: memory, slots, steps and hours, before anything is started.

In: a `SweepConfig`, the base's sizes, measured speeds. Out: an estimate, and how many trials fit on a device.
Read first: `estimate.py`.
"""
