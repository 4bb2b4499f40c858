"""Tensor parallelism: the ranks that share a sharded model write one text.

Every rank runs the whole loop, and the sharded calls inside it work only if all ranks make them with the same tokens.
Where the ranks could differ, the group's first one decides:

    seed       without a seed every rank would take its own
    logits     no backend promises sums that are equal on all ranks to the last bit, nor do equal models on unlike chips
    outcome    of a block, for a chip may add up the same numbers in another order
    clocks     the answers of stopping criteria (`max_time`), the seconds of a block (`adaptive`)

All laws are then the first rank's, and so is the text. A broadcast of logits moves as many bytes as the gather of a
sharded head, which the call has just paid for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from warpdraft.kernels.noise import Noise

from .abstract_verifiers import VerifiedBlock

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .texts import StoppingCriterion


class SameText:
    """The agreement of all ranks of a group; without a group every rank is its own.

    Every rank must make the same calls in the same order.

    Args:
        group: the process group that the models are sharded over.
        device: where the group's tensors stand.
    """

    def __init__(self, group: Any, device: torch.device) -> None:
        self._group = group
        self._device = device

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody to agree with."""
        return self._group is None

    def tensor(self, mine: Tensor) -> Tensor:
        """The first rank's tensor, of the same shape and dtype on all."""
        if self._group is None:
            return mine
        # a copy: what is given may be a view, or the model's own
        agreed = mine.to(self._device, copy=True, memory_format=torch.contiguous_format)
        distributed.broadcast(agreed, group=self._group, group_src=0)
        return agreed.to(mine.device)

    def noise(self, mine: Noise) -> Noise:
        """The first rank's streams."""
        if self._group is None:
            return mine
        return replace(mine, seed=self.tensor(mine.seed), sequence=self.tensor(mine.sequence))

    def verified(self, mine: VerifiedBlock) -> VerifiedBlock:
        """The first rank's outcome of a block, in one message."""
        if self._group is None:
            return mine
        numbers = torch.stack([mine.num_accepted, mine.survivor_path, mine.status.long()], dim=1)
        agreed = self.tensor(torch.cat([mine.output_token_ids, numbers], dim=1))
        accepted, path, status = agreed[:, -3:].unbind(1)
        return VerifiedBlock(agreed[:, :-3], accepted, path, status.to(mine.status.dtype))

    def seconds(self, mine: float) -> float:
        """The first rank's time."""
        if self._group is None:
            return mine
        return float(self.tensor(torch.tensor(mine, dtype=torch.float64)))

    def criterion(self, mine: StoppingCriterion) -> StoppingCriterion:
        """The criterion with the first rank's answers."""
        if self._group is None:
            return mine
        return lambda token_ids, scores: self.tensor(mine(token_ids, scores))


def same_text(models: Iterable[PreTrainedModel | None], device: torch.device) -> SameText:
    """The agreement among the ranks that share these models.

    Raises:
        ValueError: the models are sharded over different ranks.
    """
    groups = [group for model in models if model is not None for group in _groups(model)]
    if not groups:
        return SameText(None, device)
    ranks = {tuple(distributed.get_process_group_ranks(group)) for group in groups}
    if len(ranks) > 1:
        raise ValueError(
            f"target and draft must be sharded over the same ranks, got {sorted(ranks)}"
        )
    return SameText(groups[0], device)


def _groups(model: PreTrainedModel) -> list[Any]:
    """The process groups, at most one, that a model's parameters are sharded over."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return []
    from torch.distributed.tensor import DTensor

    for parameter in model.parameters():
        if isinstance(parameter, DTensor):
            mesh = parameter.device_mesh
            return [mesh.get_group("tp" if mesh.ndim > 1 else None)]
    return []
