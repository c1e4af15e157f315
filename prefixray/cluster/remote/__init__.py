"""A cluster used from elsewhere: check its file for `ray up`, and submit a sweep to it.

In: `cluster.yaml`, a sweep file. Out: problems with their lines; a Ray job, and its output.
Read first: `cluster_file.py`.
"""
