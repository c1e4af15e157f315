"""Prefix-tuning (Li & Liang 2021, section 4): keys and values in front of every attention layer.

Reparametrised, they come from `Embedding -> Linear(mid_dim) -> Tanh -> Linear` (section 4.3); flat, they are the
trained tensor. With `init_token` the prefix starts as the base's own keys and values over those words (section 7.4): a
flat prefix copies them, behind the network a least-squares solve of the last linear layer reproduces them.
"""

# L layers, K key/value heads, P prefix positions, D head dim

import logging
import math

import torch
from torch import Tensor, nn

from prefixray.attention import Insert
from prefixray.base import Base
from prefixray.config import PrefixTrial, UserError
from prefixray.methods.contract import Method, Recorder, seeded_dropout

logger = logging.getLogger(__name__)


class Prefix(Method):
    """A trial's prefix. Its artifact is the folded prefix: (2, L, K, P, D), the network gone."""

    def __init__(
        self, config: PrefixTrial, base: Base, record: Recorder, draw: torch.Generator, dropout_seed: int
    ) -> None:
        super().__init__()
        shape = base.shape
        words = None if config.init_token is None else _word_ids(config.init_token, base)
        self.num_positions = len(words) if config.preseqlen is None and words else config.preseqlen or 0
        if shape.max_positions is not None and self.num_positions >= shape.max_positions:
            raise UserError(f"preseqlen: {self.num_positions}: {base.name} has {shape.max_positions} positions")
        self._dropout, self._dropout_seed = config.prefix_dropout, dropout_seed
        self._shape = (2, shape.num_layers, shape.num_kv_heads, self.num_positions, shape.head_dim)
        width = math.prod(self._shape) // self.num_positions
        target = None if words is None else record(_cycled(words, self.num_positions, base))
        self.residual: float | None = None  # what real-word initialisation could not reach, as a share of its size
        self.network: _Network | None = None
        if config.mid_dim is None:
            flat = torch.randn(self._shape, generator=draw) if target is None else target.float()
            self.flat = nn.Parameter(flat.to(base.device).clone())
        else:
            network = _Network(self.num_positions, shape.hidden_size, config.mid_dim, width, draw)
            self.network = network.to(base.device)
            if target is not None:
                self.residual = self.network.solve(target)
                if self.num_positions > config.mid_dim + 1:
                    logger.info("init_token: the network reaches all but %.2g of the words' K/V", self.residual)
        self._folded: Tensor | None = None  # this step's prefix, with its graph
        self._leaf: Tensor | None = None  # what the base sees of it, where gradients arrive
        self._loaded: Tensor | None = None

    def fold(self) -> Tensor:
        """The prefix as the base sees it, without dropout: (2, L, K, P, D)."""
        if self._loaded is not None:
            return self._loaded
        if self.network is None:
            return self.flat
        two, layers, heads, positions, dim = self._shape
        rows: Tensor = self.network()  # (P, L * 2 * K * D)
        return rows.view(positions, layers, two, heads, dim).permute(2, 1, 3, 0, 4)

    def insert(self, step: int | None) -> Insert:
        """The folded prefix; in training as a leaf, so that the network runs and is differentiated once per step."""
        if step is None:
            return Insert(prefix=self.fold().detach())
        self._folded = seeded_dropout(self.fold(), self._dropout, seed=self._dropout_seed, step=step)
        self._leaf = self._folded.detach().requires_grad_()
        return Insert(prefix=self._leaf)

    def push_gradients(self) -> None:
        """One backward through the network with the gradients of all rows."""
        assert self._folded is not None and self._leaf is not None, "insert(step) comes first"
        if self._leaf.grad is not None:
            self._folded.backward(self._leaf.grad)
        self._folded = self._leaf = None

    def stored_parameters(self) -> int:
        """The folded prefix alone is kept."""
        return math.prod(self._shape)

    def artifact(self) -> dict[str, Tensor]:
        """`decoder.key` and `decoder.value`, each (L, K, P, D), fp32."""
        key, value = self.fold().detach().cpu().contiguous()
        return {"decoder.key": key, "decoder.value": value}

    def load_artifact(self, tensors: dict[str, Tensor]) -> None:
        """Replace the parametrisation by a stored prefix."""
        device = next(self.parameters()).device
        self._loaded = torch.stack([tensors["decoder.key"], tensors["decoder.value"]]).to(device)


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
