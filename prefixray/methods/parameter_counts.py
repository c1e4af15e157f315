"""How many parameters a method trains and stores, from configurations and a base's sizes alone."""

from dataclasses import dataclass
from typing import assert_never

from prefixray.config.trials import AdapterTrial, AnyTrial, FinetuneTrial, LoraTrial, PrefixTrial
from prefixray.model.shape import Shape

_TOLERANCE = 1.02  # a base's parameters may be this much fewer than its matrices suggest


def trained_parameters(method: AnyTrial, shape: Shape) -> int:
    """How many numbers the optimiser of a trial moves, on a base of this shape.

    Exact for prefixes and adapters. For LoRA an upper bound (a fused query-key-value projection in every layer), where
    no projection is wider than the model. For fine-tuning of the last blocks, or without word embeddings, an estimate:
    the matrices alone, the output layer tied.
    """
    hidden, sites = shape.hidden_size, shape.sites
    num_attentions = sum(site.num_layers for site in sites.values())
    match method:
        case PrefixTrial():
            return _of_prefix(method, shape)
        case AdapterTrial():
            num_adapters, width, rest = _adapters(method, shape)
            return num_adapters * (adapter_bottleneck(method, shape) * width + rest)
        case LoraTrial():
            widest = max(hidden, *(site.kv_width for site in sites.values()))
            return num_attentions * method.rank * 4 * widest
        case FinetuneTrial(top_layers=None, tune_embeddings=True):
            return shape.num_parameters
        case FinetuneTrial():
            blocks, words = int(_block_matrices(shape) * top_share(method, shape)), hidden * shape.vocab_size
            return blocks + hidden + (words if method.tune_embeddings else 0)
        case _:
            assert_never(method)


def adapter_bottleneck(method: AdapterTrial, shape: Shape) -> int:
    """The width of the adapters' inner layer: the given one, or the one whose size comes nearest to `percent`."""
    if method.bottleneck is not None:
        return method.bottleneck
    assert method.percent is not None, "one of the two is given"
    num_adapters, width, rest = _adapters(method, shape)
    wanted = method.percent / 100 * shape.num_parameters / num_adapters
    return max(1, round((wanted - rest) / width))


def _adapters(method: AdapterTrial, shape: Shape) -> tuple[int, int, int]:
    """How many adapters there are, and the parameters of each: per unit of its bottleneck, and besides."""
    hidden, blocks = shape.hidden_size, shape.num_blocks
    if method.design == 1:
        return blocks, 2 * hidden + 1, 3 * hidden
    return blocks + sum(site.num_layers for site in shape.sites.values()), 2 * hidden + 1, hidden


def top_share(method: FinetuneTrial, shape: Shape) -> float:
    """The share of the blocks that a fine-tuning trains."""
    return 1.0 if method.top_layers is None else min(1.0, method.top_layers / shape.num_blocks)


def infix_positions(method: AnyTrial) -> int:
    """How many tokens longer a trial makes its rows."""
    return _positions(method) if isinstance(method, PrefixTrial) and method.format_mode == "infix" else 0


@dataclass(frozen=True)
class Matrices:
    """Parameters by how often they are used: per token of the encoder, of the decoder, per predicted token."""

    encoder: float
    decoder: float
    last: float  # those of the decoder that are in its last feed-forward layers
    head: float


def matrices(shape: Shape) -> Matrices:
    """The sizes of a base's matrices, from its shape.

    Whether the feed-forward layers have two or three matrices is told from the number of all parameters. Keys and
    values of cross-attention are computed once per encoder token.
    """
    hidden, ffn, sites = shape.hidden_size, shape.ffn_size, shape.sites
    head = hidden * shape.vocab_size
    attention = {name: site.num_layers * 2 * hidden * hidden for name, site in sites.items()}  # queries and output
    from_inputs = {name: site.num_layers * 2 * hidden * site.kv_width for name, site in sites.items()}
    num_blocks = shape.block_counts
    total = sum(attention.values()) + sum(from_inputs.values()) + head
    is_gated = total + 3 * sum(num_blocks.values()) * hidden * ffn <= _TOLERANCE * shape.num_parameters
    wide = {name: count * (3 if is_gated else 2) * hidden * ffn for name, count in num_blocks.items()}
    encoder = sum(part.get("encoder", 0) for part in (attention, from_inputs, wide)) + from_inputs.get("cross", 0)
    decoder = sum(part["decoder"] for part in (attention, from_inputs, wide)) + attention.get("cross", 0)
    return Matrices(encoder, decoder, wide["decoder"] / num_blocks["decoder"], head)


def _block_matrices(shape: Shape) -> float:
    sizes = matrices(shape)
    return sizes.encoder + sizes.decoder


def copied_parameters(method: AnyTrial, shape: Shape) -> int:
    """Weights of the base that a trial has a copy of without training them, in fp32."""
    if not isinstance(method, FinetuneTrial):
        return 0
    return shape.num_parameters - trained_parameters(method, shape)


_WORDS = 8  # prefix positions assumed where init_token sets them


def stored_prefix(method: PrefixTrial, shape: Shape) -> int:
    """How many numbers a folded prefix has, at all its sites."""
    sites = shape.sites
    return sum(_positions(method) * sites[name].prefix_width for name in method.active_sites(sites))


def _of_prefix(method: PrefixTrial, shape: Shape) -> int:
    hidden, sites = shape.hidden_size, shape.sites
    if method.prefix_mode == "embedding":
        return _rows(method, hidden, hidden)
    own = sum(_rows(method, hidden, sites[name].prefix_width) for name in method.active_sites(sites))
    return own + infix_positions(method) * hidden


def _rows(method: PrefixTrial, hidden: int, width: int) -> int:
    """Of one parametrisation that gives a row of this width for each position."""
    positions, mid = _positions(method), method.mid_dim
    if mid is None:
        return positions * width
    return positions * hidden + (hidden + 1) * mid + (mid + 1) * width


def _positions(method: PrefixTrial) -> int:
    return method.preseqlen or _WORDS
