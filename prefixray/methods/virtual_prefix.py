"""Prefixes made of virtual words: embeddings that run through the base (Li & Liang 2021, sections 7.2 and 7.3).

Embedding-only: the base runs over P trained embeddings, once per trial and step and with gradients. Its keys and values
over them stand in front of the rows, as any prefix does. Infix: the embeddings stand inside each row, behind its
source, so that the base's keys and values there depend on the source; the trial adds keys and values of its own.
"""

# P virtual positions, W width of the base's word embeddings

import torch
from torch import Tensor, nn

from prefixray.config.trials import PrefixTrial
from prefixray.errors import UserError
from prefixray.methods.contract import Recorder, Start
from prefixray.methods.parametrisation import Parametrisation, Sizes
from prefixray.methods.prefix import ActivationPrefix, Prefix, random_tokens
from prefixray.model.base import Base
from prefixray.model.binding.insert import Insert


class EmbeddingPrefix(Prefix):
    """Only embeddings are trained, or the network that gives them (`prefix_mode: embedding`).

    Flat, they start as those of the words of `init_token`, of a document or of random tokens. An encoder-decoder reads
    the same embeddings on both sides, as it reads words.
    """

    def __init__(self, config: PrefixTrial, base: Base, record: Recorder, start: Start) -> None:
        super().__init__(config, base, start)
        self._record, self._dtype = record, base.model.dtype
        self._width = _embedded([0], base).shape[1]
        words = None if self.tokens is None else _embedded(self.tokens, base)
        sizes = Sizes(self.num_positions, self._width, config.mid_dim, config.frozen_positions)
        self.embedding = Parametrisation(sizes, self._width, words, start.draw)
        self.to(base.device)
        self._say_residual(config.mid_dim)

    def fold(self) -> dict[str, Tensor]:
        """One forward of the base over the embeddings."""
        rows: Tensor = self.embedding()
        recorded = self._record(rows.to(self._dtype)[None])
        return {site: recorded[site].to(rows.dtype) for site in self.active_sites}

    def stored_parameters(self) -> int:
        """The embeddings, from which the base makes the keys and values that the artifact holds."""
        return self.num_positions * self._width


class Infix(ActivationPrefix):
    """Virtual embeddings behind the source, and what is added to their keys and values (`format_mode: infix`).

    The embeddings start as those of the words of `init_token` or of random tokens, and the added keys and values as 0:
    the base reads source and words. Behind a network without words, what is added starts as the network is drawn.
    """

    def __init__(self, config: PrefixTrial, base: Base, record: Recorder, start: Start) -> None:
        if base.shape.is_encoder_decoder:
            raise UserError(
                f"format_mode: infix: {base.name} is an encoder-decoder, whose source and target are no one row that "
                "an infix could stand in; take cat"
            )
        super().__init__(config, base, record, start)
        tokens = random_tokens(self.num_positions, base, start.draw) if self.tokens is None else self.tokens
        self.embedding = nn.Parameter(_embedded(tokens, base).to(base.device))

    def start(self, record: Recorder, base: Base) -> dict[str, Tensor]:
        """Zeros: nothing is added to the tokens' own keys and values."""
        site = base.shape.sites["decoder"]
        return {"decoder": torch.zeros(2, site.num_layers, site.num_kv_heads, self.num_positions, site.head_dim)}

    def insert(self, step: int | None) -> Insert:
        """The added keys and values, and the embeddings."""
        added = super().insert(step).prefixes
        return Insert(added, infix=self.embedding.detach() if step is None else self.embedding)

    def stored_parameters(self) -> int:
        """The added keys and values, and the embeddings."""
        return super().stored_parameters() + self.embedding.numel()

    def artifact(self) -> dict[str, Tensor]:
        """The added `decoder.key` and `decoder.value`, and `infix.embedding` (P, W)."""
        return {**super().artifact(), "infix.embedding": self.embedding.detach().cpu().contiguous()}

    def load_artifact(self, tensors: dict[str, Tensor]) -> None:
        """Replace the parametrisation by stored tensors."""
        super().load_artifact(tensors)
        with torch.no_grad():
            self.embedding.copy_(tensors["infix.embedding"])


def _embedded(tokens: list[int], base: Base) -> Tensor:
    """The base's input embeddings of the tokens, (P, W) in fp32 or as exact as they are."""
    with torch.no_grad():
        rows: Tensor = base.model.get_input_embeddings()(torch.tensor(tokens, device=base.device))
    return rows.to("cpu", torch.promote_types(rows.dtype, torch.float32), copy=True)
