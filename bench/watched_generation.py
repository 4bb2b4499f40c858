"""One generation, with everything that a reader may want to see of it: logits, laws, drafts.

The loop is that of `warpdraft generate`, with three onlookers that change nothing: a logits processor at the end of the
list sees the scores that temperature and rules are applied to, a verifier sees the drafts, a streamer the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation.streamers import BaseStreamer

from warpdraft.integrations.transformers import SpeculativeOutput, generate
from warpdraft.kernels.noise import Noise
from warpdraft.verification import DraftBlock, VerifiedBlock, Verifier

from .watched_verifier import WatchedVerifier

if TYPE_CHECKING:
    from transformers import BatchEncoding

    from warpdraft.statistics import GenerationStats

    from .model_pair import ModelPair
    from .strategies import Sampling, Speculation


@dataclass(frozen=True, slots=True)
class WatchedBlock:
    """One block.

    Attributes:
        emitted: how many tokens it wrote; a stop may cut it.
        num_accepted: drafted tokens that the verifier accepted.
        paths: K draft paths of at most L token ids each.
        path_probs: the draft's probability of each of them, where it was drawn.
        draft_laws: `[vocab]` the draft's law before each emitted token; none for a bonus token.
        is_bonus: whether the last token followed a whole path.
    """

    emitted: int
    num_accepted: int = 0
    paths: tuple[tuple[int, ...], ...] = ()
    path_probs: tuple[tuple[float, ...], ...] = ()
    draft_laws: tuple[Tensor, ...] = ()
    is_bonus: bool = False


@dataclass(frozen=True, slots=True)
class Watched:
    """One generation.

    Attributes:
        prompt_ids: of the prompt.
        token_ids: of the text.
        logits: `[vocab]` float32 before each token, after the model's own processors, if it has any.
        scores: `[vocab]` the same as they were drawn from: tempered, -inf outside the support.
        blocks: in order.
        stats: what was counted.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logits: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]
    blocks: tuple[WatchedBlock, ...]
    stats: GenerationStats


class ScoreKeeper(LogitsProcessor):
    """Keeps the scores of every prefix, of the last model that asked: the target, which reads behind the draft."""

    # what it keeps changes no law
    stateless = True

    def __init__(self) -> None:
        self.scores: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Keep `[rows, vocab]` and hand it on."""
        prefixes = map(tuple, input_ids.tolist())
        self.scores.update(zip(prefixes, scores.clone(), strict=True))
        return scores


class DraftKeeper(WatchedVerifier):
    """Keeps the drafts of the block that it verified last.

    Attributes:
        block: it, with as many emitted tokens as the verifier gave; None before the first one.
    """

    def __init__(self, inner: Verifier) -> None:
        super().__init__(inner)
        self.block: WatchedBlock | None = None

    @property
    def most_drafts(self) -> int | None:  # type: ignore[override]
        """Those of the verifier inside."""
        return self.inner.most_drafts

    def verify(self, block: DraftBlock, noise: Noise) -> VerifiedBlock:
        """What the verifier inside does."""
        verified = self.inner.verify(block, noise)
        accepted = int(verified.num_accepted[0])
        paths = tuple(
            tuple(token for token in path if token >= 0)
            for path in block.draft_token_ids[0].tolist()
        )
        # the survivor that goes on, if one does: in a rollover tree paths differ in length
        written = tuple(verified.output_token_ids[0, :accepted].tolist())
        survivors = [number for number, path in enumerate(paths) if path[:accepted] == written]
        longest = max(survivors, key=lambda number: len(paths[number]))
        self.block = WatchedBlock(
            emitted=accepted + 1,
            num_accepted=accepted,
            paths=tuple(path for path in paths if path),
            path_probs=tuple(
                tuple(
                    float(draft_law(block, number, depth)[token])
                    for depth, token in enumerate(path)
                )
                for number, path in enumerate(paths)
                if path
            ),
            draft_laws=tuple(
                draft_law(block, longest, depth)
                for depth in range(min(accepted + 1, len(paths[longest])))
            ),
            is_bonus=0 < accepted == len(paths[longest]),
        )
        return verified


def draft_law(block: DraftBlock, path: int, depth: int) -> Tensor:
    """The law `[vocab]` that the token at that depth of a path was drawn from."""
    row = torch.zeros(1, dtype=torch.int64, device=block.draft_token_ids.device)
    return block.draft(row, row + path, depth).dense().probs[0].cpu()


class Onlooker(BaseStreamer):
    """Gathers what the other two kept, block by block, when the loop has settled what it emits."""

    def __init__(self, scores: ScoreKeeper, drafts: DraftKeeper | None) -> None:
        self._scores, self._drafts = scores, drafts
        self.prompt_ids: list[int] | None = None
        self.token_ids: list[int] = []
        self.logits: list[Tensor] = []
        self.blocks: list[WatchedBlock] = []

    def put(self, value: Tensor) -> None:
        """Take the prompt `[1, n]`, then the tokens `[n]` of each block."""
        if self.prompt_ids is None:
            self.prompt_ids = value[0].tolist()
            return
        for token in value.tolist():
            prefix = (*self.prompt_ids, *self.token_ids)
            self.logits.append(self._scores.scores[prefix].cpu())
            self.token_ids.append(token)
        self._scores.scores.clear()
        self.blocks.append(self._settled(len(value)))

    def end(self) -> None:
        """Nothing is left over."""

    def _settled(self, emitted: int) -> WatchedBlock:
        block = None if self._drafts is None else self._drafts.block
        if block is None:
            return WatchedBlock(emitted)
        return replace(
            block,
            emitted=emitted,
            num_accepted=min(block.num_accepted, emitted),
            draft_laws=block.draft_laws[:emitted],
        )


def watch(
    pair: ModelPair,
    inputs: BatchEncoding,
    sampling: Sampling,
    speculation: Speculation,
) -> Watched:
    """Write the text that `warpdraft generate` writes for the same arguments, and keep what passed.

    Three rows as wide as the vocabulary are kept for every token.

    Args:
        pair: the models; without a draft the target samples alone.
        inputs: one encoded prompt.
        sampling: the law.
        speculation: how to draft and verify.
    """
    scores = ScoreKeeper()
    drafts = None if pair.source is None else DraftKeeper(speculation.make_verifier())
    onlooker = Onlooker(scores, drafts)
    output = generate(
        pair.target,
        pair.source,
        **inputs,
        **sampling.generate_arguments(),
        rules=sampling.rules,
        **speculation.loop_arguments(),
        verifier=drafts or speculation.make_verifier(),
        seed=sampling.seed,
        streamer=onlooker,
        logits_processor=[scores],
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert isinstance(output, SpeculativeOutput)
    assert output.scores is not None
    assert output.stats is not None
    assert onlooker.prompt_ids is not None
    return Watched(
        tuple(onlooker.prompt_ids),
        tuple(onlooker.token_ids),
        tuple(onlooker.logits),
        tuple(drawn_from(step[0].cpu(), sampling) for step in output.scores),
        tuple(onlooker.blocks),
        output.stats,
    )


def drawn_from(scores: Tensor, sampling: Sampling) -> Tensor:
    """The scores `[vocab]` of a step; greedy decoding hands out all of them and takes the first of the largest."""
    if sampling.temperature != 0:
        return scores
    return torch.full_like(scores, -torch.inf).index_fill_(0, scores.argmax(), 0.0)
