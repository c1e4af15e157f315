"""A trial on disk: its checkpoints, its artifact, and the forms in which other programs load the artifact.

In: a trained method. Out: folders of JSON and safetensors: ours, PEFT's, transformers' cache, the hub's; and artifacts
made of the original's checkpoints.
Read first: `record.py`, then `store.py`.
"""
