"""Keys and values of a model over given tokens, as prefixes have them."""

# B rows, S tokens, L layers of a site, K key/value heads, D head dim

from typing import Any

import torch
from torch import Tensor

from prefixray.model.binding.model_ref import ModelRef


class KVRecorder:
    """Runs the model and keeps what its attention is given."""

    def __init__(self, model: ModelRef) -> None:
        self._model = model
        self._layers: dict[tuple[str, int], tuple[Tensor, Tensor]] | None = None  # (site, layer) -> keys, values

    def note(self, site: str, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep keys and values of a layer, (B, K, S, D) each, while a recording runs."""
        if self._layers is not None:
            self._layers[site, layer] = (key, value)

    def record(self, tokens: Tensor) -> dict[str, Tensor]:
        """Every site's keys and values over token ids (1, S), or embeddings (1, S, width): (2, L, K, S, D) each.

        Of an encoder-decoder model both sides run over the tokens, in one forward, the decoder looking at the encoder.
        """
        return {site: rows[0] for site, rows in self.record_rows(tokens).items()}

    def record_rows(self, tokens: Tensor) -> dict[str, Tensor]:
        """Every site's keys and values over token ids (B, S), padded on the right: (B, 2, L, K, S, D) each.

        Embeddings (B, S, width) may stand in place of ids; gradients flow back to them. Rows see what is bound to them,
        but the keys and values of a bound prefix are not part of the result.
        """
        layers = self._layers = {}
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled() and tokens.requires_grad):
                self._model().base_model(**self._inputs(tokens))
        finally:
            self._layers = None
        by_site: dict[str, list[Tensor]] = {}
        for (site, _), (key, value) in sorted(layers.items()):
            by_site.setdefault(site, []).append(torch.stack([key, value], dim=1))  # (B, 2, K, S, D)
        return {site: torch.stack(both, dim=2) for site, both in by_site.items()}

    def _inputs(self, tokens: Tensor) -> dict[str, Any]:
        num_rows, length = tokens.shape[:2]
        kind = "inputs_embeds" if tokens.is_floating_point() else "input_ids"
        inputs: dict[str, Any] = {kind: tokens, "use_cache": False}
        columns = torch.arange(length, device=tokens.device).expand(num_rows, length)
        if not self._model().config.is_encoder_decoder:
            return inputs | {"position_ids": columns}
        inputs |= {f"decoder_{kind}": tokens, "attention_mask": torch.ones_like(columns)}
        if tokens.is_floating_point():  # Pegasus' and Marian's encoder scales the embeddings of ids alone
            encoder = self._model().get_encoder()
            inputs[kind] = tokens * getattr(encoder, "embed_scale", 1.0)
        return inputs
