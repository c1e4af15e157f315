"""Texts become token ids, rows and batches.

In: examples and a base's tokenizer. Out: rows, the order in which a trial sees them, and batches as tensors.
Read first: `rows.py`, then `template.py`.
"""
