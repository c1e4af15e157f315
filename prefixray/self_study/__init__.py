"""Self-study: a base writes questions about a document and answers them, with the document in its context.

In: a base, a template and a document. Out: a folder with the questions and answers, and what the base predicts at the
answers' tokens: what a prefix that stands for the document is trained on.
Read first: `study.py`.
"""
