"""What is kept of a trial: its checkpoints, its artifact, and the forms in which others load that.

In: a trained method. Out: folders of JSON and safetensors: ours, PEFT's, the hub's; and artifacts made of the
original's checkpoints.
Read first: `record.py`, then `store.py`.
"""
