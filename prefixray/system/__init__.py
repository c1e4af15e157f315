"""Files, logs, the command line, exit codes and this machine: what every other folder stands on.

In: paths, texts, environment variables. Out: files that are whole or not there, a YAML file whose values know their
line, the cores and memory that this process may use. Nothing here knows of models or sweeps.
Read first: `atomic_files.py`.
"""
