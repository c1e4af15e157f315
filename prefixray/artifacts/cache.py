"""A prefix as transformers' past key values: safetensors, and ten lines of Python that generate with them.

The lines need torch, transformers and safetensors, not prefixray. They stand in the folder's `README.md`, too.
"""

# L layers, K key/value heads, P prefix positions, D head dim

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from prefixray.artifacts.record import check_new, is_on_hub, name_in_transformers, torch_dtype, trial_method
from prefixray.artifacts.store import load_as_decoded
from prefixray.config.schema import DecodingSettings
from prefixray.config.trials import PrefixTrial
from prefixray.errors import UserError
from prefixray.results.artifacts import find_origin

CACHE_FILE = "cache.safetensors"
_ALWAYS = ("num_beams", "max_new_tokens", "length_penalty")  # settings of the beam search that the lines name
_SET = ("min_new_tokens", "no_repeat_ngram_size", "early_stopping")  # and those that they name where they are set

_LOADER = """\
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, GenerationConfig
tokenizer = AutoTokenizer.from_pretrained({base})
model = AutoModelForCausalLM.from_pretrained({base}, dtype={dtype!r})
model.generation_config = GenerationConfig({settings})
saved = {{name: part.to(model.dtype).expand(-1, {num_beams}, -1, -1, -1) for name, part in load_file({file!r}).items()}}
text = {source!r}
ids = tokenizer({form[0]!r} + text + {form[1]!r}, add_special_tokens=False).input_ids
ids = torch.tensor([[*{before}, *ids, *{after}]])
output = model.generate(
    ids, attention_mask=torch.ones(1, {positions} + ids.shape[1], dtype=torch.long),
    past_key_values=DynamicCache(list(zip(saved["keys"], saved["values"]))))
lines = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip().splitlines()
print(lines[0].strip() if lines else "")
{remarks}"""

_README = """\
# {title}

A prefix of {positions} positions for `{name}` (digest `{digest}`), tuned with prefixray, as the past key values of
transformers. `{file}` has `keys` and `values`: {layers} layers, 1 row, {heads} key/value heads, {positions} positions,
{dim} numbers. `prefixray.json` records the training and all settings of its beam search.

```python
{loader}```

The lines run in this folder. They need torch, transformers and safetensors.{where} The text stands in the form in which
the prefix was trained. In training a text was cut at {max_source_tokens} tokens. `generate` adds to the cache: make a
new `DynamicCache` for each call. For several texts, expand `keys` and `values` to texts times beams, and put padding in
front of the shorter prompts: in the attention mask its zeros stand behind the {positions} ones of the prefix.
"""


def export_cache(artifact: Path, out: Path) -> str:
    """Write `cache.safetensors`, a `README.md` and the artifact's own record into the folder `out`.

    Returns the lines of Python that load the cache and generate with it. Raises `UserError` where the artifact is
    damaged or no prefix in front of a decoder-only base's rows, or where `out` holds something.
    """
    check_new(out)
    tensors, record = load_as_decoded(artifact)
    _check_is_cache(artifact, record)
    parts = {name: tensors[f"decoder.{name.removesuffix('s')}"].unsqueeze(1) for name in ("keys", "values")}
    layers, _, heads, positions, dim = parts["keys"].shape  # (L, 1, K, P, D)
    base, where = _base(record["base"])
    facts = {**_facts(artifact, record), "base": base, "positions": positions}
    text = _README.format(
        title=f"{record['base']['name'].rpartition('/')[2]} behind a prefix for {record['task']['name']}",
        **{key: record["base"][key] for key in ("name", "digest")},
        loader=_LOADER.format(**facts, file=CACHE_FILE),
        where=where,
        file=CACHE_FILE,
        **{"layers": layers, "heads": heads, "positions": positions, "dim": dim},
        max_source_tokens=record["template"]["max_source_tokens"],
    )
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: part.contiguous() for name, part in parts.items()}, out / CACHE_FILE)
    (out / "prefixray.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(text, encoding="utf-8")
    return _LOADER.format(**facts, file=str(out / CACHE_FILE)).removesuffix("\n")


def _check_is_cache(artifact: Path, record: Mapping[str, Any]) -> None:
    """Raise `UserError` for what is not keys and values in front of a decoder-only base's rows alone."""
    method = trial_method(record)
    if not isinstance(method, PrefixTrial) or method.format_mode == "infix":
        what = "an infix" if isinstance(method, PrefixTrial) else f"of method {method.method}"
        problem = f"is {what}, and only a prefix in front of the rows is past key values"
        raise UserError(f"{artifact}: {problem}; decode it with prefixray, or try --format peft")
    if record["base"]["shape"]["is_encoder_decoder"]:
        problem = "its base is an encoder-decoder, whose keys and values stock generate makes itself"
        raise UserError(f"{artifact}: {problem}; decode it with prefixray")


def _base(base: Mapping[str, Any]) -> tuple[str, str]:
    """The arguments of `from_pretrained` that name the base; and a sentence for the README where none can."""
    if is_on_hub(base):
        return f"{base['name']!r}, revision={base['digest']!r}", ""
    name = name_in_transformers(base)
    return (repr(name), "") if name else ("'BASE'", " `BASE` is a folder of transformers with the base's weights.")


def _facts(artifact: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """What the lines name besides the base and the number of positions."""
    template, origin = record["template"], find_origin(artifact)
    decoding = DecodingSettings.model_validate(record["decoding"] or {})
    settings = {key: value for key, value in decoding if key in _ALWAYS or (key in _SET and value)}
    settings |= {"eos_token_id": template["eos_id"], "pad_token_id": template["pad_id"]}
    return {
        "dtype": torch_dtype(record),
        "source": origin.first_source if origin else "...",
        "num_beams": decoding.num_beams,
        "settings": ", ".join(f"{key}={value!r}" for key, value in settings.items()),
        "remarks": "".join(f"# Texts may differ from prefixray's: {line}\n" for line in _remarks(record, decoding)),
        **{key: template[key] for key in ("form", "before", "after")},
    }


def _remarks(record: Mapping[str, Any], decoding: DecodingSettings) -> list[str]:
    """What stock transformers does otherwise than prefixray."""
    lacking = [key for key in ("length_with_prompt", "ban_line_breaks") if getattr(decoding, key)]
    lines = [f"it decodes with {' and '.join(lacking)}, which stock generate has not."] if lacking else []
    if decoding.no_repeat_ngram_size:
        lines.append("stock generate's no_repeat_ngram_size counts the prompt's tokens, too.")
    if record["precision"] == "4bit":
        lines.append("the prefix was trained on the base in 4 bits, and here the base is in bf16.")
    return lines
