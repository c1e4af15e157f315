"""Artifacts answer requests over HTTP, all of them in one batch of one base.

In: the names of sweeps and artifacts, and requests in OpenAI's form. Out: answers, piece by piece.
Read first: `batch.py`, then `engine.py`, then `http/app.py`.
"""
