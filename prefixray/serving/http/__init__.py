"""OpenAI's HTTP interface before an engine.

In: an engine. Out: a server. Read first: `app.py`.
"""
