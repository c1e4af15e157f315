"""Artifacts in PEFT's format: stock `PeftModel.from_pretrained` loads them and gives the same logits.

PEFT's prefix tuning reaches only the decoder's own attention, and in encoder-decoder models it ties layers. So two
kinds of artifacts can be written: prefixes of decoder-only bases (embedding-only ones as the keys and values that they
fold to), and LoRA of any base. Others are refused with the reason. PEFT itself is not needed for writing.

A prefix may also be written as PEFT's CARTRIDGE: the same numbers, which PEFT trains on as they are, without a network,
and composes with others (`peft.compose_cartridge_adapters`).
"""

# L layers, K key/value heads, P prefix positions, D head dim

import json
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal, assert_never

import torch
from safetensors.torch import save_file
from torch import Tensor

from prefixray.artifacts.record import check_new, is_on_hub, name_in_transformers, torch_dtype, trial_method
from prefixray.artifacts.store import load_as_decoded
from prefixray.config.trials import AdapterTrial, FinetuneTrial, LoraTrial, PrefixTrial
from prefixray.errors import UserError

PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""The names that PEFT knows its files by."""
_PROMPT = """\
# A prompt as in training, for a text of at most {max_source_tokens} tokens:
# [*{before}, *tokenizer({form[0]!r} + text + {form[1]!r}, add_special_tokens=False).input_ids, *{after}]"""

PrefixType = Literal["PREFIX_TUNING", "CARTRIDGE"]
"""What PEFT calls keys and values in front of a row."""


def export_peft(artifact: Path, out: Path, prefix_type: PrefixType = "PREFIX_TUNING") -> str:
    """Write `adapter_config.json`, `adapter_model.safetensors`, a README and the artifact's own record into `out`.

    A prefix gets the given type. Returns the lines of Python that load the folder and say how a prompt was written in
    training, and a remark where the PEFT that is installed here has no such type. Raises `UserError` where PEFT has no
    such method, where the artifact is damaged, or where `out` holds something.
    """
    check_new(out)
    tensors, meta = load_as_decoded(artifact)
    base = name_in_transformers(meta["base"])
    write_peft(artifact, out, base or meta["base"]["name"], tensors, meta, prefix_type)
    (out / "prefixray.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    dtype = torch_dtype(meta)
    if base is None:
        said = f"base: the transformers model it was tuned on, in {dtype}"
        lines = f"from peft import PeftModel\nmodel = PeftModel.from_pretrained(base, {str(out)!r})  # {said}"
    else:
        model = f"AutoPeftModelFor{'Seq2SeqLM' if meta['base']['shape']['is_encoder_decoder'] else 'CausalLM'}"
        loaded = f"{model}.from_pretrained({str(out)!r}, dtype={dtype!r})"
        lines = f"from peft import {model}\nmodel = {loaded}  # with its base, {base}"
    lines += f"\n{prompt_lines(meta)}"
    (out / "README.md").write_text(f"```python\n{lines}\n```\n", encoding="utf-8")
    return lines + _lacks(prefix_type)


def prompt_lines(meta: Mapping[str, Any]) -> str:
    """Comments in Python that say how a prompt of an artifact was written in training, and how a decoder began.

    Where the base was in 4 bits, they say that, too.
    """
    template = meta["template"]
    prompt = _PROMPT.format(**{key: template[key] for key in ("form", "before", "after", "max_source_tokens")})
    given = template["target_before"]
    if meta["precision"] == "4bit":
        prompt = f"# Texts may differ from prefixray's: it was trained on the base in 4 bits.\n{prompt}"
    return prompt + (f"\n# decoder_input_ids: [{given}], which are no new tokens" if given else "")


def _lacks(prefix_type: PrefixType) -> str:
    """A remark where the PEFT of this machine cannot load what was written; it need not be installed."""
    found = PathFinder.find_spec("peft", None) if prefix_type == "CARTRIDGE" else None
    folders = [] if found is None else list(found.submodule_search_locations or ())
    if not folders or any((Path(folder) / "tuners" / "cartridge").is_dir() for folder in folders):
        return ""
    return "\n# The PEFT that is installed here has no CARTRIDGE: 0.19 and later have it."


def write_peft(
    artifact: Path,
    out: Path,
    base: str,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    prefix_type: PrefixType = "PREFIX_TUNING",
) -> None:
    """Write the two files of PEFT's into the folder `out`, with `base` as the name of the base.

    `tensors` and `meta` are the artifact's content.

    `AutoPeftModelForCausalLM` or `..ForSeq2SeqLM` then loads the base by that name, of the hub at the commit that was
    tuned. Raises `UserError` as `export_peft` does.
    """
    method = trial_method(meta)
    match method:
        case PrefixTrial(format_mode="infix"):
            raise UserError(f"{artifact}: PEFT has no infix, only what stands before a row; decode it with prefixray")
        case PrefixTrial():
            config, state = _prefix(meta, tensors, prefix_type)
        case _ if prefix_type == "CARTRIDGE":
            problem = f"a cartridge is a prefix's keys and values, and this is of method {method.method}"
            raise UserError(f"{artifact}: {problem}; take --format peft, or decode it with prefixray")
        case LoraTrial():
            config, state = _lora(method, meta, tensors)
        case AdapterTrial():
            raise UserError(f"{artifact}: PEFT has no bottleneck adapters in blocks; decode it with prefixray")
        case FinetuneTrial():
            raise UserError(
                f"{artifact}: fine-tuning gives new values to the base's own weights ({len(tensors)} tensors in the "
                "artifact), which is no PEFT adapter; decode it with prefixray"
            )
        case _:
            assert_never(method)
    out.mkdir(parents=True, exist_ok=True)
    revision = meta["base"]["digest"] if is_on_hub(meta["base"]) else None
    content = {"base_model_name_or_path": base, "inference_mode": True, "revision": revision, **config}
    config_file, tensor_file = (out / name for name in PEFT_FILES)
    config_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tensor_file)


def _prefix(
    meta: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix_type: PrefixType
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A prefix as PEFT stores it: a row per position, with each layer's keys of all heads, then its values."""
    if meta["base"]["shape"]["is_encoder_decoder"]:
        sites = ", ".join(sorted({name.partition(".")[0] for name in tensors}))
        raise UserError(
            f"artifact: a prefix at {sites} of an encoder-decoder: PEFT's prefix tuning knows no encoder and no "
            "cross-attention prefix, and ties the decoder's layers; decode it with prefixray"
        )
    both = torch.stack([tensors["decoder.key"], tensors["decoder.value"]])  # (2, L, K, P, D)
    _, layers, heads, positions, dim = both.shape
    of_type: dict[str, Any] = {"num_frozen_tokens": 0}  # a CARTRIDGE's: PEFT would train all positions further
    if prefix_type == "PREFIX_TUNING":
        of_type = {"encoder_hidden_size": heads * dim, "prefix_projection": False}
    config = {
        "peft_type": prefix_type,
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": positions,
        "num_layers": layers,
        "num_attention_heads": heads,
        "token_dim": heads * dim,
        "num_transformer_submodules": 1,
        **of_type,
    }
    return config, {"prompt_embeddings": both.permute(3, 1, 0, 2, 4).reshape(positions, -1)}


def _lora(
    method: LoraTrial, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """LoRA's matrices by the names of the modules that they belong to."""
    names = sorted({name.rpartition(".")[0] for name in tensors})
    is_encoder_decoder = meta["base"]["shape"]["is_encoder_decoder"]
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM" if is_encoder_decoder else "CAUSAL_LM",
        "r": method.rank,
        "lora_alpha": method.numerator,
        "lora_dropout": method.dropout,
        "target_modules": sorted({name.rpartition(".")[2] for name in names}),
        "fan_in_fan_out": any(name.endswith("c_attn") for name in names),  # GPT-2's Conv1D
        "bias": "none",
    }
    state = {}
    for name in names:
        state[f"base_model.model.{name}.lora_A.weight"] = tensors[f"{name}.down"]
        state[f"base_model.model.{name}.lora_B.weight"] = tensors[f"{name}.up"]
    return config, state
