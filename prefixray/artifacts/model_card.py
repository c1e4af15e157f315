"""An artifact's model card: what it is, its scores with their intervals, its configuration, how it is used and cited.

It is made from the artifact's record and, where it comes from a sweep's final stage, from that sweep's `results.json`.
The metadata on top is the hub's own (`huggingface_hub.ModelCardData`), so that the hub shows the scores as such.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from prefixray.artifacts.record import trial_method
from prefixray.config.trials import FinetuneTrial
from prefixray.data.catalog import CATALOG
from prefixray.metrics import label
from prefixray.results.citation import BIBTEX
from prefixray.results.record import ArmResult, Results, SeedResult

_KINDS = {"prefix": "prefix", "adapter": "set of adapters", "lora": "LoRA"}


@dataclass(frozen=True)
class Origin:
    """Where an artifact stands in a finished sweep."""

    results: Results
    arm: ArmResult
    run: SeedResult


@dataclass(frozen=True)
class Facts:
    """All that a card is made of."""

    record: Mapping[str, Any]  # the artifact's
    num_stored: int
    origin: Origin | None  # None: no final run of a sweep
    not_in_peft: str | None  # why PEFT cannot load it; None: it can, from the folder peft/
    repo: str | None  # USER/NAME on the hub
    licence: str | None  # the hub's name of a licence, as its owner gives it


def model_card(facts: Facts) -> ModelCard:
    """The card, metadata and text."""
    parts = [_what(facts), _scores(facts.origin), _use(facts), _configuration(facts.record), _licence(facts), _cite()]
    header = _metadata(facts).to_yaml()
    return ModelCard(f"---\n{header}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n")


def _metadata(facts: Facts) -> ModelCardData:
    record, data = facts.record, CATALOG[facts.record["task"]["name"]]
    is_on_hub = _is_on_hub(record["base"])
    return ModelCardData(
        base_model=record["base"]["name"] if is_on_hub else None,
        base_model_relation=("finetune" if record["method"] == "finetune" else "adapter") if is_on_hub else None,
        datasets=[data.hub] if data.hub else None,
        library_name="prefixray",
        license=facts.licence,
        model_name=_title(record),
        eval_results=_eval_results(facts.origin, record) or None,
        metrics=list(facts.origin.arm["scores"]) if facts.origin else None,
        pipeline_tag=data.kind.hub_name,
        tags=[
            "prefix-tuning" if record["method"] == "prefix" else record["method"],
            *([] if facts.not_in_peft else ["peft"]),
        ],
    )


def _eval_results(origin: Origin | None, record: Mapping[str, Any]) -> list[EvalResult]:
    """The mean over the final runs of this artifact's configuration, a metric each, its interval beside it."""
    if origin is None:
        return []
    results, name = origin.results, record["task"]["name"]
    data = CATALOG[name]
    return [
        EvalResult(
            task_type=data.kind.hub_name,
            dataset_type=data.hub or name,
            dataset_name=data.card_title,
            dataset_split=results["split"],
            metric_type=metric,
            metric_name=label(metric),
            metric_value=round(score["value"], 4),
            metric_args={
                "interval": [round(score["low"], 4), round(score["high"], 4)],
                "confidence": 0.95,
                "seeds": len(origin.arm["seeds"]),
                "sources": results["num_sources"],
            },
        )
        for metric, score in origin.arm["scores"].items()
    ]


def _what(facts: Facts) -> str:
    record = facts.record
    (kind, inside), data = _kind(record), CATALOG[record["task"]["name"]].card_title
    return (
        f"# {_title(record)}\n\nA {kind} for `{record['base']['name']}` (digest `{record['base']['digest']}`), "
        f"tuned on {data} with prefixray: {facts.num_stored:,} numbers. {inside}. JSON and safetensors, no pickle."
    )


def _kind(record: Mapping[str, Any]) -> tuple[str, str]:
    """What the artifact is, and how much of the model is in it."""
    method = trial_method(record)
    if not isinstance(method, FinetuneTrial):
        return _KINDS[method.method], "The model itself is not in it"
    if method.top_layers is None and method.tune_embeddings:
        return "fully fine-tuned model", "The model is whole"
    return "set of fine-tuned weights", "Those that were not trained are the base's and not in it"


def _scores(origin: Origin | None) -> str:
    if origin is None:
        return "## Scores\n\nIt was not decoded by the final stage of a sweep, so there are none."
    results, arm = origin.results, origin.arm
    num, run = len(arm["seeds"]), origin.run
    mean = f"mean of {num} {'seed' if num == 1 else 'seeds'}"
    header = f"| {results['split']} | this run (seed {run['seed']}) | {mean} | 95 % interval |"
    rows = [
        f"| {label(metric)} | {_number(run['scores'].get(metric))} | {_number(score['value'])} | "
        f"{_number(score['low'])} to {_number(score['high'])} |"
        for metric, score in arm["scores"].items()
    ]
    decoding = ", ".join(f"{key} {value}" for key, value in results["decoding"].items())
    text = [
        f"{results['num_sources']} of {results['num_sources_total']} {results['split']} sources; {decoding}. The "
        f"interval is of a bootstrap over sources{' and seeds' if num > 1 else '; no other seed was tried'}.",
        *_against_reference(results, arm),
        f"Metrics: {'; '.join(f'{label(name)}: {signature}' for name, signature in results['signatures'].items())}.",
    ]
    return "\n".join(["## Scores", "", header, "|---|---|---|---|", *rows, "", *text])


def _against_reference(results: Results, arm: ArmResult) -> list[str]:
    difference, p = arm["difference"], arm["p_holm"]
    if difference is None:
        return []
    said = (
        f"{difference['value']:+.1f} {label(results['metric'])} [{difference['low']:+.1f}, {difference['high']:+.1f}]"
    )
    return [
        f"Against the arm {results['reference']}: {said}" + (f", p = {p:.3f} after Holm." if p is not None else ".")
    ]


def _use(facts: Facts) -> str:
    base, source = facts.record["base"]["name"], _example(facts.origin)
    here = repr(facts.repo) if facts.repo else None
    fetch = f"artifact = snapshot_download({here})" if here else 'artifact = "."  # this folder'
    lines = [
        "## Use",
        "",
        "```python",
        *(["from huggingface_hub import snapshot_download"] if here else []),
        "from prefixray import open_base",
        "",
        fetch,
        f"base = open_base({base!r}, precision={facts.record['precision']!r})",
        f"print(base.bind(artifact).generate([{source!r}]))",
        "```",
        "",
    ]
    if facts.not_in_peft:
        return "\n".join([*lines, f"PEFT cannot load it: {facts.not_in_peft}."])
    kind = "AutoModelForSeq2SeqLM" if facts.record["base"]["shape"]["is_encoder_decoder"] else "AutoModelForCausalLM"
    weights = f"({base!r})" if _is_on_hub(facts.record["base"]) else f'("BASE")  # a folder of transformers with {base}'
    peft = [
        "```python",
        "from peft import PeftModel",
        f"from transformers import {kind}",
        "",
        f"model = {kind}.from_pretrained{weights}",
        f'model = PeftModel.from_pretrained(model, {here or repr(".")}, subfolder="peft")',
        "```",
    ]
    form, separator = facts.record["template"]["form"], facts.record["template"]["after"]
    prompt = f"The prompt is the source between {form[0]!r} and {form[1]!r}, then the tokens {list(separator)}."
    return "\n".join([*lines, "With PEFT alone, prompts and decoding are yours to make:", "", *peft, "", prompt])


def _example(origin: Origin | None) -> str:
    return origin.results["examples"][0]["source"] if origin and origin.results["examples"] else "..."


def _configuration(record: Mapping[str, Any]) -> str:
    config = {**record["config"], **record["config"]["method"]}
    values = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    more = {"precision": record["precision"], "positions": record["positions"]}
    rows = [f"| `{key}` | {_shown(value)} |" for key, value in {**values, **more}.items()]
    task = ", ".join(
        f"{key} {_shown(value)}" for key, value in record["task"].items() if value is not None and key != "columns"
    )
    return "\n".join(["## Configuration", "", "| key | value |", "|---|---|", *rows, "", f"Task: {task}."])


def _licence(facts: Facts) -> str:
    data, base = CATALOG[facts.record["task"]["name"]], facts.record["base"]["name"]
    given = f" Its owner gives it under `{facts.licence}`." if facts.licence else ""
    return (
        f"## Licence\n\nIt was learnt from {data.card_title} (licence: {data.licence}) on `{base}`; both licences may "
        f"bind what is made with them.{given} prefixray is Apache-2.0."
    )


def _cite() -> str:
    return f"## Cite\n\n```bibtex\n{BIBTEX}\n```"


def _title(record: Mapping[str, Any]) -> str:
    base = record["base"]["name"].rpartition(":")[2].rpartition("/")[2].removesuffix(".gguf")
    return f"{base} {record['method']} {record['task']['name']}"


def _is_on_hub(base: Mapping[str, Any]) -> bool:
    """Whether its digest is a commit of the hub; the last name of a folder may look like a hub id."""
    return re.fullmatch(r"[0-9a-f]{40}", base["digest"]) is not None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _shown(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, str):
        return f"`{value}`".replace("|", r"\|")
    return "null" if value is None else str(value)
