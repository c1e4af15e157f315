"""Charts as SVG strings, from plain numbers: no library and no script.

In: measured values, axes with their units. Out: an `<svg>` of a phone's width that carries its numbers as tooltips.
Colours are the page's classes `k0` to `k5`; a shape, a dash or a filling says the same as each colour.
Read first: `plots.py`, one function per chart; it draws with `canvas.py` along the scales of `axes.py`.
"""
