"""A causal language model with a cache of fixed shape: what compiled code and CUDA graphs run on.

The cache is *left-aligned*: token i of a row stands in slot i, and row b's first `lengths[b]` slots are its text. What
lies behind them is seen by nobody but a tree of drafted tokens that stands there for a while. Tokens are taken back by
a smaller `lengths`, and a path of the tree is kept by moving its slots forward.

    slots      lengths + number of each node in the tree
    positions  lengths + depth of each node
    seen       the text, and the node's ancestors in the tree

Memory: `capacity` slots a row from the first call on, for the longest text and one tree, rounded up.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .cached_model import adoptable, gather_slots, readable
from .compiled_steps import Step, compiled, logits_step
from .slot_layer import Place, slot_layer, write_inplace
from .tree_mask import model_inside, takes_tree, tree_mask

if TYPE_CHECKING:
    from torch.nn import Embedding
    from transformers import Cache, CompileConfig, PreTrainedModel

# tokens of a prompt that are read at once: the mask of all would be a square of its length
CHUNK = 512


def capacity_for(max_length: int, nodes: int) -> int:
    """Slots for texts of at most `max_length` tokens and a tree of so many nodes: 256, 384, 512, 768, 1024, ...

    Few shapes are compiled then. Two slots are spare, one for what stands before a text's first token.
    """
    tokens = max_length + nodes + 2
    power = max(256, 1 << (tokens - 1).bit_length())
    return power * 3 // 4 if power > 256 and tokens <= power * 3 // 4 else power


def check_slots(model: PreTrainedModel, role: str, device: torch.device) -> None:
    """ValueError for a model that a cache of fixed shape does not suit, or on another device than the texts."""
    name = type(model_inside(model)).__name__
    if not takes_tree(model):
        raise ValueError(
            f'cache_implementation="static" needs position ids and sdpa or eager attention with full or sliding '
            f"layers; the {role} model {name} has not all of that, and attends by "
            f"{model.config.get_text_config()._attn_implementation!r}"
        )
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if devices != [str(device)]:
        raise ValueError(
            f'cache_implementation="static" needs both models on the device of input_ids, {device}; '
            f"the {role} model {name} is on {', '.join(devices)}"
        )


class SlotModel:
    """A model and its slots, a row for each text.

    Attributes:
        lengths: `[rows]` int64, cached tokens of each row; -1 where a text of one token shall be read as two.
        capacity: slots of a row.
        vocabulary: how many token ids the model can read.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batch: int,
        device: torch.device,
        *,
        capacity: int,
        compile_config: CompileConfig | None = None,
    ) -> None:
        from transformers import Cache

        self.model = model
        self.capacity = capacity
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        embeddings = cast("Embedding", model.get_input_embeddings())
        self.vocabulary = embeddings.weight.shape[0]
        layer = slot_layer()
        self._place = Place(capacity, self.lengths[:, None], capacity)
        self.cache = Cache(layer_class_to_replicate=lambda: layer(self._place))  # type: ignore[arg-type,call-arg]
        self.compile_config = compile_config
        self._fast: dict[Step, Step] = {}

    def prefill(self, token_ids: Tensor, lengths: Tensor) -> None:
        """Cache the next tokens of every row: `token_ids` `[rows, n]` left-padded, `lengths` `[rows]` of them real."""
        if token_ids.shape[1] == 0:
            # one token that is forgotten at once: every layer has its slots afterwards
            token_ids = token_ids.new_zeros(len(token_ids), 1)
        width = token_ids.shape[1]
        number = torch.arange(width, device=token_ids.device)
        # the padding goes behind the text, where nobody sees it
        order = (number + (width - lengths)[:, None]) % width
        token_ids = readable(token_ids.gather(1, order), self.vocabulary)
        slots, cached = self.lengths[:, None] + number, int(self.lengths.max())
        # the padding of a row that holds much already may reach behind the context
        positions = torch.minimum(slots, (self.lengths + lengths)[:, None])
        for start in range(0, width, CHUNK):
            part = slice(start, start + CHUNK)
            self._place.width = cached + min(start + CHUNK, width)
            self._read_text(token_ids[:, part], slots[:, part], positions[:, part])
        self._place.width = self.capacity
        self.lengths = self.lengths + lengths

    def _read_text(self, token_ids: Tensor, slots: Tensor, positions: Tensor) -> None:
        """Tokens `[rows, n]` that see the slots before their own, among the first that the call attends to."""
        self._place.slots = slots
        slot = torch.arange(self._place.width, device=slots.device)
        distance = slots[:, :, None] - slot
        options = {"logits_to_keep": 1} if _takes(self.model, "logits_to_keep") else {}
        self.model(
            input_ids=token_ids,
            attention_mask=tree_mask(self.model, distance >= 0, distance),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **options,
        )

    def forward(self, token_ids: Tensor) -> Tensor:
        """Append `token_ids` `[rows, n]` to every row; logits `[rows, n, vocab]` after each of them."""
        number = torch.arange(token_ids.shape[1], device=token_ids.device)
        logits = self.read(token_ids, number, number, number <= number[:, None])
        self.lengths = self.lengths + token_ids.shape[1]
        return logits

    def take_back(self, count: Tensor) -> None:
        """Forget the last `count` `[rows]` int64 tokens of every row."""
        self.lengths = self.lengths - count

    def read(
        self, token_ids: Tensor, number: Tensor, depth: Tensor, seen: Tensor, *, fast: bool = False
    ) -> Tensor:
        """Put nodes of a tree behind every row's text; logits `[rows, n, vocab]` after each of them.

        Args:
            token_ids: `[rows, n]` int64.
            number: `[n]` int64 of these nodes in the tree, which is where they stand behind the text.
            depth: `[m]` int64, tokens between the text's end and each node of the tree.
            seen: `[n, m]` bool, the nodes that each of these sees: its ancestors and itself.
            fast: run the compiled code, if there is any: for shapes that come again.
        """
        logits: Tensor = self.run(logits_step, token_ids, number, depth, seen, fast=fast)
        return logits

    def run(
        self,
        step: Step,
        token_ids: Tensor,
        number: Tensor,
        depth: Tensor,
        seen: Tensor,
        *more: Any,
        fast: bool,
    ) -> Any:
        """A step of `compiled_steps` on nodes of a tree, as `read`, with its further arguments."""
        slots = self.lengths[:, None] + number
        # a token before the text's first one goes where no text reaches
        self._place.slots = torch.where(slots < 0, self.capacity - 1, slots)
        if fast:
            step = self.fast(step)
            if slots.is_cuda:
                # what earlier calls returned is used up: a graph may write over it
                torch.compiler.cudagraph_mark_step_begin()
        tree = number, depth, seen
        return step(self.model, self.cache, self.capacity, token_ids, self.lengths, *tree, *more)

    def fast(self, step: Step) -> Step:
        """The compiled form of a step, if calls are compiled."""
        if self.compile_config is None:
            return step
        if step not in self._fast:
            self._fast[step] = compiled(self.model, step, self.compile_config)
        return self._fast[step]

    def keep(self, source: Tensor, target: Tensor) -> None:
        """Move nodes of every row's tree: numbers `[rows, n]` to numbers `[n]`."""
        source = self.lengths[:, None] + source
        target = self.lengths[:, None] + target
        for layer in self._layers():
            for states in (layer.keys, layer.values):
                write_inplace(states, target, gather_slots(states, source))

    def hand_out(self, token_of_slot: Tensor) -> Cache:
        """See `CachedModel.hand_out`."""
        from transformers import DynamicCache

        cache = DynamicCache()
        slots = token_of_slot.clamp(0, self.capacity - 1)
        for number, layer in enumerate(self._layers()):
            keys, values = (gather_slots(states, slots) for states in (layer.keys, layer.values))
            cache.update(keys, values, number)
        return cache

    def adopt(self, cache: Cache, lengths: Tensor) -> bool:
        """See `CachedModel.adopt`."""
        cached = cache.get_seq_length()
        if not adoptable(cache):
            return False
        number = torch.arange(cached, device=lengths.device)
        token = (number + (cached - lengths)[:, None]).clamp_max(cached - 1)
        self._place.slots = number.expand(len(lengths), -1)
        layers: list[Any] = list(cache.layers)
        for place, layer in enumerate(layers):
            keys, values = (gather_slots(states, token) for states in (layer.keys, layer.values))
            self.cache.update(keys, values, place)
        self.lengths = lengths
        return True

    def _layers(self) -> list[Any]:
        layers: list[Any] = list(self.cache.layers)
        return [layer for layer in layers if layer.is_initialized]


def _takes(model: PreTrainedModel, argument: str) -> bool:
    return argument in inspect.signature(model_inside(model).forward).parameters
