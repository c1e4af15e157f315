"""Sweep files as files: by which names they and their results are found, and which ones ship with prefixray."""
