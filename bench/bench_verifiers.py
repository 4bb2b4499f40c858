"""The verifiers on the same contexts, with the same drafted tokens and the same laws.

Texts are sampled from the target once. At every `stride`-th token of them the real loop drafts one block for each draft
structure and scores it with one target call; every contender then says how likely each number of accepted tokens is,
*given* the drafted tokens:

    E[tokens] = 1 + sum_i P(at least i tokens are accepted | drafts)

so that neither the verifier's random numbers nor different texts blur the comparison; it is the mean over all disjoint
K' of K i.i.d. paths. The mean over contexts is block efficiency on the target's own text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from warpdraft.abstract_verifiers import draw_bonus
from warpdraft.acceptance import optimal_acceptance
from warpdraft.kernels.noise import Noise
from warpdraft.laws import Law, NodeLaws
from warpdraft.loop import LoopOptions, generate_tokens
from warpdraft.verification import DraftBlock, VerifiedBlock, Verifier

from .contest import BlockView, CheckedKSeq, Drafting, Reading
from .strategies import Sampling, end_tokens, law_pipeline

if TYPE_CHECKING:
    from .model_pair import ModelPair

BOUND = "alpha*"
"""What the bound is called among the contenders; at L = 1 it is a block's most tokens but one, for i.i.d. drafts."""


@dataclass(frozen=True, slots=True)
class Context:
    """Where a block starts.

    Attributes:
        text: number of the text.
        position: new tokens before the block.
        token_ids: prompt and those tokens.
    """

    text: int
    position: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """What one contender makes of one block.

    Attributes:
        text: number of the text.
        position: of the block in it.
        verifier: the contender's label, or `BOUND`.
        num_drafts: K.
        draft_length: L.
        tokens: E[tokens | drafts].
        root_acceptance: chance that the first token emitted is a drafted one.
        k_seq_error: of k-SEQ's plans, the largest difference to the acceptance at a bisected rho; None elsewhere.
    """

    text: int
    position: int
    verifier: str
    num_drafts: int
    draft_length: int
    tokens: float
    root_acceptance: float
    k_seq_error: float | None = None


def sample_texts(
    pair: ModelPair, prompts: Sequence[str], sampling: Sampling
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of the prompts, and of their continuations by plain sampling."""
    heads, tails = [], []
    pipeline = law_pipeline(sampling)
    ends = end_tokens(pair.target)
    for number, prompt in enumerate(prompts):
        inputs = pair.encode([prompt], raw=True)
        width = inputs["input_ids"].shape[1]
        options = LoopOptions(
            max_length=width + sampling.max_new_tokens,
            pad_token_id=0,
            eos_token_ids=ends,
            seed=sampling.seed,
            sequence=torch.tensor([number], device=pair.device),
        )
        generated = generate_tokens(pair.target, None, inputs["input_ids"], None, pipeline, options)
        heads.append(inputs["input_ids"][0].tolist())
        tails.append(generated.token_ids[0, width:].tolist())
    return heads, tails


def contexts_of(
    heads: Sequence[Sequence[int]], tails: Sequence[Sequence[int]], stride: int
) -> list[Context]:
    """Every `stride`-th place of every text, all texts' first place first: a run that is stopped has seen them all."""
    longest = max(map(len, tails))
    return [
        Context(text, position, (*head, *tail[:position]))
        for position in range(0, longest, stride)
        for text, (head, tail) in enumerate(zip(heads, tails, strict=True))
        if position < len(tail)
    ]


def compare_at(
    pair: ModelPair,
    contexts: Sequence[Context],
    plan: dict[Drafting, list[Reading]],
    sampling: Sampling,
) -> Iterator[list[Line]]:
    """What all contenders make of the blocks behind these contexts, one draft structure after the other.

    Args:
        pair: a target and a draft model.
        contexts: read as one batch.
        plan: what to draft, and who reads it.
        sampling: the law of both models, and the seed.

    Yields:
        The lines of one draft structure.
    """
    assert pair.draft is not None
    width = max(len(context.token_ids) for context in contexts)
    input_ids = torch.zeros(len(contexts), width, dtype=torch.int64)
    for row, context in enumerate(contexts):
        input_ids[row, width - len(context.token_ids) :] = torch.tensor(context.token_ids)
    lengths = torch.tensor([len(context.token_ids) for context in contexts])
    attention_mask = (torch.arange(width) >= width - lengths[:, None]).to(torch.int64)
    # the same numbers for a context whatever batch it is in, and others than those of the texts
    names = torch.tensor([(context.text + 1) << 16 | context.position for context in contexts])
    for drafting, readings in plan.items():
        reader = BlockReader(drafting, readings, contexts)
        options = LoopOptions(
            max_length=width + drafting.draft_length + 1,
            pad_token_id=0,
            num_drafts=drafting.num_drafts,
            draft_length=drafting.draft_length,
            verifier=reader,
            structure=drafting.structure,
            eos_token_ids=end_tokens(pair.target),
            stopping=(stop_at_once,),
            seed=sampling.seed,
            sequence=names.to(pair.device),
        )
        generate_tokens(
            pair.target,
            pair.draft,
            input_ids.to(pair.device),
            attention_mask.to(pair.device),
            law_pipeline(sampling),
            options,
        )
        yield reader.lines


class BlockReader(Verifier):
    """Asks every contender for its chances, then emits one plain token.

    Attributes:
        lines: what they said.
    """

    name = "reader"

    def __init__(
        self, drafting: Drafting, readings: Sequence[Reading], contexts: Sequence[Context]
    ) -> None:
        self.drafts = drafting.drafts  # type: ignore[misc]
        self.lines: list[Line] = []
        self._drafting = drafting
        self._readings = readings
        self._contexts = contexts

    def num_top(self, num_drafts: int) -> int:
        """As many as the readings need."""
        return self._drafting.num_top

    def verify(self, block: DraftBlock, noise: Noise) -> VerifiedBlock:
        """Read the block; accept none of it."""
        batch, _, length = block.draft_token_ids.shape
        memory: dict[object, Law] = {}
        for reading in self._readings:
            self._read(block, reading, memory)
        plain_paths = self._drafting._replace(num_drafts=0, draft_length=0)
        if plain_paths == Drafting("iid", 0, 0, 0, "paths"):
            self._bound(block, memory)
        output = block.draft_token_ids.new_full((batch, length + 1), -1)
        zeros = torch.zeros_like(output[:, 0])
        draw_bonus(block, noise, torch.arange(batch, device=zeros.device), zeros, 0, output)
        return VerifiedBlock(output, zeros, zeros, block.status)

    def survival(self, block: DraftBlock) -> Tensor:
        """Nothing is accepted."""
        return block.drawn[:, 0].new_zeros(block.drawn[:, 0].shape, dtype=torch.float64)

    def _read(self, block: DraftBlock, reading: Reading, memory: dict[object, Law]) -> None:
        verifier = reading.contender.verifier
        if isinstance(verifier, CheckedKSeq):
            verifier.largest_error = 0.0
        groups = reading.groups(self._drafting, block.draft_token_ids.shape[1])
        views = [BlockView(block, paths, reading.view_length, memory) for paths in groups]
        survival = torch.stack([verifier.survival(view) for view in views]).mean(0).tolist()
        error = verifier.largest_error if isinstance(verifier, CheckedKSeq) else None
        for context, chances in zip(self._contexts, survival, strict=True):
            for length in reading.draft_lengths:
                self.lines.append(
                    Line(
                        context.text,
                        context.position,
                        reading.contender.label,
                        reading.num_drafts,
                        length,
                        1 + sum(chances[:length]),
                        chances[0],
                        error,
                    )
                )

    def _bound(self, block: DraftBlock, memory: dict[object, Law]) -> None:
        """The bound at the root for every K that is read here."""
        view = BlockView(block, range(1), 0, memory)
        for row, context in enumerate(self._contexts):
            node = torch.tensor([row], device=block.drawn.device), block.status.new_zeros(1).long()
            laws = NodeLaws.of(view.target(*node, 0), view.draft(*node, 0))
            for paths in sorted({reading.num_drafts for reading in self._readings}):
                bound = float(optimal_acceptance(laws.target, laws.draft, paths))
                self.lines.append(
                    Line(context.text, context.position, BOUND, paths, 1, 1 + bound, bound)
                )


def stop_at_once(token_ids: Tensor, scores: None) -> Tensor:
    """A stopping criterion that every text meets: one block is enough."""
    return torch.ones(len(token_ids), dtype=torch.bool, device=token_ids.device)
