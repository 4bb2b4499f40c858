"""What a compiled call does beside the model: the law of a level, its draws, the verification of one path.

Each is a function of tensors of fixed shape that looks at no number, so it is compiled once, and on a GPU replayed as a
CUDA graph. They hold the plain law of the logits: processors and rules run outside, between the calls.

Inside one call a law and its draw cost next to nothing. Called one by one they took 0.50 ms a row of 2,048 tokens on a
CPU, compiled 0.05 to 0.14 ms, where the draft model's own call takes 0.55 ms.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from warpdraft.kernels.block_verification import verify_path
from warpdraft.kernels.draw import draw
from warpdraft.kernels.noise import Noise, Role
from warpdraft.kernels.support import EMPTY, NAN, OK, POSITIVE_INFINITY, compute_dtype

from .cached_model import fit_width, readable
from .tree_mask import tree_mask

if TYPE_CHECKING:
    from torch.nn import Embedding
    from transformers import CompileConfig, PreTrainedModel

    from .texts import Stops

# a step is compiled once for each block shape, batch and capacity; torch gives up after 8
MOST_SHAPES = 64

Step = Callable[..., Any]

_compiled: weakref.WeakKeyDictionary[Any, dict[tuple[str, str], Step]] = weakref.WeakKeyDictionary()


def compiled(model: PreTrainedModel, step: Step, config: CompileConfig) -> Step:
    """A step for a model, compiled once for each config and kept as long as the model: another run finds it."""
    steps = _compiled.setdefault(model, {})
    settings = config.to_dict()
    key = step.__name__, repr(settings)
    if key not in steps:
        limits = inspect.signature(torch.compile).parameters
        for name, value in (("recompile_limit", MOST_SHAPES), ("isolate_recompiles", True)):
            if name in limits:
                settings[name] = value
        steps[key] = torch.compile(step, **settings)
    return steps[key]


def logits_step(
    model: PreTrainedModel,
    cache: Any,
    capacity: int,
    token_ids: Tensor,
    lengths: Tensor,
    number: Tensor,
    depth: Tensor,
    seen: Tensor,
) -> Tensor:
    """One call of fixed shape: positions, mask, and the model. See `SlotModel.read`."""
    embeddings = cast("Embedding", model.get_input_embeddings())
    rows, nodes = token_ids.shape
    start = lengths[:, None]
    slot = torch.arange(capacity, device=token_ids.device)
    positions = start + depth[number]
    behind = slot - start
    node = behind.clamp(0, len(depth) - 1)
    in_tree = (behind >= 0) & (behind < len(depth))
    of_tree = seen.expand(rows, -1, -1).gather(2, node[:, None].expand(-1, nodes, -1))
    visible = (behind < 0)[:, None] | (of_tree & in_tree[:, None])
    # and sees what is there, for a softmax over nothing is NaN
    visible = visible | ((positions < 0)[:, :, None] & (slot == 0))
    of_key = torch.where(behind < 0, slot, start + depth[node])
    distance = positions[:, :, None] - of_key[:, None]
    logits: Tensor = model(
        input_ids=readable(token_ids, embeddings.weight.shape[0]),
        attention_mask=tree_mask(model, visible, distance),
        position_ids=positions.clamp_min(0),
        past_key_values=cache,
        use_cache=True,
    ).logits
    return logits


def level_step(
    model: PreTrainedModel,
    cache: Any,
    capacity: int,
    token_ids: Tensor,
    lengths: Tensor,
    number: Tensor,
    depth: Tensor,
    seen: Tensor,
    columns: int,
    vocabulary: int,
    temperature: Tensor,
    noise: tuple[Tensor, Tensor, Tensor],
    level: Tensor,
    path: Tensor,
    follows: Tensor,
    stops: Stops,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A level of the draft: the model, the laws of its last nodes, a token for each path.

    Args:
        model: this and the next seven arguments as `logits_step` takes them.
        cache: of the model.
        capacity: slots of a row.
        token_ids: `[batch, n]` int64, the nodes that are read.
        lengths: `[batch]` int64.
        number: `[n]` int64.
        depth: `[m]` int64.
        seen: `[n, m]` bool.
        columns: how many of the nodes have laws, the last ones: 1 at the root, K below it.
        vocabulary: the target's width.
        temperature: float64 scalar; 0 is greedy.
        noise: seed, sequence and step, `[batch]` int64.
        level: int64 scalar, the depth of the draws.
        path: `[batch, K]` int64, the paths that draw, all from one law or each from its own.
        follows: `[batch, columns]` bool, whether anything follows a node; behind a stop its law is token 0's.
        stops: what ends the texts.

    Returns:
        The tokens `[batch, K]` int64, the laws `[batch, columns, vocab]` float32 or float64, their status
        `[batch, columns]` int8, and whether anything follows the tokens, `[batch, K]` bool.
    """
    logits = logits_step(model, cache, capacity, token_ids, lengths, number, depth, seen)
    batch, num_paths = path.shape
    rows = fit_width(logits[:, -columns:].flatten(0, 1), vocabulary)
    probs, status = plain_law(rows, temperature, follows.flatten())
    laws = probs.view(batch, columns, -1)
    drawn = draw(
        laws.expand(-1, num_paths, -1).flatten(0, 1),
        Noise(*(name.repeat_interleave(num_paths) for name in noise)),
        Role.DRAFT,
        depth=level.expand(batch * num_paths),
        path=path.flatten(),
    )
    tokens = drawn.view(batch, num_paths)
    text_lengths, most, ends = stops
    goes_on = (text_lengths + level + 1 < most)[:, None] & ~(tokens[:, :, None] == ends).any(2)
    return tokens, laws, status.view(batch, columns), follows & goes_on


def verification_step(
    target_logits: Tensor,
    draft_probs: tuple[Tensor, ...],
    token_ids: Tensor,
    temperature: Tensor,
    noise: tuple[Tensor, Tensor, Tensor],
    follows: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    """Block verification of one path: the target's laws and `verify_path`.

    Args:
        target_logits: `[batch, L + 1, vocab]`.
        draft_probs: `[batch, 1, vocab]` of each of L levels, as `level_step` made them.
        token_ids: `[batch, L]` int64, the path.
        temperature: float64 scalar; 0 is greedy.
        noise: seed, sequence and step, `[batch]` int64.
        follows: `[batch, 1]` bool for each of L + 1 nodes, whether anything follows it.

    Returns:
        See `verify_path`; and the status of the target's laws, `[batch, L + 1]` int8.
    """
    batch, nodes, _ = target_logits.shape
    rows = torch.cat(follows, dim=1).flatten()
    probs, status = plain_law(target_logits.flatten(0, 1), temperature, rows)
    target_probs = probs.view(batch, nodes, -1)
    drafts = torch.cat(draft_probs, dim=1).to(probs.dtype)
    output, accepted = verify_path(target_probs, drafts, token_ids, Noise(*noise))
    return output, accepted, status.view(batch, nodes)


def plain_law(logits: Tensor, temperature: Tensor, follows: Tensor) -> tuple[Tensor, Tensor]:
    """The untruncated law of logits `[rows, vocab]`, and its status `[rows]` int8.

    Behind a stop, where nothing `follows` (`[rows]` bool), it is certain of token 0, as in `LawPipeline.after`. A row
    without a law is too: whoever emits something has looked at the status.
    """
    wide = logits.to(compute_dtype(logits.dtype))
    maximum = wide.amax(-1, keepdim=True)
    status = torch.full_like(maximum, OK, dtype=torch.int8)
    status = status.masked_fill(maximum == -torch.inf, EMPTY)
    status = status.masked_fill(maximum == torch.inf, POSITIVE_INFINITY)
    status = status.masked_fill(maximum.isnan(), NAN)
    sound = follows[:, None] & (status == OK)
    token = torch.arange(wide.shape[1], device=wide.device)
    certain = (temperature == 0) | ~sound
    numbers = torch.finfo(wide.dtype)
    heat = torch.where(temperature == 0, 1.0, temperature).clamp(numbers.tiny, numbers.max)
    probs = torch.softmax((wide - maximum) / heat.to(wide.dtype), dim=-1)
    # the lowest id among equal logits; token 0 where there is none
    first = torch.where(wide == maximum, token, wide.shape[1]).amin(1, keepdim=True)
    first = torch.where(sound, first, 0)
    probs = torch.where(certain, (token == first).to(wide.dtype), probs)
    return probs, torch.where(follows, status.squeeze(1), OK)
