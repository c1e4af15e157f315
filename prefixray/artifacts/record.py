"""What an artifact says about itself, in types: it may come from anyone, and is believed only as far as it fits them.

The checksum beside it tells what was damaged on the way; this tells what was never right. No torch is needed.
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
from prefixray.system.records import Strict, Text

FORMAT = 3
_NUM_SHOWN = 10
_LARGEST = 100_000  # of any size of a method: what a stranger's file says is built before it is compared


class BaseRecord(Strict):
    """The base that an artifact belongs to."""

    name: Text
    """As the sweep file named it."""
    digest: str
    """Of its weights, or the hub's commit."""
    shape: Mapping[str, Any]
    """Its sizes, compared one by one with those of the base that is loaded."""


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
    """The configuration of an artifact that was trained elsewhere: its recipe is not known."""

    arm: str
    method: PrefixTrial
    checkpoint: str
    """SHA-256 of the file that it was made from."""


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
        found = [(str(detail["loc"][0]), detail["msg"]) for detail in error.errors()]
        raise UserError(*(f"{key}: {settings[key]}: {problem}" for key, problem in found)) from None
    except ValueError as error:
        raise UserError(f"decoding: {error}") from None


class ArtifactRecord(BaseModel):
    """All of an artifact's JSON but its format and checksum."""

    model_config = ConfigDict(frozen=True)

    method: MethodName
    config: Annotated[
        Annotated[TrialConfig, BeforeValidator(_without_order), Tag("trained")]
        | Annotated[ConvertedConfig, Tag("converted")],
        Discriminator(_kind),
    ]
    base: BaseRecord
    precision: Literal["fp32", "bf16", "4bit"]
    """Of the base in training, and so in decoding."""
    positions: Literal["offset", "unshifted"]
    """Whether a row's own positions start behind its prefix."""
    task: TaskConfig
    template: Mapping[str, Any]
    """A `TemplateRecord`; checked when text is made of it."""
    decoding: Annotated[Mapping[str, Any], AfterValidator(_are_of_the_beam_search)] | None
    """The settings of the beam search that its sweep decodes with; null: the usual ones."""
    scores: Mapping[str, float]
    """What was measured in training: dev/loss."""


def check_new(out: Path) -> None:
    """Refuse to write among what a folder holds already: `UserError`."""
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out: {out}: is not empty; name a new folder")


def check_record(place: str, body: Mapping[str, Any], method: str) -> None:
    """Refuse what cannot be the JSON of an artifact of `method`: `UserError` with a line for each problem."""
    if body.get("format") != FORMAT:
        raise UserError(f"{place}: artifact format {body.get('format')!r}; this prefixray reads format {FORMAT}")
    _check(ArtifactRecord, place, body)
    values = body["config"]["method"]
    for key in (key for key, value in values.items() if isinstance(value, int) and value > _LARGEST):
        raise UserError(f"{place}: config.method.{key}: {values[key]}: fits no base; copy or train it again")
    inside = values["method"]
    if not body["method"] == inside == method:
        raise UserError(
            f"{place}: method: {body['method']!r} with a configuration of {inside!r}, in a file of {method!r}"
        )


def check_template(place: str, template: Mapping[str, Any], *, vocab_size: int, is_encoder_decoder: bool) -> None:
    """Refuse a template that prompts for a base cannot be made of, as `check_record` does."""
    place = f"{place}: template"
    _check(TemplateRecord, place, template)
    record = TemplateRecord.model_validate(template)
    if record.is_encoder_decoder != is_encoder_decoder or bool(record.target_before) != is_encoder_decoder:
        kind = "an encoder-decoder" if is_encoder_decoder else "a decoder-only base"
        raise UserError(f"{place}: is not that of {kind}; copy or train it again")
    ids = (*record.before, *record.after, *record.target_before, record.eos_id, record.pad_id)
    if max(ids) >= vocab_size:
        raise UserError(f"{place}: token {max(ids)}: the base has {vocab_size} of them; copy or train it again")


def trial_method(record: Mapping[str, Any]) -> AnyTrial:
    """The method, with its values, of an artifact's record."""
    method: AnyTrial = TypeAdapter(AnyTrial).validate_python(record["config"]["method"])
    return method


def _check(model: type[BaseModel], place: str, values: Mapping[str, Any]) -> None:
    try:
        model.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        found = [_sentence(place, detail["loc"], detail["msg"]) for detail in error.errors()]
        hidden = [f"{place}: and {len(found) - _NUM_SHOWN} more"] if len(found) > _NUM_SHOWN else []
        raise UserError(*found[:_NUM_SHOWN], *hidden) from None


def _sentence(place: str, loc: tuple[int | str, ...], message: str) -> str:
    """One problem with its key; which part of a union was tried is left out."""
    tried = {"trained", "converted", *METHODS}
    key = ".".join(str(part) for i, part in enumerate(loc) if i == 0 or part not in tried)
    return f"{place}: {key}: {message[0].lower()}{message[1:]}; copy or train it again"
