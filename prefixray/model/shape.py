"""The sizes of a base: enough to count parameters, memory and operations, without its weights.

This module loads no torch, so that a plan and the driver can count, too. As JSON a shape is `dataclasses.asdict`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_TOLERANCE = 1.02  # a base's parameters may be this much fewer than its matrices suggest


@dataclass(frozen=True)
class SiteShape:
    """The sizes of attention at one site of a base."""

    num_layers: int
    num_heads: int  # of queries
    num_kv_heads: int
    head_dim: int

    @property
    def kv_width(self) -> int:
        """Numbers that one layer keeps per token as keys; it keeps as many as values."""
        return self.num_kv_heads * self.head_dim

    @property
    def prefix_width(self) -> int:
        """Numbers per prefix position: keys and values of all layers."""
        return self.num_layers * 2 * self.kv_width


@dataclass(frozen=True)
class Shape:
    """The sizes of a base that methods are built from."""

    is_encoder_decoder: bool
    sites: Mapping[str, SiteShape]  # "decoder", of an encoder-decoder model also "encoder" and "cross"
    hidden_size: int
    ffn_size: int
    vocab_size: int
    num_parameters: int
    is_tied: bool  # the head's weights are the word embeddings
    max_positions: int | None  # of a decoder-only model for all of a row, else for each side; None: no limit

    @property
    def block_counts(self) -> dict[str, int]:
        """Transformer blocks of the decoder, and of the encoder where there is one."""
        return {name: site.num_layers for name, site in self.sites.items() if name != "cross"}

    @property
    def num_blocks(self) -> int:
        """Transformer blocks of both sides."""
        return sum(self.block_counts.values())


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
    # Queries and output.
    attention = {name: site.num_layers * 2 * hidden * site.num_heads * site.head_dim for name, site in sites.items()}
    from_inputs = {name: site.num_layers * 2 * hidden * site.kv_width for name, site in sites.items()}
    num_blocks = shape.block_counts
    total = sum(attention.values()) + sum(from_inputs.values()) + (1 if shape.is_tied else 2) * head
    is_gated = total + 3 * sum(num_blocks.values()) * hidden * ffn <= _TOLERANCE * shape.num_parameters
    wide = {name: count * (3 if is_gated else 2) * hidden * ffn for name, count in num_blocks.items()}
    encoder = sum(part.get("encoder", 0) for part in (attention, from_inputs, wide)) + from_inputs.get("cross", 0)
    decoder = sum(part["decoder"] for part in (attention, from_inputs, wide)) + attention.get("cross", 0)
    return Matrices(encoder, decoder, wide["decoder"] / num_blocks["decoder"], head)
