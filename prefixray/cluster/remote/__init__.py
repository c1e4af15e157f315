"""A cluster from elsewhere: its file for `ray up` checked, and a sweep submitted to it.

In: `cluster.yaml`, a sweep file. Out: problems with their line; a Ray job, and what it prints.
Read first: `cluster_file.py`.
"""
