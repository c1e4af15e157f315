"""What a device takes for a step, and what follows for the pack on it. Comes in: a pack. Goes out: `Costs`.

A CPU's costs are constants of `layout.py`, since all that were seen are alike. A GPU's are measured when a worker
starts: cards differ in memory and speed by far more than a table would hold. Read first: `costs.py`.
"""
