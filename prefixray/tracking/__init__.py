"""MLflow, called by the driver alone.

In: what happens to a sweep and its trials. Out: runs with metrics, parameters, tags and artifacts, complete also where
the server was away for a while.
Read first: `tracker.py` (what the driver calls), `events.py`, `mlflow_store.py` (what lands in MLflow).
"""
