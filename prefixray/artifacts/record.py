"""The types of an artifact's JSON. An artifact may come from anyone, so its JSON is checked before it is used.

The checksum beside it finds damaged files; these types find files that were never right. No torch is needed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    NonNegativeInt,
    PositiveInt,
    Tag,
    TypeAdapter,
    ValidationError,
)

from prefixray.config.schema import DecodingSettings
from prefixray.config.trials import METHODS, AnyTrial, MethodName, PrefixTrial, TrialConfig
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.system.path_or_hub import is_commit, local_path
from prefixray.system.records import Strict, Text

FORMAT = 3
_NUM_SHOWN = 10
_LARGEST = 100_000  # limit of any size in a method: a method is built before its tensors are compared


class BaseRecord(Strict):
    """The base that an artifact belongs to."""

    name: Text
    """The base's name in the sweep file."""
    digest: str
    """The digest of its weights, or the hub's commit."""
    shape: Mapping[str, Any]
    """Its sizes; each is compared with that of the loaded base."""


class TemplateRecord(Strict):
    """How a source became a prompt: `batching.Template` without its tokenizer."""

    is_encoder_decoder: bool
    form: tuple[str, str]
    target_form: tuple[str, str]
    before: tuple[NonNegativeInt, ...]
    after: tuple[NonNegativeInt, ...]
    target_before: tuple[NonNegativeInt, ...]
    eos_id: NonNegativeInt
    pad_id: NonNegativeInt
    max_source_tokens: PositiveInt
    max_target_tokens: PositiveInt


class ConvertedConfig(Strict):
    """The configuration of an artifact that the original trained; the recipe of its training is not known."""

    arm: str
    method: PrefixTrial
    checkpoint: str
    """SHA-256 of the original's file."""


def _without_order(config: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without the key `order`, which earlier versions wrote: decoding does not depend on it."""
    return {key: value for key, value in config.items() if key != "order"}


def _kind(config: object) -> str:
    return "trained" if isinstance(config, Mapping) and "learning_rate" in config else "converted"


def _are_of_the_beam_search(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    if unknown := sorted(set(settings) - set(DecodingSettings.model_fields)):
        raise ValueError(f"no such setting: {', '.join(unknown)}")
    DecodingSettings.model_validate_json(json.dumps(settings), strict=True)
    return settings


def check_decoding(settings: Mapping[str, Any]) -> None:
    """Raise `UserError` for settings that the beam search does not take."""
    try:
        _are_of_the_beam_search(settings)
    except ValidationError as error:
        problems = [(str(detail["loc"][0]), detail["msg"]) for detail in error.errors()]
        raise UserError(*(f"{key}: {settings[key]}: {problem}" for key, problem in problems)) from None
    except ValueError as error:
        raise UserError(f"decoding: {error}") from None


class ArtifactRecord(BaseModel):
    """An artifact's JSON without its format and its checksum."""

    model_config = ConfigDict(frozen=True)

    method: MethodName
    config: Annotated[
        Annotated[TrialConfig, BeforeValidator(_without_order), Tag("trained")]
        | Annotated[ConvertedConfig, Tag("converted")],
        Discriminator(_kind),
    ]
    base: BaseRecord
    precision: Literal["fp32", "bf16", "4bit"]
    """The base's precision in training, and so in decoding."""
    positions: Literal["offset", "unshifted"]
    """Whether a row's own positions start behind its prefix."""
    task: TaskConfig
    document: Text | None = None
    """The name of the document that it is about; null: its task has none."""
    template: Mapping[str, Any]
    """How a source became a prompt (`TemplateRecord`); it is checked when prompts are made with it."""
    decoding: Annotated[Mapping[str, Any], AfterValidator(_are_of_the_beam_search)] | None
    """The settings of its sweep's beam search; null: the defaults."""
    scores: Mapping[str, float]
    """Scores of the training: dev/loss."""


def check_new(out: Path) -> None:
    """Raise `UserError` for a folder that holds something already, and for the one that the command runs in."""
    if out.absolute() == Path.cwd():
        raise UserError(f"--out: {out}: is the folder that you are in; name a new one")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out: {out}: is not empty; name a new folder")


def check_record(where: str, body: Mapping[str, Any], method: str) -> None:
    """Raise `UserError`, a line for each problem, if `body` cannot be the JSON of an artifact of `method`."""
    if body.get("format") != FORMAT:
        raise UserError(f"{where}: artifact format {body.get('format')!r}; this prefixray reads format {FORMAT}")
    _check(ArtifactRecord, where, body)
    values = body["config"]["method"]
    for key in (key for key, value in values.items() if isinstance(value, int) and value > _LARGEST):
        raise UserError(f"{where}: config.method.{key}: {values[key]}: fits no base; copy or train it again")
    inside = values["method"]
    if not body["method"] == inside == method:
        raise UserError(
            f"{where}: method: {body['method']!r} with a configuration of {inside!r}, in a file of {method!r}"
        )


def check_template(where: str, template: Mapping[str, Any], *, vocab_size: int, is_encoder_decoder: bool) -> None:
    """Raise `UserError` for a template that cannot make prompts for the base."""
    where = f"{where}: template"
    _check(TemplateRecord, where, template)
    record = TemplateRecord.model_validate(template)
    if record.is_encoder_decoder != is_encoder_decoder or bool(record.target_before) != is_encoder_decoder:
        kind = "an encoder-decoder" if is_encoder_decoder else "a decoder-only base"
        raise UserError(f"{where}: is not that of {kind}; copy or train it again")
    ids = (*record.before, *record.after, *record.target_before, record.eos_id, record.pad_id)
    if max(ids) >= vocab_size:
        raise UserError(f"{where}: token {max(ids)}: the base has {vocab_size} of them; copy or train it again")


def trial_method(record: Mapping[str, Any]) -> AnyTrial:
    """The method of an artifact's record, with its values."""
    method: AnyTrial = TypeAdapter(AnyTrial).validate_python(record["config"]["method"])
    return method


def name_in_transformers(base: Mapping[str, Any]) -> str | None:
    """The name by which transformers loads a base from anywhere; None for a GGUF file, which prefixray converts."""
    here = local_path(base["name"])
    if (here is not None and here.is_file()) or ":" in base["name"]:
        return None
    return base["name"] if here is None else str(here.resolve())


def torch_dtype(record: Mapping[str, Any]) -> str:
    """The dtype of an artifact's base, for transformers, which else takes that of the base's files."""
    return "float32" if record["precision"] == "fp32" else "bfloat16"


def is_on_hub(base: Mapping[str, Any]) -> bool:
    """Whether a base comes from the hub: its digest is a commit then. A folder's name can look like a hub id."""
    return is_commit(base["digest"])


def commit_of(base: Mapping[str, Any], name: str) -> str | None:
    """The hub's commit with which an artifact was trained; None where `name` is not its base, or not of the hub."""
    return base["digest"] if name == base["name"] and is_on_hub(base) else None


def _check(model: type[BaseModel], where: str, values: Mapping[str, Any]) -> None:
    try:
        model.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        problems = [_sentence(where, detail["loc"], detail["msg"]) for detail in error.errors()]
        hidden = [f"{where}: and {len(problems) - _NUM_SHOWN} more"] if len(problems) > _NUM_SHOWN else []
        raise UserError(*problems[:_NUM_SHOWN], *hidden) from None


def _sentence(where: str, loc: tuple[int | str, ...], message: str) -> str:
    """One problem with its key. pydantic also names the member of a union that it tried; that name is left out."""
    tried = {"trained", "converted", *METHODS}
    key = ".".join(str(part) for i, part in enumerate(loc) if i == 0 or part not in tried)
    return f"{where}: {key}: {message[0].lower()}{message[1:]}; copy or train it again"
