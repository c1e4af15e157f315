"""The frozen base, and what its attention looks at.

In: the name of a pretrained model; while a batch runs, what each trial puts into it (`Insert`). Out: a `Base` whose
forward gives every row its own trial's prefix, adapters or updates.
Read first: `base.py`, then `binding/`. `backend.py` chooses between stock torch (`plain.py`) and `fast_cpu/`.
"""
