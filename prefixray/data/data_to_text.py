"""Data-to-text: E2E (restaurants; in the package), WebNLG 2017 (triples; folder or hub set), DART (triples; folder).

All are linearised as in Li & Liang 2021, so that prefixes and published numbers can be compared.
E2E's targets are the official references, stripped. The challenge scores against them as they are, and a model of
untokenised text need not learn another spelling first. The original's files have them tokenised (`task.tokenised`).
"""

import csv
import gzip
import io
import json
import re
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from prefixray.data.entries import DataConfig, Entry, Splits
from prefixray.data.hub import load_hub
from prefixray.data.row_files import for_each_split, is_folder
from prefixray.data.texts import is_empty, text_problem
from prefixray.errors import UserError
from prefixray.system.path_or_hub import expanded

HUB_CONFIG = "webnlg_challenge_2017"

E2E_FIELDS = {  # a field's name in the meaning representation -> its name in a source; in the source's order
    "name": "name",
    "eatType": "Type",
    "food": "food",
    "priceRange": "price",
    "customer rating": "customer rating",
    "area": "area",
    "familyFriendly": "family friendly",
    "near": "near",
}
E2E_PRICES = {"less than £20": "less than £ 20", "£20-25": "£ 20 - 25", "more than £30": "more than £ 30"}

Triple = tuple[str, str, str]

_E2E_TOKEN = re.compile(
    r"""
      n't\b | '(?:s|re|ve|ll|d|m)\b        # is n't, it 's
    | \d+-[^\W\d]\w* | \d+(?:[.,]\d+)+   # 5-star, 30.99
    | \w'oeuvres? | \w+(?=n't\b) | \w+   # hors d'oeuvre
    | \.{2,} | [^\w\s]
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class TripleSet:
    """An entry of WebNLG: triples, and texts that express them, each with the crowd's verdict on it."""

    category: str
    triples: tuple[Triple, ...]
    texts: tuple[str, ...]
    verdicts: tuple[str, ...]  # "good" or "toFix"
    num_empty: int = 0  # further texts, which were empty


def load_e2e(config: DataConfig) -> Splits:
    """The E2E challenge (Novikova et al. 2017): 42,061 training pairs, 547 dev sources, 630 test sources."""
    return Splits(**for_each_split(lambda split: _read_e2e(split, tokenised=config.tokenised)))


def load_webnlg(config: DataConfig) -> Splits:
    """The WebNLG challenge of 2017, from the folder or the hub data set that `task.path` names.

    The loss is computed on texts marked "good" only; hypotheses are scored against all texts. A source's group is
    "seen" where its category occurs in train, else "unseen". Raises `UserError` where the path leads nowhere or a file
    is broken.
    """
    if config.path is None:
        raise UserError("task.path: webnlg needs the folder of the 2017 challenge's files or a hub data set")
    path = config.path
    sets = _read_folder(expanded(path)) if is_folder(path) else _read_hub(path)
    sets["test"] = _without_copies(sets["test"])
    seen = {entry.category for entry in sets["train"]}
    return Splits(**{split: _entries(of_split, seen) for split, of_split in sets.items()})


def load_dart(config: DataConfig) -> Splits:
    """DART (Nan et al. 2021), version 1.1.1, from a folder with its JSON files: a train, a dev and a test file.

    Raises `UserError` with all problems when a file is missing or broken.
    """
    if config.path is None:
        raise UserError("task.path: dart needs the folder of its JSON files (github.com/Yale-LILY/dart, data/v1.1.1)")
    folder = expanded(config.path)
    if not folder.is_dir():
        raise UserError(f"task.path: {config.path}: no such folder; dart reads that of its JSON files")

    def read(split: str) -> list[Entry]:
        files = sorted(folder.glob(f"*{split}*.json")) + sorted(folder.glob(f"*{split}*.json.gz"))
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            must = f"must have one file *{split}*.json or *{split}*.json.gz"
            raise UserError(f"task.path: {folder}: {must}; found {names}")
        return _read_dart(files[0])

    return Splits(**for_each_split(read))


@cache  # the training file has each meaning about nine times
def linearise_meaning(meaning: str) -> str:
    """`name[The Eagle], priceRange[£20-25]` -> `name : The Eagle | price : £ 20 - 25`, with fields in a fixed order."""
    values = dict(re.findall(r"(\w[\w ]*)\[([^\]]*)\]", meaning))
    assert values.keys() <= E2E_FIELDS.keys(), f"unknown field in {meaning}"
    fields = [(ours, values[theirs]) for theirs, ours in E2E_FIELDS.items() if theirs in values]
    return " | ".join(f"{name} : {E2E_PRICES.get(value, value)}" for name, value in fields)


def tokenise_e2e(text: str) -> str:
    """The text with a blank around each word and mark, as in the original's files.

    Of the original's 4,693 test references, 25 are another text (mostly ranges: `20-£25` is one word there), and of
    its 4,672 dev references, whose contractions are split differently (`isn 't`), 77.
    """
    return " ".join(_E2E_TOKEN.findall(text))


def linearise_triples(triples: Iterable[Triple]) -> str:
    """` | subject : property : object` for each triple, with a bar before the first triple too."""
    return "".join(f" | {subject} : {property_} : {object_}" for subject, property_, object_ in triples)


def linearise_dart(triples: Iterable[Triple]) -> str:
    """`subject : relation : object` for each triple, with bars between triples and relations in lower case."""
    return " | ".join(f"{subject} : {relation.lower()} : {object_}" for subject, relation, object_ in triples)


def _read_dart(file: Path) -> list[Entry]:
    """`[{"tripleset": [[subject, relation, object], ...], "annotations": [{"text": ...}, ...]}, ...]`."""
    entries = []
    try:
        for number, row in enumerate(_read_whole(file), start=1):
            triples = [(subject, relation, object_) for subject, relation, object_ in row["tripleset"]]
            all_texts = [annotation["text"] for annotation in row["annotations"]]
            place = f"{file}: entry {number}"
            texts = _without_empty(place, all_texts)
            if not texts:
                raise UserError(f"{place}: has no text; it must have one")
            _check_texts(place, [*(part for triple in triples for part in triple), *texts])
            stripped, num_empty = tuple(text.strip() for text in texts), len(all_texts) - len(texts)
            entries.append(Entry(linearise_dart(triples), stripped, stripped, num_empty=num_empty))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: is not in the form of DART's JSON ({error!r})") from error
    return entries


def _read_whole(file: Path) -> Any:  # noqa: ANN401
    """The content of a JSON file, gzipped or not. Raises `UserError` with the file's name and line."""
    try:
        content = file.read_bytes()
        return json.loads(gzip.decompress(content) if file.suffix == ".gz" else content)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: is not JSON: {error.msg}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{file}: is not a whole gzip file: {error}") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: is not JSON that can be read: {error}") from error


def _without_empty(place: str, texts: Sequence[Any]) -> list[Any]:
    """The texts that are not empty. Raises `UserError` where all of several, or the only one, are."""
    good = [text for text in texts if not is_empty(text)]
    if texts and not good:
        which = "its only text is" if len(texts) == 1 else f"all its {len(texts)} texts are"
        raise UserError(f"{place}: {which} empty; it must have one")
    return good


def _check_texts(place: str, texts: Iterable[object]) -> None:
    if problems := [
        f"{place}: {text!r:.40} {problem}" for text in texts if (problem := text_problem(text)) is not None
    ]:
        raise UserError(*problems)


def _read_e2e(split: str, *, tokenised: bool) -> list[Entry]:
    packed = resources.files("prefixray.data").joinpath("e2e", f"{split}.csv.gz").read_bytes()
    _, *rows = csv.reader(io.StringIO(gzip.decompress(packed).decode(), newline=""))
    form = tokenise_e2e if tokenised else str.strip
    pairs = [(linearise_meaning(meaning), (form(text),)) for meaning, text in rows]
    return [Entry(source, targets=texts, references=texts) for source, texts in pairs]


def _entries(sets: Sequence[TripleSet], seen: set[str]) -> list[Entry]:
    return [
        Entry(
            linearise_triples(entry.triples),
            targets=tuple(t for t, verdict in zip(entry.texts, entry.verdicts, strict=True) if verdict == "good"),
            references=entry.texts,
            group="seen" if entry.category in seen else "unseen",
            num_empty=entry.num_empty,
        )
        for entry in sets
    ]


def _without_copies(test: Sequence[TripleSet]) -> list[TripleSet]:
    """The challenge has test three times: without texts, with texts, and its unseen categories again by themselves."""
    return list(dict.fromkeys(entry for entry in test if entry.texts))


def _read_folder(folder: Path) -> dict[str, list[TripleSet]]:
    """Each split from FOLDER/SPLIT.json or from all XML files under FOLDER/SPLIT/.

    Raises `UserError` with the problems of all splits.
    """

    def read(split: str) -> list[TripleSet]:
        json_file, xml_files = folder / f"{split}.json", sorted((folder / split).rglob("*.xml"))
        if json_file.is_file():
            return _read_json(json_file)
        if not xml_files:
            raise UserError(f"task.path: {folder}: has neither {split}.json nor XML files in {split}/")
        return [entry for file in xml_files for entry in _read_xml(file)]

    return for_each_split(read)


def _read_xml(file: Path) -> list[TripleSet]:
    try:
        root = ET.fromstring(file.read_bytes())
    except ET.ParseError as error:
        raise UserError(f"{file}:{error.position[0]}: is not XML: {error}") from error
    except (LookupError, ValueError) as error:
        raise UserError(f"{file}:1: is not XML that can be read: {error}; save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    sets = []
    for entry in root.iter("entry"):
        triples = [triple.text or "" for triple in entry.iterfind("modifiedtripleset/mtriple")]
        texts = [(text.text or "", text.get("comment", "")) for text in entry.iterfind("lex")]
        place = f"{file}: entry {entry.get('eid')}"
        sets.append(_triple_set(place, entry.get("category", ""), [_split_triple(t, place) for t in triples], texts))
    return sets


def _read_json(file: Path) -> list[TripleSet]:
    """The challenge's JSON: `{"entries": [{"1": {category, modifiedtripleset, lexicalisations}}, ...]}`."""
    try:
        entries = [entry for numbered in _read_whole(file)["entries"] for entry in numbered.items()]
        sets = []
        for number, entry in entries:
            triples = [(t["subject"], t["property"], t["object"]) for t in entry["modifiedtripleset"]]
            texts = [(text["lex"], text["comment"]) for text in entry["lexicalisations"]]
            sets.append(_triple_set(f"{file}: entry {number}", entry["category"], triples, texts))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: is not in the form of the WebNLG challenge's JSON ({error!r})") from error
    return sets


def _read_hub(name: str) -> dict[str, list[TripleSet]]:
    hub = load_hub(name, HUB_CONFIG, remedy="give the folder of the 2017 challenge's files")
    return {split: _hub_split(name, split, hub_rows.rows) for split, hub_rows in hub.items()}


def _hub_split(name: str, split: str, rows: Iterable[Mapping[str, Any]]) -> list[TripleSet]:
    """A split in the form of `webnlg-challenge/web_nlg`: of an entry's modified triple sets, the first counts."""
    sets = []
    for number, row in enumerate(rows):
        place = f"task.path: {name}: row {number} of {split}"
        try:
            triples = [_split_triple(t, place) for t in _column(row["modified_triple_sets"], "mtriple_set")[0]]
            texts = list(zip(_column(row["lex"], "text"), _column(row["lex"], "comment"), strict=True))
            category = row["category"]
        except (KeyError, TypeError, IndexError) as error:
            raise UserError(f"{place}: is not in the form of webnlg-challenge/web_nlg ({error!r})") from error
        sets.append(_triple_set(place, category, triples, texts))
    return sets


def _column(records: Mapping[str, list[Any]] | list[Mapping[str, Any]], key: str) -> list[Any]:
    """One key's value in all records. `datasets` gives records as a list; its old form is a mapping of lists."""
    return list(records[key]) if isinstance(records, Mapping) else [record[key] for record in records]


def _triple_set(place: str, category: str, triples: Sequence[Triple], texts: Sequence[tuple[str, str]]) -> TripleSet:
    if not triples:
        raise UserError(f"{place}: has no modified triple set")
    if not all(isinstance(value, str) for value in (category, *(verdict for _, verdict in texts))):
        raise UserError(f"{place}: its category and its comments must be text")
    good = _without_empty(place, [text for text, _ in texts])
    _check_texts(place, [*(part for triple in triples for part in triple), *good])
    verdicts = tuple(verdict for text, verdict in texts if not is_empty(text))
    stripped = tuple(text.strip() for text in good)
    return TripleSet(category, tuple(triples), stripped, verdicts, num_empty=len(texts) - len(good))


def _split_triple(text: str, place: str) -> Triple:
    parts = [part.strip() for part in text.split(" | ")]
    if len(parts) != 3:
        raise UserError(f"{place}: {text!r} is not a triple of the form subject | property | object")
    return parts[0], parts[1], parts[2]
