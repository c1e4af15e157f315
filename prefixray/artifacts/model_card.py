"""An artifact's model card: its kind, its scores with their intervals, its configuration, its use and citation.

The card is made from the artifact's record. For an artifact of a sweep's final stage it also takes the scores from
that sweep's `results.json`. The metadata on top has the hub's own form (`huggingface_hub.ModelCardData`), so that the
hub shows the scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from prefixray.artifacts.peft import prompt_lines
from prefixray.artifacts.record import is_on_hub, torch_dtype, trial_method
from prefixray.data.catalog import CATALOG
from prefixray.methods.catalog import facts_of
from prefixray.metrics import decimals, label
from prefixray.results.artifacts import Origin
from prefixray.results.citation import bibtex
from prefixray.results.statistics import p_text


@dataclass(frozen=True)
class Facts:
    """Everything that a card is made of."""

    record: Mapping[str, Any]  # the artifact's
    num_stored: int
    origin: Origin | None  # None: the artifact is not of a final run
    not_in_peft: str | None  # why PEFT cannot load the artifact; None: PEFT can, from the folder itself
    repo: str | None  # USER/NAME on the hub
    licence: str | None  # the hub's name of the licence that the artifact's owner gives


def model_card(facts: Facts) -> ModelCard:
    """The card, metadata and text, by `templates/model_card.md`."""
    record, origin = facts.record, facts.origin
    config = {
        **record["config"],
        **record["config"]["method"],
        "precision": record["precision"],
        "positions": record["positions"],
    }
    kind, inside = _kind(record)
    model = "Seq2SeqLM" if record["base"]["shape"]["is_encoder_decoder"] else "CausalLM"
    more = {
        "title": _title(record),
        "kind": kind,
        "inside": inside,
        "base": record["base"],
        "data": CATALOG[record["task"]["name"]],
        "is_on_hub": is_on_hub(record["base"]),
        "auto_class": f"AutoModelFor{model}",
        "peft_class": f"PeftModelFor{model}",
        "dtype": torch_dtype(record),
        "prompt_lines": prompt_lines(record),
        "source": origin.first_source if origin else "...",
        "values": {key: value for key, value in config.items() if not isinstance(value, Mapping)},
        "task": {key: value for key, value in record["task"].items() if value is not None and key != "columns"},
        "bibtex": bibtex(
            (origin.results["versions"] if origin else {}).get("prefixray", metadata.version("prefixray"))
        ),
        "label": label,
        "number": _number,
        "p_of": _p,
        "shown": _shown,
        "repr": repr,
    }
    template = resources.files("prefixray.artifacts").joinpath("templates/model_card.md").read_text(encoding="utf-8")
    card: ModelCard = ModelCard.from_template(_metadata(facts), template_str=template, **vars(facts), **more)
    return card


def _metadata(facts: Facts) -> ModelCardData:
    record, data = facts.record, CATALOG[facts.record["task"]["name"]]
    on_hub, method = is_on_hub(record["base"]), facts_of(trial_method(record))
    return ModelCardData(
        base_model=record["base"]["name"] if on_hub else None,
        base_model_relation=method.hub_relation if on_hub else None,
        datasets=[data.hub] if data.hub else None,
        library_name="prefixray",
        license=facts.licence,
        model_name=_title(record),
        eval_results=_eval_results(facts.origin, record) or None,
        metrics=list(facts.origin.arm["scores"]) if facts.origin else None,
        pipeline_tag=data.kind.hub_name,
        tags=[method.hub_tag, *([] if facts.not_in_peft else ["peft"])],
    )


def _eval_results(origin: Origin | None, record: Mapping[str, Any]) -> list[EvalResult]:
    """For each metric, the mean over the final runs of this artifact's configuration, with its interval.

    Of several documents it is the score of this artifact alone, on the questions about its document.
    """
    if origin is None:
        return []
    results, name = origin.results, record["task"]["name"]
    data = CATALOG[name]
    all_seeds = {"confidence": 0.95, "seeds": len(origin.arm["seeds"]), "sources": results["num_sources"]}
    told: dict[str, tuple[float, dict[str, object]]] = {
        metric: (score["value"], {"interval": [round(score["low"], 4), round(score["high"], 4)], **all_seeds})
        for metric, score in origin.arm["scores"].items()
    }
    if origin.document is not None:
        told = {metric: (value, {"seed": origin.run["seed"]}) for metric, value in origin.run["scores"].items()}
    return [
        EvalResult(
            task_type=data.kind.hub_name,
            dataset_type=data.hub or name,
            dataset_name=data.card_title,
            dataset_split=results["split"],
            metric_type=metric,
            metric_name=label(metric),
            metric_value=round(value, 4),
            metric_args=arguments,
        )
        for metric, (value, arguments) in told.items()
    ]


def _kind(record: Mapping[str, Any]) -> tuple[str, str]:
    """What the artifact is, and how much of the model is in it."""
    method = trial_method(record)
    return facts_of(method).artifact(method)


def _title(record: Mapping[str, Any]) -> str:
    base = record["base"]["name"].rpartition(":")[2].rpartition("/")[2].removesuffix(".gguf")
    about = f" {record['document']}" if record.get("document") else ""
    return f"{base} {record['method']} {record['task']['name']}{about}"


def _number(metric: str, value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.{decimals(metric)}f}"


def _p(p: float) -> str:
    """`p = 0.047`, or `p < 0.001`."""
    text = p_text(p)
    return f"p < {text[1:]}" if text.startswith("<") else f"p = {text}"


def _shown(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, str):
        return f"`{value}`".replace("|", r"\|")
    return "null" if value is None else str(value)
