"""How prefixray and the paper are cited."""

_BIBTEX = """@inproceedings{li-liang-2021-prefix,
  title     = {Prefix-Tuning: Optimizing Continuous Prompts for Generation},
  author    = {Li, Xiang Lisa and Liang, Percy},
  booktitle = {Proceedings of the 59th Annual Meeting of the Association for Computational Linguistics and the
               11th International Joint Conference on Natural Language Processing (Volume 1: Long Papers)},
  year      = {2021},
  pages     = {4582--4597},
  publisher = {Association for Computational Linguistics},
  doi       = {10.18653/v1/2021.acl-long.353}
}

@software{prefixray,
  title     = {prefixray: prefix-tuning sweeps in which all trials share one frozen model},
  version   = {VERSION},
  year      = {2026}
}"""


def bibtex(version: str) -> str:
    """The entries of the paper and of this version of prefixray, as BibTeX."""
    return _BIBTEX.replace("VERSION", version)
