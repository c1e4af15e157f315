"""A sweep file becomes a `SweepConfig`: typed, frozen, with every problem reported at once as `file:line`.

In: a YAML file, `--set` and `--scale`. Out: `SweepConfig`, and for each trial a `TrialConfig` with nothing left to
search. Nothing heavy is imported: a wrong file is refused before torch or Ray are loaded.
Read first: `schema.py`, then `load.py`.
"""
