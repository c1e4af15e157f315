"""A base with artifacts bound to it writes text.

In: sources and artifacts. Out: hypotheses, by beam search, and their scores.
Read first: `generate.py`, then `beam_search.py`.
"""
