"""The sections of a report, as plain text, figures and tables.

In: a sweep's record and its folder. Out: sections, which `page.py` writes as HTML and as Markdown. A title is the
question that its figure or table answers.
Read first: `section.py`, then `whole.py`.
"""
