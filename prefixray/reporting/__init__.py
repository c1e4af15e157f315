"""Everything that a user reads of a sweep: tables, charts, the report and the live view. No torch.

In: `results.json`, or pictures of a sweep that runs. Out: text, Markdown, CSV, HTML.
Read first: `tables.py`, then `sections/`.
"""
