"""The sizes of a base: enough to count parameters, memory and operations, without its weights.

This module loads no torch, so that a plan and the driver can count, too. As JSON a shape is `dataclasses.asdict`.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SiteShape:
    """The sizes of attention at one site of a base."""

    num_layers: int
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
    max_positions: int | None  # of a decoder-only model for all of a row, else for each side; None: no limit

    @property
    def block_counts(self) -> dict[str, int]:
        """Transformer blocks of the decoder, and of the encoder where there is one."""
        return {name: site.num_layers for name, site in self.sites.items() if name != "cross"}

    @property
    def num_blocks(self) -> int:
        """Transformer blocks of both sides."""
        return sum(self.block_counts.values())
