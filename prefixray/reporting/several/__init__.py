"""Several sweeps side by side: one table, one correction of all p values, figures over sizes.

In: records of finished sweeps. Out: text, HTML, Markdown, CSV, LaTeX.
Read first: `side_by_side.py`, then `forms.py`.
"""
