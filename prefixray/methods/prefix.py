"""Prefix-tuning (Li & Liang 2021, section 4): keys and values in front of every attention layer.

A base has one to three sites of attention, and each gets a prefix of its own. Reparametrised, it comes from
`Embedding -> Linear(mid_dim) -> Tanh -> Linear` (section 4.3); flat, it is the trained tensor. With `init_token` it
starts as the base's own keys and values over those words (section 7.4), at all sites from one forward: a flat prefix
copies them, behind the network a least-squares solve of the last linear layer reproduces them.
"""

# L layers of a site, K key/value heads, P prefix positions, D head dim

import logging
import math

import torch
from torch import Tensor, nn

from prefixray.attention import Insert
from prefixray.base import Base, SiteShape
from prefixray.config import SITE_JOIN, PrefixTrial, UserError
from prefixray.methods.contract import Method, Recorder, seeded_dropout

logger = logging.getLogger(__name__)


class Prefix(Method):
    """A trial's prefixes. Their artifact is what they fold to, (2, L, K, P, D) at each site, the networks gone."""

    def __init__(
        self, config: PrefixTrial, base: Base, record: Recorder, draw: torch.Generator, dropout_seed: int
    ) -> None:
        super().__init__()
        shape = base.shape
        words = None if config.init_token is None else _word_ids(config.init_token, base)
        self.num_positions = len(words) if config.preseqlen is None and words else config.preseqlen or 0
        if shape.max_positions is not None and self.num_positions >= shape.max_positions:
            raise UserError(f"preseqlen: {self.num_positions}: {base.name} has {shape.max_positions} positions")
        missing = set(() if config.sites is None else config.sites.split(SITE_JOIN)) - set(shape.sites)
        if missing:
            raise UserError(f"sites: {', '.join(sorted(missing))}: {base.name} has {', '.join(shape.sites)} only")
        self._dropout, self._dropout_seed = config.prefix_dropout, dropout_seed
        targets = {} if words is None else record(_cycled(words, self.num_positions, base))
        self.sites = nn.ModuleDict()
        for site in config.active_sites(shape.sites):
            sizes = (self.num_positions, shape.hidden_size, config.mid_dim)
            self.sites[site] = SitePrefix(shape.sites[site], sizes, targets.get(site), draw)
        self.to(base.device)
        residual = self.residual()
        if residual is not None and config.mid_dim is not None and self.num_positions > config.mid_dim + 1:
            logger.info("init_token: the networks reach all but %.2g of the words' K/V", residual)
        self._folded: dict[str, Tensor] = {}  # this step's prefixes, with their graphs
        self._leaves: dict[str, Tensor] = {}  # what the base sees of them, where gradients arrive
        self._loaded: dict[str, Tensor] = {}

    def residual(self) -> float | None:
        """What real-word initialisation could not reach, as a share of its size; of the worst site."""
        found = [part.residual for part in self._parts().values() if part.residual is not None]
        return max(found, default=None)

    def fold(self) -> dict[str, Tensor]:
        """The prefixes as the base sees them, without dropout: (2, L, K, P, D) at each site."""
        return self._loaded or {site: part() for site, part in self._parts().items()}

    def insert(self, step: int | None) -> Insert:
        """The folded prefixes; in training as leaves, so that a network runs and is differentiated once per step."""
        if step is None:
            return Insert({site: prefix.detach() for site, prefix in self.fold().items()})
        self._folded = {
            site: seeded_dropout(prefix, self._dropout, seed=self._dropout_seed + (index << 32), step=step)
            for index, (site, prefix) in enumerate(self.fold().items())
        }
        self._leaves = {site: folded.detach().requires_grad_() for site, folded in self._folded.items()}
        return Insert(self._leaves)

    def push_gradients(self) -> None:
        """One backward through the networks with the gradients of all rows."""
        assert self._leaves, "insert(step) comes first"
        arrived = [site for site, leaf in self._leaves.items() if leaf.grad is not None]
        if arrived:
            torch.autograd.backward(
                [self._folded[site] for site in arrived], [self._leaves[site].grad for site in arrived]
            )
        self._folded, self._leaves = {}, {}

    def stored_parameters(self) -> int:
        """The folded prefixes alone are kept."""
        return sum(math.prod(part.shape) for part in self._parts().values())

    def artifact(self) -> dict[str, Tensor]:
        """`SITE.key` and `SITE.value`, each (L, K, P, D), fp32."""
        tensors: dict[str, Tensor] = {}
        for site, prefix in self.fold().items():
            tensors[f"{site}.key"], tensors[f"{site}.value"] = prefix.detach().cpu().contiguous()
        return tensors

    def load_artifact(self, tensors: dict[str, Tensor]) -> None:
        """Replace the parametrisation by stored prefixes."""
        device = next(self.parameters()).device
        self._loaded = {
            site: torch.stack([tensors[f"{site}.key"], tensors[f"{site}.value"]]).to(device) for site in self._parts()
        }

    def _parts(self) -> dict[str, "SitePrefix"]:
        return {site: part for site, part in self.sites.items() if isinstance(part, SitePrefix)}


class SitePrefix(nn.Module):
    """The prefix of one site: a tensor, or the network that gives it."""

    def __init__(
        self, site: SiteShape, sizes: tuple[int, int, int | None], target: Tensor | None, draw: torch.Generator
    ) -> None:
        super().__init__()
        positions, hidden, mid = sizes
        self.shape = (2, site.num_layers, site.num_kv_heads, positions, site.head_dim)
        self.residual: float | None = None
        self.network: _Network | None = None
        if mid is None:
            flat = torch.randn(self.shape, generator=draw) if target is None else target.float().cpu().clone()
            self.flat = nn.Parameter(flat)
        else:
            self.network = _Network(positions, hidden, mid, math.prod(self.shape) // positions, draw)
            if target is not None:
                self.residual = self.network.solve(target)

    def forward(self) -> Tensor:
        """The prefix, (2, L, K, P, D)."""
        if self.network is None:
            return self.flat
        two, layers, heads, positions, dim = self.shape
        rows: Tensor = self.network()  # (P, L * 2 * K * D)
        return rows.view(positions, layers, two, heads, dim).permute(2, 1, 3, 0, 4)


class _Network(nn.Module):
    """The reparametrisation, with torch's default distributions drawn from `draw`."""

    def __init__(self, positions: int, hidden: int, mid: int, width: int, draw: torch.Generator) -> None:
        super().__init__()
        self.embedding = nn.Embedding(positions, hidden)
        self.inner = nn.Linear(hidden, mid)
        self.outer = nn.Linear(mid, width)
        with torch.no_grad():
            self.embedding.weight.normal_(generator=draw)
            for linear in (self.inner, self.outer):
                bound = 1 / math.sqrt(linear.in_features)
                linear.weight.uniform_(-bound, bound, generator=draw)
                linear.bias.uniform_(-bound, bound, generator=draw)

    def hidden(self) -> Tensor:
        """What goes into the last linear layer, (P, mid_dim)."""
        return torch.tanh(self.inner(self.embedding.weight))

    def forward(self) -> Tensor:
        """All positions at once: (P, L * 2 * K * D)."""
        rows: Tensor = self.outer(self.hidden())
        return rows

    def solve(self, target: Tensor) -> float:
        """Set the last linear layer so that the network gives `target` (2, L, K, P, D); return the relative residual.

        Exact while P <= mid_dim + 1: a least-squares problem with P equations per output, of the smallest norm.
        """
        positions = target.shape[3]
        wanted = target.permute(3, 1, 0, 2, 4).reshape(positions, -1).double().cpu()  # (P, L * 2 * K * D)
        with torch.no_grad():
            hidden = self.hidden().double().cpu()  # (P, mid)
            inputs = torch.cat([hidden, torch.ones(positions, 1, dtype=torch.float64)], dim=1)
            solution = torch.linalg.lstsq(inputs, wanted, driver="gelsd").solution  # (mid + 1, width)
            self.outer.weight.copy_(solution[:-1].T)
            self.outer.bias.copy_(solution[-1])
            return float((inputs @ solution - wanted).norm() / wanted.norm())


def _word_ids(words: str, base: Base) -> list[int]:
    """The words' token ids as they stand inside a text: after a space, without special tokens."""
    ids: list[int] = base.tokenizer(" " + words, add_special_tokens=False).input_ids
    if not ids:
        raise UserError(f"init_token: {words!r}: has no tokens in {base.name}'s vocabulary")
    return ids


def _cycled(ids: list[int], length: int, base: Base) -> Tensor:
    repeated = (ids * (length // len(ids) + 1))[:length]
    return torch.tensor([repeated], device=base.device)
