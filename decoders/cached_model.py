"""A causal language model together with the cache of the texts it is writing.

The cache is kept *right-aligned*: row b's `lengths[b]` tokens fill its last slots, whatever was rolled back, so that a
2-D mask describes every row, distances between slots are distances in the text (sliding windows stay right), and a
ragged batch needs no holes. Positions are counted in tokens, not slots.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn import Embedding
    from transformers import Cache, PreTrainedModel


class CachedModel:
    """A model and its cache, a row for each text.

    Attributes:
        lengths: `[rows]` int64, cached tokens of each row.
        vocabulary: how many token ids the model can read.
    """

    def __init__(self, model: PreTrainedModel, batch: int, device: torch.device) -> None:
        # a plain dynamic cache, without the config: every layer keeps all its tokens and can be rolled back; a sliding
        # window is applied by the mask alone (layers that forget cannot return to an earlier token)
        from transformers import DynamicCache

        self.model = model
        self.cache: Cache = DynamicCache()
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        embeddings = cast("Embedding", model.get_input_embeddings())
        self.vocabulary = embeddings.weight.shape[0]
        self._input_device = embeddings.weight.device
        # an adapter's model (PEFT) hands its keyword arguments on to the model inside
        unwrap = getattr(model, "get_base_model", None)
        parameters = inspect.signature((unwrap() if unwrap else model).forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._takes_logits_to_keep = "logits_to_keep" in parameters

    def prefill(self, token_ids: Tensor, lengths: Tensor) -> None:
        """Cache the first tokens of every row: `token_ids` `[rows, n]` left-padded, `lengths` `[rows]` of them real."""
        if token_ids.shape[1] > 0:
            self._forward(token_ids, lengths, logits_to_keep=1)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Append `token_ids` `[rows, n]` to every row; logits `[rows, n, vocab]` after each of them."""
        width = torch.full_like(self.lengths, token_ids.shape[1])
        return self._forward(token_ids, width)

    def branch(self, paths: int) -> None:
        """Every row becomes `paths` rows that share its text: row b's are `b * paths` to `b * paths + paths - 1`."""
        if paths == 1:
            return
        for layer in self._layers():
            layer.keys = layer.keys.repeat_interleave(paths, dim=0)
            layer.values = layer.values.repeat_interleave(paths, dim=0)
        self.lengths = self.lengths.repeat_interleave(paths)

    def commit(self, rows: Tensor, surplus: Tensor) -> None:
        """Keep these rows, each without its last tokens.

        Args:
            rows: `[n]` int64, the rows to keep, in their new order.
            surplus: `[n]` int64, how many of its last cached tokens each of them loses.
        """
        lengths = self.lengths[rows] - surplus
        assert bool((lengths >= 0).all()), "a row cannot lose more tokens than it holds"
        width = int(lengths.max())
        whole = len(rows) == len(self.lengths) and bool((rows == _arange(rows)).all())
        even = bool((surplus == surplus[0]).all())
        for layer in self._layers():
            if not whole:
                index = rows.to(layer.keys.device)
                layer.keys, layer.values = layer.keys[index], layer.values[index]
            if even:
                stop = layer.keys.shape[2] - int(surplus[0])
                layer.keys = layer.keys[:, :, stop - width : stop]
                layer.values = layer.values[:, :, stop - width : stop]
            else:
                layer.keys = _realign(layer.keys, surplus, width)
                layer.values = _realign(layer.values, surplus, width)
        self.lengths = lengths

    def adopt(self, cache: Cache, cached: int) -> bool:
        """Start from the cache of an earlier turn that holds the first `cached` slots of every row.

        The tensors are shared, never written to. Returns whether the cache could be used: layers that forgot tokens
        (a sliding window) or keep other things than keys and values cannot, and the text is then simply read again.
        """
        layers: list[Any] = list(cache.layers)
        keys = [getattr(layer, "keys", None) for layer in layers]
        usable = all(key is not None and key.ndim == 4 and key.shape[2] == cached for key in keys)
        if not usable or not layers:
            return False
        for number, layer in enumerate(layers):
            self.cache.update(layer.keys, layer.values, number)
        return True

    def align(self, token_of_slot: Tensor) -> None:
        """Lay the cache out anew: slot s of row b shall hold the row's token `token_of_slot[b, s]`, `[rows, width]`.

        Numbers outside the row's tokens stand for padding: what such a slot holds is left to a mask to hide.
        """
        slots = self.cache.get_seq_length() - self.lengths[:, None] + token_of_slot
        for layer in self._layers():
            index = slots.clamp(0, layer.keys.shape[2] - 1)
            index = index.to(layer.keys.device)[:, None, :, None]
            shape = (-1, layer.keys.shape[1], -1, layer.keys.shape[3])
            layer.keys = layer.keys.gather(2, index.expand(shape))
            layer.values = layer.values.gather(2, index.expand(shape))

    def _forward(self, token_ids: Tensor, real: Tensor, logits_to_keep: int = 0) -> Tensor:
        """One call: the last `real[b]` of row b's tokens are its own, those before are padding."""
        width = token_ids.shape[1]
        slots = self.cache.get_seq_length() + width
        lengths = self.lengths + real
        slot = torch.arange(slots, device=token_ids.device)
        attention_mask = (slot >= slots - lengths[:, None]).to(torch.int64)
        positions = lengths[:, None] - width + torch.arange(width, device=token_ids.device)
        # an id that only the wider of two padded vocabularies has is fed as token 0: a draft may be given anything
        fed = torch.where(token_ids < self.vocabulary, token_ids, 0)
        options: dict[str, Any] = {"past_key_values": self.cache, "use_cache": True}
        if self._takes_positions:
            options["position_ids"] = positions.clamp_min(0).to(self._input_device)
        if self._takes_logits_to_keep and logits_to_keep:
            options["logits_to_keep"] = logits_to_keep
        output = self.model(
            input_ids=fed.to(self._input_device),
            attention_mask=attention_mask.to(self._input_device),
            return_dict=True,
            **options,
        )
        self.lengths = lengths
        logits: Tensor = output.logits
        return logits.to(token_ids.device)

    def _layers(self) -> list[Any]:
        layers: list[Any] = list(self.cache.layers)
        return [layer for layer in layers if layer.get_seq_length() > 0]


def _realign(states: Tensor, surplus: Tensor, width: int) -> Tensor:
    """Drop the last `surplus[b]` slots of each row and move the rest to the right end of `width` slots."""
    surplus = surplus.to(states.device)
    slots = states.shape[2]
    index = torch.arange(slots - width, slots, device=states.device) - surplus[:, None]
    index = index.clamp_min(0)[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
    return states.gather(2, index)


def _arange(rows: Tensor) -> Tensor:
    return torch.arange(len(rows), device=rows.device)
