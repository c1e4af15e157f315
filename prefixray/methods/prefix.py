"""Prefix-tuning (Li & Liang 2021, section 4): keys and values in front of every attention layer.

A base has one to three sites of attention, and each gets a prefix of its own. A prefix starts as the base's own keys
and values over the words of `init_token` (section 7.4), over tokens of a document, or over random tokens; one forward
gives them for all sites. A network without words starts as torch draws it. Once per step the trained tensors are
folded: the parametrisation becomes keys and values. The base sees the folded prefix, and the artifact holds it alone.
"""

# L layers of a site, K key/value heads, P prefix positions, D head dim

import itertools
import logging
import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from prefixray.config.trials import SITE_JOIN, PrefixTrial
from prefixray.errors import UserError
from prefixray.methods.contract import Method, Recorder, Start, seeded_dropout
from prefixray.methods.parametrisation import Parametrisation, Sizes
from prefixray.model.base import Base
from prefixray.model.binding.insert import Insert
from prefixray.model.shape import SiteShape

logger = logging.getLogger(__name__)

CHUNK = 32  # tokens of a document that stay together where a prefix starts as sampled chunks


class Prefix(Method):
    """A trial's prefixes, of any parametrisation. Their artifact is the folded prefix of each site, (2, L, K, P, D)."""

    def __init__(self, config: PrefixTrial, base: Base, start: Start) -> None:
        super().__init__()
        shape = base.shape
        words = [] if config.init_token is None else _word_ids(config.init_token, base)
        self.num_positions = config.preseqlen or len(words)
        if config.frozen_positions >= self.num_positions:
            raise UserError(
                f"frozen_positions: {config.frozen_positions}: of {self.num_positions} some must be trained"
            )
        if shape.max_positions is not None and self.num_positions >= shape.max_positions:
            raise UserError(f"preseqlen: {self.num_positions}: {base.name} has {shape.max_positions} positions")
        missing = set(() if config.sites is None else config.sites.split(SITE_JOIN)) - set(shape.sites)
        if missing:
            raise UserError(f"sites: {', '.join(sorted(missing))}: {base.name} has {', '.join(shape.sites)} only")
        self.active_sites = config.active_sites(shape.sites)
        self.tokens: list[int] | None = None  # those that the prefix starts as, (P,); None: the network as it is drawn
        if words:
            self.tokens = list(itertools.islice(itertools.cycle(words), self.num_positions))
        elif config.init_from != "words":
            self.tokens = _document_tokens(config.init_from, self.num_positions, base, start)
        elif config.mid_dim is None:
            self.tokens = random_tokens(self.num_positions, base, start.draw)
        self._num_frozen = config.frozen_positions
        self._dropout, self._dropout_seed = config.prefix_dropout, start.dropout_seed
        self._folded: dict[str, Tensor] = {}  # this step's prefixes, with their graphs
        self._leaves: dict[str, Tensor] = {}  # what the base sees of them, where gradients arrive
        self._loaded: dict[str, Tensor] = {}

    @abstractmethod
    def fold(self) -> dict[str, Tensor]:
        """The prefixes that the trained tensors give, without dropout: (2, L, K, P, D) at each site."""

    def residual(self) -> float | None:
        """The part of the words' keys and values that the networks could not reach, relative; of the worst site."""
        parts = (module for module in self.modules() if isinstance(module, Parametrisation))
        return max((part.residual for part in parts if part.residual is not None), default=None)

    def insert(self, step: int | None) -> Insert:
        """The folded prefixes; in training as leaves, so that folding runs and is differentiated once per step."""
        if step is None:
            return Insert({site: prefix.detach() for site, prefix in self._known().items()})
        self._folded, self._leaves = {}, {}  # those of a step that had no memory
        self._folded = {
            site: self._dropped(prefix, seed=self._dropout_seed + (index << 32), step=step)
            for index, (site, prefix) in enumerate(self.fold().items())
        }
        self._leaves = {site: folded.detach().requires_grad_() for site, folded in self._folded.items()}
        return Insert(self._leaves)

    def _dropped(self, prefix: Tensor, *, seed: int, step: int) -> Tensor:
        """The prefix with dropout on the positions that are trained."""
        if not self._num_frozen:
            return seeded_dropout(prefix, self._dropout, seed=seed, step=step)
        frozen, trained = prefix.tensor_split([self._num_frozen], dim=3)
        return torch.cat([frozen, seeded_dropout(trained, self._dropout, seed=seed, step=step)], dim=3)

    def push_gradients(self) -> None:
        """One backward through the folding, with the gradients of all rows."""
        assert self._leaves, "insert(step) comes first"
        folded, leaves = self._folded, self._leaves
        self._folded, self._leaves = {}, {}  # first, so that nothing is kept where memory runs out
        arrived = [site for site, leaf in leaves.items() if leaf.grad is not None]
        if arrived:
            torch.autograd.backward([folded[site] for site in arrived], [leaves[site].grad for site in arrived])

    def artifact(self) -> dict[str, Tensor]:
        """`SITE.key` and `SITE.value`, each (L, K, P, D), fp32."""
        tensors: dict[str, Tensor] = {}
        for site, prefix in self._known().items():
            tensors[f"{site}.key"], tensors[f"{site}.value"] = prefix.detach().cpu().contiguous()
        return tensors

    def load_artifact(self, tensors: dict[str, Tensor]) -> None:
        """Replace the parametrisation by stored prefixes."""
        device = next(self.parameters()).device
        self._loaded = {
            site: torch.stack([tensors[f"{site}.key"], tensors[f"{site}.value"]]).to(device)
            for site in self.active_sites
        }

    def _known(self) -> dict[str, Tensor]:
        """The prefixes that were loaded, else those that the trained tensors give."""
        if self._loaded:
            return self._loaded
        with torch.no_grad():
            return self.fold()

    def _say_residual(self, mid_dim: int | None) -> None:
        """Log the residual where there are more positions than the network can hold."""
        residual = self.residual()
        if residual is not None and mid_dim is not None and self.num_positions - self._num_frozen > mid_dim + 1:
            logger.info("start: the networks reach all but %.2g of its keys and values", residual)


class ActivationPrefix(Prefix):
    """Keys and values that are trained directly, or come from a network for each site (`prefix_mode: activation`)."""

    def __init__(self, config: PrefixTrial, base: Base, record: Recorder, start: Start) -> None:
        super().__init__(config, base, start)
        starts = {} if self.tokens is None else self.start(record, base)
        sizes = Sizes(self.num_positions, base.shape.hidden_size, config.mid_dim, config.frozen_positions)
        self.sites = nn.ModuleDict()
        for site in self.active_sites:
            self.sites[site] = SitePrefix(base.shape.sites[site], sizes, starts.get(site), start.draw)
        self.to(base.device)
        self._say_residual(config.mid_dim)

    def start(self, record: Recorder, base: Base) -> dict[str, Tensor]:
        """The first values of the prefixes that start as tokens: the base's keys and values over them."""
        return dict(record(torch.tensor([self.tokens], device=base.device)))

    def fold(self) -> dict[str, Tensor]:
        """One pass through the network of each site, or its tensor."""
        return {site: part() for site, part in self._parts().items()}

    def stored_parameters(self) -> int:
        """The folded prefixes alone are kept."""
        return sum(math.prod(part.shape) for part in self._parts().values())

    def _parts(self) -> dict[str, "SitePrefix"]:
        return {site: part for site, part in self.sites.items() if isinstance(part, SitePrefix)}


class SitePrefix(nn.Module):
    """The prefix of one site, (2, L, K, P, D), from a row for each of its positions."""

    def __init__(self, site: SiteShape, sizes: Sizes, start: Tensor | None, draw: torch.Generator) -> None:
        super().__init__()
        positions = sizes.positions
        self.shape = (2, site.num_layers, site.num_kv_heads, positions, site.head_dim)
        rows = None if start is None else start.permute(3, 1, 0, 2, 4).reshape(positions, -1)  # (P, L * 2 * K * D)
        self.rows = Parametrisation(sizes, math.prod(self.shape) // positions, rows, draw)

    def forward(self) -> Tensor:
        """The prefix, (2, L, K, P, D)."""
        two, layers, heads, positions, dim = self.shape
        rows: Tensor = self.rows()
        return rows.view(positions, layers, two, heads, dim).permute(2, 1, 3, 0, 4)


def random_tokens(count: int, base: Base, draw: torch.Generator) -> list[int]:
    """So many tokens of the base's vocabulary: what the base makes of them has the scale that it is used to."""
    drawn: list[int] = torch.randint(base.shape.vocab_size, (count,), generator=draw).tolist()
    return drawn


def _document_tokens(which: Literal["document", "chunks"], count: int, base: Base, start: Start) -> list[int]:
    """So many tokens of the document: its first ones, or sampled chunks in their order (Diaz 2025, arXiv 2508.17032).

    Raises `UserError` where there is no document, or fewer tokens.
    """
    if start.document is None:
        raise UserError(f"init_from: {which}: the task has no document; take words")
    tokens = document_tokens(start.document.text, base)
    if len(tokens) < count:
        raise UserError(
            f"preseqlen: {count}: init_from {which} needs as many tokens, and the document {start.document.name} has "
            f"{len(tokens)}; lower preseqlen, take init_from: words, or take the document out of task.path"
        )
    if which == "document":
        return tokens[:count]
    firsts = range(0, len(tokens), CHUNK)
    drawn = torch.randperm(len(firsts), generator=start.draw).tolist()
    chunks = {first: tokens[first : first + CHUNK] for first in (firsts[index] for index in drawn)}
    ends = itertools.accumulate(map(len, chunks.values()))
    enough = next(index for index, end in enumerate(ends, start=1) if end >= count)
    return [token for first in sorted(list(chunks)[:enough]) for token in chunks[first]][:count]


def document_tokens(text: str, base: Base) -> list[int]:
    """A document as the base reads it: behind the start token where its tokenizer puts one, without an end token."""
    tokenizer, ids = base.tokenizer, base.text_ids(text)
    with_special: list[int] = tokenizer("a").input_ids
    begins = tokenizer.bos_token_id is not None and with_special[0] == tokenizer.bos_token_id
    return [*with_special[:1], *ids] if begins else ids


def _word_ids(words: str, base: Base) -> list[int]:
    """The words' token ids as they stand inside a text: after a space, without special tokens."""
    ids: list[int] = base.tokenizer(" " + words, add_special_tokens=False).input_ids
    if not ids:
        raise UserError(f"init_token: {words!r}: has no tokens in {base.name}'s vocabulary")
    return ids
