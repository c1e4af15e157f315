"""What is there for a GPU's speed alone.

A GPU works off what the host launches; a step of many small products leaves it idle between them. So the products of
many trials are launched as one. Read first: `backend.py`.
"""
