"""Seeds that depend on the purpose of a random draw, never on the order of draws.

Every random draw of a sweep derives from (sweep seed, replicate, purpose): search trials are replicate 0 and so share
their data order (common random numbers); the runs of the final stage are replicates 1 to k.
"""

import hashlib

CANDIDATE_REPLICATE = 1000
"""The replicate of candidates: their seeds differ from those of the search (0) and the final runs (1 to num_seeds)."""


def subset_of(replicate: int, num_subsets: int) -> int:
    """The subset of low data that a replicate trains on: final runs take turns, all others train on the first."""
    is_final = 0 < replicate < CANDIDATE_REPLICATE
    return (replicate - 1) % num_subsets if is_final else 0


def derive_seed(seed: int, replicate: int, purpose: str) -> int:
    """A 63-bit seed for one purpose ("data", "init", "dropout", ...) of one replicate."""
    digest = hashlib.sha256(f"{seed}/{replicate}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
