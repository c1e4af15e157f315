"""What happens before the search of a sweep over a document: the base studies it, on a worker of its own.

Read first: `make.py`.
"""
