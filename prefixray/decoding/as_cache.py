"""A prefix as past key values, with which stock transformers generates what prefixray does."""

# B rows, S tokens of the longest prompt, L layers, K key/value heads, P prefix positions, D head dim

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from prefixray.batching.template import Template
from prefixray.errors import UserError
from prefixray.model.base import Base
from prefixray.model.binding.insert import Insert


def inputs_of_generate(
    base: Base, template: Template, insert: Insert, sources: Sequence[str], num_beams: int
) -> dict[str, Any]:
    """The arguments of transformers' `generate` for these sources behind the prefix.

    What they leave out is as the model's own `generation_config` has it.

    Raises `UserError` where the insert is not keys and values in front of a decoder-only model's rows alone.
    """
    if template.is_encoder_decoder:
        problem = "stock generate makes the encoder's and the cross-attention's keys and values itself"
        raise UserError(f"as_cache: {base.name} is an encoder-decoder: {problem}; use Tuned.generate")
    if "decoder" not in insert.prefixes or insert.functions or insert.infix is not None:
        problem = "only a prefix in front of the rows is keys and values"
        raise UserError(f"as_cache: {problem}; use Tuned.generate, or export it for PEFT")
    prompts = template.encode_sources(sources)
    longest, length = max(map(len, prompts)), insert.num_positions()
    ids = [[template.pad_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[1] * length + [0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    prefix = insert.prefixes["decoder"].to(base.device, base.model.dtype)  # (2, L, K, P, D)
    rows = len(prompts) * num_beams
    layers = [
        (keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in zip(*prefix, strict=True)
    ]
    return {
        "input_ids": torch.tensor(ids, device=base.device),  # (B, S), padded on the left
        "attention_mask": torch.tensor(mask, device=base.device),  # (B, P + S)
        "past_key_values": DynamicCache(layers),
        "num_beams": num_beams,
        "eos_token_id": template.eos_id,
        "pad_token_id": template.pad_id,
    }
