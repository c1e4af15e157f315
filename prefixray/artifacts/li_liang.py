"""Checkpoints of the original (XiangLi1999/PrefixTuning) as artifacts: the same prefix, folded, at the same positions.

The original saves its whole prefix module: for each site an embedding and a network, or one flat tensor. BART has three
sites: `wte` is the decoder's embedding, `wte2` cross-attention's, `wte_enc` the encoder's. In an infix of GPT-2, `wte2`
holds the embeddings inside the row. Only tensors are read; a pickle that holds anything else is refused.
"""

# P prefix positions, d hidden width, L layers, K heads, D head dim

import hashlib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from prefixray.artifacts.record import ConvertedConfig
from prefixray.artifacts.store import artifact_meta
from prefixray.batching.template import make_template
from prefixray.config.trials import SITE_JOIN, SITES, PrefixTrial
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError, first_line
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder
from prefixray.model.shape import SiteShape

_FILE = "pytorch_model.bin"
_NAMES = {
    "decoder": ("wte", "control_trans"),
    "cross": ("wte2", "control_trans2"),
    "encoder": ("wte_enc", "control_trans_enc"),
}
_LAYERS: tuple[tuple[int, ...], ...] = (
    (0, 2),  # the usual network's layers with weights
    (0, 2, 4),  # those of `--use_deep`
    (),  # none with `--parametrize_emb Emb`
)
_BEAM_SEARCH = {  # of gen.py; of finetune.py, whose lengths include the tokens that the decoder is given, and of BART
    False: {"num_beams": 5, "max_new_tokens": 100, "length_with_prompt": True, "ban_line_breaks": True},
    True: {"num_beams": 6, "min_length": 11, "max_length": 62, "no_repeat_ngram_size": 3, "early_stopping": True},
}


def convert_checkpoint(checkpoint: Path, base: Base, task: TaskConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record of an artifact, made from a checkpoint of the original and its base.

    `checkpoint` is the folder that holds `pytorch_model.bin`, the file itself, or Lightning's checkpoint reduced to its
    state dict. Raises `UserError` where it holds no such prefix, or one of another base.
    """
    file = checkpoint / _FILE if checkpoint.is_dir() else checkpoint
    state = _module(_load(file), file)
    is_infix = "wte2.weight" in state and "control_trans2.0.weight" not in state
    tensors = {"infix.embedding": state.pop("wte2.weight")} if is_infix else {}
    sites, mode, mid_dim = _sites(state, base, file), "activation", None
    for site, parts in sites.items():
        shape, where = base.shape.sites[site], f"{file}: {_NAMES[site][1]}"
        if "" in parts:
            prefix = _flat(parts[""], shape, where)
        else:
            rows, mid_dim = _rows(parts, where)
            mode = "embedding" if rows.shape[1] == base.shape.hidden_size else mode
            prefix = (
                Binder.of(base.model).record(rows[None])[site] if mode == "embedding" else _split(rows, shape, where)
            )
        tensors[f"{site}.key"], tensors[f"{site}.value"] = prefix.contiguous()
    trial = PrefixTrial.model_validate(
        {
            "preseqlen": prefix.shape[3],
            "mid_dim": mid_dim,
            "init_token": None,
            "sites": SITE_JOIN.join(sites),
            "prefix_mode": mode,
            "format_mode": "infix" if is_infix else "cat",
        }
    )
    config = ConvertedConfig(arm="converted", method=trial, checkpoint=hashlib.sha256(file.read_bytes()).hexdigest())
    template = make_template(base, task)
    decoding: dict[str, Any] = dict(_BEAM_SEARCH[base.shape.is_encoder_decoder])
    for old in ("min_length", "max_length"):
        if old in decoding:
            decoding[old.replace("length", "new_tokens")] = decoding.pop(old) - len(template.target_before)
    return tensors, artifact_meta(base, config, task=task, template=template.record(), decoding=decoding)


def _load(file: Path) -> Mapping[str, Any]:
    """The content of the file, which may hold tensors and plain containers only."""
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; give the original's checkpoint folder, with {_FILE}") from None
    except UnpicklingError:
        raise UserError(
            f"{file}: holds more than tensors, which could run code, and is not loaded; give {_FILE}, or in the "
            f"original's environment write one: torch.save(torch.load({file.name!r})['state_dict'], {_FILE!r})"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{file}: is no whole checkpoint: {first_line(error) if str(error) else 'it ends early'}"
        ) from error
    inner = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(inner, dict) or not all(isinstance(value, Tensor) for value in inner.values()):
        raise UserError(f"{file}: is no state dict, a mapping of names to tensors")
    return inner


def _module(state: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The prefix module's tensors. Lightning's state dict holds the frozen base, too, which is left out."""
    for before in ("", "model."):
        if any(name.startswith((f"{before}control_trans", f"{before}wte.")) for name in state):
            names = {name: name.removeprefix(before) for name in state if name.startswith(before)}
            frozen = ("seq2seq_model.", "input_tokens")
            return {short: state[name].float() for name, short in names.items() if not short.startswith(frozen)}
    raise UserError(
        f"{file}: has no control_trans, the original's prefix network; it holds {', '.join(list(state)[:4])} .."
    )


def _sites(state: Mapping[str, Tensor], base: Base, file: Path) -> dict[str, dict[str, Tensor]]:
    """Each site's tensors, by their names in its network; the embedding is called `embedding`."""
    sites: dict[str, dict[str, Tensor]] = {}
    for site in SITES:
        embedding, network = _NAMES[site]
        names = [name for name in state if name.split(".")[0] in (embedding, network)]
        parts = {name.partition(".")[2] if name.startswith(network) else "embedding": state[name] for name in names}
        if parts:
            sites[site] = parts
    if set(sites) != set(base.shape.sites):
        there, wanted = ", ".join(sites), ", ".join(base.shape.sites)
        raise UserError(
            f"{file}: has a prefix at {there}; {base.name} has attention at {wanted}: is it of another base?"
        )
    return sites


def _rows(parts: Mapping[str, Tensor], where: str) -> tuple[Tensor, int | None]:
    """The output of a site's network for each position, and its hidden width; without a network the embedding."""
    layers = next((layers for layers in _LAYERS if set(parts) == _tensor_names(layers)), None)
    if layers is None:
        there, wanted = ", ".join(sorted(parts)), ", ".join(sorted(_tensor_names(_LAYERS[0])))
        raise UserError(f"{where}: has the tensors {there}; a network's are {wanted}")
    rows = parts["embedding"]  # (P, d)
    for layer in layers:
        weight, bias = parts[f"{layer}.weight"], parts[f"{layer}.bias"]
        if weight.ndim != 2 or rows.ndim != 2 or weight.shape[1] != rows.shape[1] or bias.shape != weight.shape[:1]:
            shapes = f"{tuple(weight.shape)} and bias {tuple(bias.shape)} on {tuple(rows.shape)}"
            raise UserError(f"{where}.{layer}: weight {shapes}: do not fit one another")
        rows = rows @ weight.T + bias
        rows = rows if layer == layers[-1] else rows.tanh()
    return rows, parts["0.weight"].shape[0] if layers else None


def _split(rows: Tensor, site: SiteShape, where: str) -> Tensor:
    """A network's rows as a prefix, (2, L, K, P, D)."""
    width = site.prefix_width
    if rows.shape[1] != width:
        raise UserError(
            f"{where}: gives {rows.shape[1]} numbers a position; keys and values of all layers of the base are {width}"
        )
    return rows.view(-1, site.num_layers, 2, site.num_kv_heads, site.head_dim).permute(2, 1, 3, 0, 4)


def _flat(tensor: Tensor, site: SiteShape, where: str) -> Tensor:
    """The tensor of `--init_shallow` as a prefix, (2, L, K, P, D).

    It is (2 L, 1, K, P, D) if it was initialised with words, else one row of numbers with positions outermost.
    """
    layers, heads, dim = site.num_layers, site.num_kv_heads, site.head_dim
    if tensor.ndim == 5 and (*tensor.shape[:3], tensor.shape[4]) == (2 * layers, 1, heads, dim):
        return tensor.view(layers, 2, heads, -1, dim).transpose(0, 1)
    if tensor.ndim == 1 and tensor.numel() and tensor.numel() % site.prefix_width == 0:
        return tensor.view(-1, layers, 2, heads, dim).permute(2, 1, 3, 0, 4)
    wanted = f"(2 x {layers}, 1, {heads}, positions, {dim})"
    raise UserError(f"{where}: {tuple(tensor.shape)}: a flat prefix of this base is {wanted}, or that in a row")


def _tensor_names(layers: tuple[int, ...]) -> set[str]:
    return {"embedding", *(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))}
