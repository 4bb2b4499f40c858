"""A causal language model together with the cache of the texts it is writing.

The cache is kept *right-aligned*: row b's `lengths[b]` tokens fill its last slots, whatever was rolled back, so that a
2-D mask describes every row, distances between slots are distances in the text (sliding windows stay right), and a
ragged batch needs no holes. Positions are counted in tokens, not slots.

Behind the texts a row may hold a *tree* of drafted tokens, for a while: `forward_tree` appends its nodes, each of which
sees its text and its ancestors, and `keep` makes one path of it part of the text.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .growing_layer import growing_layer
from .tree_mask import model_inside, tree_mask

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
        from transformers import Cache

        self.model = model
        # without the config every layer keeps all its tokens and can be rolled back; a sliding window is applied by the
        # mask alone (layers that forget cannot return to an earlier token)
        self.cache = Cache(layer_class_to_replicate=growing_layer())
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        embeddings = cast("Embedding", model.get_input_embeddings())
        self.vocabulary = embeddings.weight.shape[0]
        device_of_weight = embeddings.weight.device
        # accelerate keeps offloaded weights elsewhere until their layer runs, and moves its inputs to where it runs
        self._input_device = device if device_of_weight.type == "meta" else device_of_weight
        parameters = inspect.signature(model_inside(model).forward).parameters
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
        self.select(_arange(self.lengths).repeat_interleave(paths))

    def select(self, rows: Tensor) -> None:
        """Row i becomes a copy of row `rows[i]`, `[n]` int64."""
        if len(rows) == len(self.lengths) and bool((rows == _arange(rows)).all()):
            return
        for layer in self._layers():
            index = rows.to(layer.keys.device)
            layer.hold(layer.keys[index], layer.values[index])
        self.lengths = self.lengths[rows]

    def commit(self, rows: Tensor, surplus: Tensor) -> None:
        """Keep these rows, each without its last tokens.

        Args:
            rows: `[n]` int64, the rows to keep, in their new order.
            surplus: `[n]` int64, how many of its last cached tokens each of them loses.
        """
        self.select(rows)
        lengths = self.lengths - surplus
        assert bool((lengths >= 0).all()), "a row cannot lose more tokens than it holds"
        width = int(lengths.max())
        even = bool((surplus == surplus[0]).all())
        for layer in self._layers():
            if even:
                stop = layer.keys.shape[2] - int(surplus[0])
                kept = slice(stop - width, stop)
                layer.hold(layer.keys[:, :, kept], layer.values[:, :, kept])
            else:
                layer.hold(
                    _realign(layer.keys, surplus, width), _realign(layer.values, surplus, width)
                )
        self.lengths = lengths

    def take_back(self, count: Tensor) -> None:
        """Forget the last `count` `[rows]` int64 tokens of every row."""
        self.commit(_arange(self.lengths), count)

    def forward_tree(self, token_ids: Tensor, depth: Tensor, visible: Tensor) -> Tensor:
        """Append nodes of a tree behind every row's text; logits `[rows, n, vocab]` after each of them.

        Args:
            token_ids: `[rows, n]` int64.
            depth: `[rows, m]` int64 for all nodes so far, the new ones last: tokens between the text's end and each.
            visible: `[rows, n, m]` bool, the nodes that each new one sees: its ancestors and itself.
        """
        nodes = token_ids.shape[1]
        text_slots = self.cache.get_seq_length() + nodes - depth.shape[1]
        slot = torch.arange(text_slots, device=token_ids.device)
        token_of_slot = slot - (text_slots - self.lengths[:, None])
        of_text = (token_of_slot >= 0)[:, None].expand(-1, nodes, -1)
        seen = torch.cat([of_text, visible], dim=2)
        of_key = torch.cat([token_of_slot, self.lengths[:, None] + depth], dim=1)
        of_query = of_key[:, -nodes:]
        distance = of_query[:, :, None] - of_key[:, None]
        return self._call(token_ids, of_query, tree_mask(self.model, seen, distance))

    def keep(self, nodes: Tensor, count: Tensor, tree_size: int) -> None:
        """Make a path of each row's tree part of its text, and forget the rest of the tree.

        Args:
            nodes: `[rows, n]` int64, numbers of the path's nodes in the order in which they were appended.
            count: `[rows]` int64, how many of them are kept; -1 takes the text's last token back, and so on.
            tree_size: nodes that were appended.
        """
        text_slots = self.cache.get_seq_length() - tree_size
        lengths = self.lengths + count
        assert bool((lengths >= 0).all()), "a row cannot lose more tokens than it holds"
        if bool((count == count[0]).all()):
            # the texts stay where they are, and the path is moved behind them
            self._keep_in_place(nodes, int(count[0]), text_slots)
            self.lengths = lengths
            return
        width = int(lengths.max())
        token = torch.arange(width, device=nodes.device) - (width - lengths[:, None])
        slots = text_slots - self.lengths[:, None] + token
        if nodes.shape[1] > 0:
            step = token - self.lengths[:, None]
            tree_slot = text_slots + nodes.gather(1, step.clamp(0, nodes.shape[1] - 1))
            slots = torch.where(step < 0, slots, tree_slot)
        slots = slots.clamp_min(0)
        for layer in self._layers():
            layer.hold(gather_slots(layer.keys, slots), gather_slots(layer.values, slots))
        self.lengths = lengths

    def _keep_in_place(self, nodes: Tensor, count: int, text_slots: int) -> None:
        width = text_slots + count
        path = text_slots + nodes[:, : max(count, 0)]
        for layer in self._layers():
            if count > 0:
                layer.keys[:, :, text_slots:width] = gather_slots(layer.keys, path)
                layer.values[:, :, text_slots:width] = gather_slots(layer.values, path)
            layer.hold(layer.keys[:, :, :width], layer.values[:, :, :width])

    def hand_out(self, token_of_slot: Tensor) -> Cache:
        """A plain dynamic cache that shares nothing with this model's.

        Its slot s of row b holds the row's token `token_of_slot[b, s]`, `[rows, width]`. Numbers outside the row's
        tokens stand for padding: what such a slot holds is left to a mask to hide.
        """
        from transformers import DynamicCache

        cache = DynamicCache()
        slots = self.cache.get_seq_length() - self.lengths[:, None] + token_of_slot
        for number, layer in enumerate(self._layers()):
            index = slots.clamp(0, layer.keys.shape[2] - 1)
            keys, values = (gather_slots(states, index) for states in (layer.keys, layer.values))
            cache.update(keys, values, number)
        return cache

    def adopt(self, cache: Cache, lengths: Tensor) -> bool:
        """Start from the cache of an earlier turn whose last `lengths[b]` slots of row b hold the row's first tokens.

        Returns whether the cache could be used; if not, the text is simply read again.
        """
        if not adoptable(cache):
            return False
        layers: list[Any] = list(cache.layers)
        for number, layer in enumerate(layers):
            # copied by the growing layers: the caller's tensors are never written to
            self.cache.update(layer.keys, layer.values, number)
        self.lengths = lengths
        return True

    def _forward(self, token_ids: Tensor, real: Tensor, logits_to_keep: int = 0) -> Tensor:
        """One call: the last `real[b]` of row b's tokens are its own, those before are padding."""
        width = token_ids.shape[1]
        slots = self.cache.get_seq_length() + width
        lengths = self.lengths + real
        slot = torch.arange(slots, device=token_ids.device)
        attention_mask = (slot >= slots - lengths[:, None]).to(torch.int64)
        positions = lengths[:, None] - width + torch.arange(width, device=token_ids.device)
        logits = self._call(token_ids, positions.clamp_min(0), attention_mask, logits_to_keep)
        self.lengths = lengths
        return logits

    def _call(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attention_mask: Tensor | dict[str, Tensor],
        logits_to_keep: int = 0,
    ) -> Tensor:
        """The model on `token_ids` `[rows, n]` behind the cache, with any mask that it takes."""
        fed = readable(token_ids, self.vocabulary)
        options: dict[str, Any] = {"past_key_values": self.cache, "use_cache": True}
        if self._takes_positions:
            options["position_ids"] = positions.to(self._input_device)
        if self._takes_logits_to_keep and logits_to_keep:
            options["logits_to_keep"] = logits_to_keep
        if isinstance(attention_mask, dict):
            options["attention_mask"] = {
                kind: mask.to(self._input_device) for kind, mask in attention_mask.items()
            }
        else:
            options["attention_mask"] = attention_mask.to(self._input_device)
        output = self.model(input_ids=fed.to(self._input_device), return_dict=True, **options)
        logits: Tensor = output.logits
        return logits.to(token_ids.device)

    def _layers(self) -> list[Any]:
        layers: list[Any] = list(self.cache.layers)
        return [layer for layer in layers if layer.get_seq_length() > 0]


def _realign(states: Tensor, surplus: Tensor, width: int) -> Tensor:
    """Drop the last `surplus[b]` slots of each row and move the rest to the right end of `width` slots."""
    slots = states.shape[2]
    index = torch.arange(slots - width, slots, device=surplus.device) - surplus[:, None]
    return gather_slots(states, index.clamp_min(0))


def adoptable(cache: Cache) -> bool:
    """Whether every layer keeps keys and values, of all tokens: a sliding window forgets some."""
    cached = cache.get_seq_length()
    layers: list[Any] = list(cache.layers)
    keys = [getattr(layer, "keys", None) for layer in layers]
    whole = all(key is not None and key.ndim == 4 and key.shape[2] == cached for key in keys)
    return bool(layers) and whole


def readable(token_ids: Tensor, vocabulary: int) -> Tensor:
    """An id that only the wider of two padded vocabularies has is fed as token 0: a draft may be given anything."""
    return torch.where(token_ids < vocabulary, token_ids, 0)


def fit_width(logits: Tensor, vocabulary: int) -> Tensor:
    """Bring logits `[rows, width]` to the target's vocabulary: two padded widths of one tokenizer.

    Tokens that the draft does not have get no draft probability, tokens that the target does not have are left out;
    the law that is sampled is the law that is verified, so nothing is lost.
    """
    width = logits.shape[1]
    if width == vocabulary:
        return logits
    if width > vocabulary:
        return logits[:, :vocabulary]
    missing = logits.new_full((len(logits), vocabulary - width), float("-inf"))
    return torch.cat([logits, missing], dim=1)


def gather_slots(states: Tensor, slots: Tensor) -> Tensor:
    """The states of `slots` `[rows, width]`: `[rows, heads, width, size]`."""
    slots = slots.to(states.device)
    if len(slots) == 1:
        return states.index_select(2, slots[0])
    index = slots[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
    return states.gather(2, index)


def _arange(rows: Tensor) -> Tensor:
    return torch.arange(len(rows), device=rows.device)
