"""Scales of a sweep file: named sets of values that take the place of the file's own, as `--set` would.

A paper's table is one file; `--scale laptop` makes the same comparison on a smaller base and fewer rows. The results of
a scaled sweep have a folder of their own, `NAME-laptop`, so that nobody takes one for the other.
"""

import re
from collections.abc import Sequence

from prefixray.config.schema import SweepConfig
from prefixray.system.yaml_document import Document, suggestion

_KEY = "scale"


def apply_scales(document: Document, chosen: Sequence[str]) -> None:
    """Take the block `scale` out of the document and put what the chosen scales say in place, in their order.

    Problems go to the document: with the block itself, whichever scale is chosen, and with a choice that it lacks.
    """
    known = _checked(document)
    for name in chosen:
        if name not in known:
            hint = suggestion(name, known, what="the scales are") or " (the file has no scales)"
            document.complain((), f"--scale {name}: no such scale{hint}")
            continue
        for key in known[name]:
            document.put((_KEY, name, key), tuple(key.split(".")))
    document.values.pop(_KEY, None)
    own_name = document.values.get("name")
    if isinstance(own_name, str):
        document.values["name"] = "-".join((own_name, *chosen))


def scale_names(document: Document) -> list[str]:
    """The scales that a file has."""
    blocks = document.values.get(_KEY)
    return list(blocks) if isinstance(blocks, dict) else []


def _checked(document: Document) -> dict[str, list[str]]:
    """The dotted keys of each scale that can be read."""
    if _KEY not in document.values:
        return {}
    known: dict[str, list[str]] = {}
    sections = [name for name in SweepConfig.model_fields if name != "name"]
    for name in document.mapping((_KEY,)) or {}:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]*", name):
            document.complain((_KEY, name), "a scale's name must be letters, digits and '_'")
        body = document.mapping((_KEY, name)) or {}
        known[name] = []
        for key in body:
            section, *inner = key.split(".")
            if section not in sections or "" in inner:
                hint = suggestion(section, sections, what="the first part is one of")
                document.complain((_KEY, name, key), f"must be a dotted key like train.num_steps{hint}")
            else:
                known[name].append(key)
    return known
