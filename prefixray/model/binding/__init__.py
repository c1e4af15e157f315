"""What trials put into the forward of the frozen base, row by row.

In: an `Insert` per trial, and the trial of each row. Out: a forward in which every row sees its own trial's prefix,
infix, adapters or updates. With nothing bound the model is the stock model.
Read first: `insert.py`, then `binder.py`, then `attention.py`.
"""
