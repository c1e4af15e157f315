"""What makes the model fast on a CPU, and changes no number beyond rounding.

In: the model's layers, and the tensors of one attention or one product. Out: the same results, sooner.
Read first: `backend.py`, which overrides the plain backend, then `onednn.py`.
"""
