"""Scales of a sweep file: named sets of values that replace the file's own, as `--set` would.

A paper's table is one file; `--scale laptop` makes the same comparison on a smaller base and fewer rows. A scaled sweep
is named `NAME-laptop`, so its results lie in a folder of their own. The paper's way of measuring, `evaluation: paper`,
is a set of values too: defaults of keys that the file does not name.
"""

import re
from collections.abc import Sequence

from prefixray.config.schema import SweepConfig
from prefixray.data.catalog import CATALOG, SUMMARIZATION
from prefixray.data.task_config import TaskConfig
from prefixray.system.yaml_document import Document, suggestion

_KEY = "scale"
PAPERS_DECODING = ("length_with_prompt", "ban_line_breaks")  # of `final`: true in the paper's data-to-text


def apply_scales(document: Document, chosen: Sequence[str]) -> None:
    """Take the block `scale` out of the document, and put the values of the chosen scales in place, in their order.

    The whole block is checked, whichever scale is chosen. Problems are added to the document's.
    """
    known = _checked(document)
    for scale in chosen:
        if scale not in known:
            hint = suggestion(scale, known, what="the scales are") or " (the file has no scales)"
            document.complain((), f"--scale {scale}: no such scale{hint}")
            continue
        for key in known[scale]:
            document.put((_KEY, scale, key), tuple(key.split(".")))
    document.values.pop(_KEY, None)
    name = document.values.get("name")
    if isinstance(name, str):
        document.values["name"] = "-".join((name, *chosen))


def apply_evaluation(document: Document) -> None:
    """Put the paper's values where the file asks for its way of measuring and names no others.

    Those of `final` are about GPT-2, on which the paper's summaries were not made.
    """
    task = document.values.get("task")
    name = task.get("name") if isinstance(task, dict) else None
    if document.values.get("evaluation") != "paper" or not isinstance(name, str) or name not in CATALOG:
        return
    keys = [("task", key) for key in papers_form(name)]
    if CATALOG[name].kind is not SUMMARIZATION:
        keys += [("final", key) for key in PAPERS_DECODING]
    for section, key in keys:
        values = document.values.setdefault(section, {})
        if isinstance(values, dict):
            values.setdefault(key, True)


def papers_form(task: str) -> dict[str, bool]:
    """The keys of a task that give its rows the form that they had in the paper."""
    return {key: True for key in CATALOG[task].form_keys if TaskConfig.model_fields[key].annotation is bool}


def scale_names(document: Document) -> list[str]:
    """The scales that a file has."""
    blocks = document.values.get(_KEY)
    return list(blocks) if isinstance(blocks, dict) else []


def _checked(document: Document) -> dict[str, list[str]]:
    """The scales and their dotted keys, as far as they are valid."""
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
