"""Documents that are to become prefixes.

In: a file or a folder of texts. Out: `Document`s, each with a name and a text.
Read first: `read.py`.
"""

from prefixray.data.documents.read import Document, read_documents

__all__ = ["Document", "read_documents"]
