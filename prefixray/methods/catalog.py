"""The catalog of methods: one entry for each, with everything that the code knows of it besides its schema.

To add a method, write its class in a file of this folder, its schema in `config/trials.py`, and its entry here, with
the functions that the entry needs above it. Packs, plans and model cards read the entry. No torch is loaded before a
method is built: the driver and a plan count parameters, too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from prefixray.config.trials import AdapterTrial, AnyTrial, FinetuneTrial, LoraTrial, MethodConfig, PrefixTrial
from prefixray.model.shape import Shape, matrices

if TYPE_CHECKING:
    from prefixray.methods.contract import Method, Recorder, Start
    from prefixray.model.base import Base

C = TypeVar("C", bound=MethodConfig)


@dataclass(frozen=True)
class MethodFacts(Generic[C]):
    """What the code knows of a method whose schema is `C`."""

    build: Callable[[C, "Base", "Recorder", "Start"], "Method"]
    """Makes a trial's tensors."""
    trained: Callable[[C, Shape], int]
    """How many numbers the optimiser of a trial moves."""
    artifact: Callable[[C], tuple[str, str]]
    """What a model card calls an artifact, and how much of the base is in it."""
    hub_tag: str
    """What the hub calls the method."""
    hub_relation: str = "adapter"
    """What the hub calls an artifact's relation to its base."""
    folded: Callable[[C, Shape], int] = lambda config, shape: 0
    """How many numbers the keys and values have that the trial puts in front of the rows' own."""
    infix_positions: Callable[[C], int] = lambda config: 0
    """How many tokens longer a trial makes its rows."""
    differentiated: Callable[[C, Shape], tuple[float, float]] = lambda config, shape: (0.0, 1.0)
    """The shares of the base whose weights, and whose inputs, have gradients."""
    runs_last_ffn_on_targets: bool = False
    """Whether the last feed-forward layer runs on target tokens alone, because the method needs no other rows of it."""


def facts_of(config: AnyTrial) -> MethodFacts[Any]:
    """The catalog's entry of a trial's method."""
    return CATALOG[config.method]


def trained_parameters(config: AnyTrial, shape: Shape) -> int:
    """How many numbers the optimiser of a trial moves, on a base of this shape.

    Exact for prefixes and adapters; for virtual words an upper bound where the base's word embeddings are narrower than
    the model, as OPT-350m's are. For LoRA an upper bound (a fused query-key-value projection in every layer), where
    no projection is wider than the model. For fine-tuning of the last blocks, or without word embeddings, an estimate:
    the matrices alone, the output layer tied.
    """
    return facts_of(config).trained(config, shape)


def copied_parameters(config: AnyTrial, shape: Shape) -> int:
    """Weights of the base that a trial has a copy of without training them, in fp32."""
    return shape.num_parameters - trained_parameters(config, shape) if config.has_own_model else 0


# Prefix

_WORDS = 8  # prefix positions assumed where init_token sets them


def _build_prefix(config: PrefixTrial, base: "Base", record: "Recorder", start: "Start") -> "Method":
    from prefixray.methods.prefix import ActivationPrefix
    from prefixray.methods.virtual_prefix import EmbeddingPrefix, Infix

    if config.format_mode == "infix":
        return Infix(config, base, record, start)
    if config.prefix_mode == "embedding":
        return EmbeddingPrefix(config, base, record, start)
    return ActivationPrefix(config, base, record, start)


def _prefix_parameters(config: PrefixTrial, shape: Shape) -> int:
    hidden, sites = shape.hidden_size, shape.sites
    if config.prefix_mode == "embedding":
        return _row_parameters(config, hidden, hidden)
    active = config.active_sites(sites)
    return sum(_row_parameters(config, hidden, sites[name].prefix_width) for name in active) + (
        _infix_positions(config) * hidden
    )


def _row_parameters(config: PrefixTrial, hidden: int, width: int) -> int:
    """Parameters of what gives a row of this width for each position that is trained: a tensor, or a network."""
    positions, mid = max(1, _positions(config) - config.frozen_positions), config.mid_dim
    if mid is None:
        return positions * width
    return positions * hidden + (hidden + 1) * mid + (mid + 1) * width


def _folded_prefix(config: PrefixTrial, shape: Shape) -> int:
    return sum(_positions(config) * shape.sites[name].prefix_width for name in config.active_sites(shape.sites))


def _infix_positions(config: PrefixTrial) -> int:
    return _positions(config) if config.format_mode == "infix" else 0


def _positions(config: PrefixTrial) -> int:
    return config.preseqlen or _WORDS


# Adapter


def _build_adapter(config: AdapterTrial, base: "Base", record: "Recorder", start: "Start") -> "Method":
    from prefixray.methods.adapter import Adapter

    return Adapter(config, base, adapter_bottleneck(config, base.shape), start.draw)


def adapter_bottleneck(config: AdapterTrial, shape: Shape) -> int:
    """The width of the adapters' inner layer: the given one, or the one whose size comes nearest to `percent`."""
    if config.bottleneck is not None:
        return config.bottleneck
    assert config.percent is not None, "one of the two is given"
    num_adapters, per_unit, fixed = _adapters(config, shape)
    wanted = config.percent / 100 * shape.num_parameters / num_adapters
    return max(1, round((wanted - fixed) / per_unit))


def _adapter_parameters(config: AdapterTrial, shape: Shape) -> int:
    num_adapters, per_unit, fixed = _adapters(config, shape)
    return num_adapters * (adapter_bottleneck(config, shape) * per_unit + fixed)


def _adapters(config: AdapterTrial, shape: Shape) -> tuple[int, int, int]:
    """How many adapters there are, and the parameters of each: per unit of its bottleneck, and besides."""
    hidden, blocks = shape.hidden_size, shape.num_blocks
    if config.design == 1:
        return blocks, 2 * hidden + 1, 3 * hidden
    return blocks + sum(site.num_layers for site in shape.sites.values()), 2 * hidden + 1, hidden


# LoRA


def _build_lora(config: LoraTrial, base: "Base", record: "Recorder", start: "Start") -> "Method":
    from prefixray.methods.lora import Lora

    return Lora(config, base, start.draw, start.dropout_seed)


def _lora_parameters(config: LoraTrial, shape: Shape) -> int:
    widest = max(shape.hidden_size, *(site.kv_width for site in shape.sites.values()))
    return sum(site.num_layers for site in shape.sites.values()) * config.rank * 4 * widest


# Fine-tuning


def _build_finetune(config: FinetuneTrial, base: "Base", record: "Recorder", start: "Start") -> "Method":
    from prefixray.methods.finetune import Finetune

    return Finetune(config, base, start.dropout_seed)


def _finetuned_parameters(config: FinetuneTrial, shape: Shape) -> int:
    if config.top_layers is None and config.tune_embeddings:
        return shape.num_parameters
    sizes, hidden = matrices(shape), shape.hidden_size
    blocks = int((sizes.encoder + sizes.decoder) * _top_share(config, shape))
    return blocks + hidden + (hidden * shape.vocab_size if config.tune_embeddings else 0)


def _finetuned_shares(config: FinetuneTrial, shape: Shape) -> tuple[float, float]:
    """Below the blocks that are trained nothing is differentiated, unless the word embeddings are trained."""
    weights = _top_share(config, shape)
    return weights, 1.0 if config.tune_embeddings else weights


def _top_share(config: FinetuneTrial, shape: Shape) -> float:
    """The share of the blocks that a fine-tuning trains."""
    return 1.0 if config.top_layers is None else min(1.0, config.top_layers / shape.num_blocks)


def _finetuned_artifact(config: FinetuneTrial) -> tuple[str, str]:
    if config.top_layers is None and config.tune_embeddings:
        return "fully fine-tuned model", "The model is whole"
    return "set of fine-tuned weights", "Those that were not trained are the base's and not in it"


_WITHOUT_MODEL = "The model itself is not in it"

CATALOG: Mapping[str, MethodFacts[Any]] = {
    "prefix": MethodFacts(
        _build_prefix,
        _prefix_parameters,
        artifact=lambda config: ("prefix", _WITHOUT_MODEL),
        hub_tag="prefix-tuning",
        folded=_folded_prefix,
        infix_positions=_infix_positions,
        runs_last_ffn_on_targets=True,
    ),
    "adapter": MethodFacts(
        _build_adapter,
        _adapter_parameters,
        artifact=lambda config: ("set of adapters", _WITHOUT_MODEL),
        hub_tag="adapter",
    ),
    "lora": MethodFacts(
        _build_lora,
        _lora_parameters,
        artifact=lambda config: ("LoRA", _WITHOUT_MODEL),
        hub_tag="lora",
    ),
    "finetune": MethodFacts(
        _build_finetune,
        _finetuned_parameters,
        artifact=_finetuned_artifact,
        hub_tag="finetune",
        hub_relation="finetune",
        differentiated=_finetuned_shares,
    ),
}
