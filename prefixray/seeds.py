"""Seeds that depend on what a number is for, never on when it was asked for.

Every random draw of a sweep derives from (sweep seed, replicate, purpose): search trials are replicate 0 and so share
their data order (common random numbers); the runs of the final stage are replicates 1 to k.
"""

import hashlib


def derive_seed(seed: int, replicate: int, purpose: str) -> int:
    """A 63-bit seed for one purpose ("data", "init", "dropout", ...) of one replicate."""
    digest = hashlib.sha256(f"{seed}/{replicate}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
