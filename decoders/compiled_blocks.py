"""A block in compiled calls: one a level of the draft, one of the target, one that verifies a single path.

Several paths are verified by the kernels, on a GPU. Between the calls stands nothing that waits for the device, so
there a block is a queue of graphs, and the host looks at it once, when the texts have grown. For plain laws: with
processors or rules, which run outside the calls, the loop takes `drafting.draft_paths` and the verifier's own walk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from warpdraft.kernels.noise import Noise
from warpdraft.kernels.support import compute_dtype

from .abstract_verifiers import VerifiedBlock, Verifier
from .backend import takes_triton
from .compiled_steps import Step, verification_step
from .draft_tree import SeparatePaths
from .drafting import DraftPaths
from .laws import Law
from .layouts import Branches
from .slot_tree import SlotTree
from .structures import LevelLaws
from .texts import Texts
from .verification import get_verifier, verify_block, why_not_verification

# what `verification_step` does to one path
BLOCK_VERIFIERS = ("block", "optimal_block")


@dataclass(frozen=True, slots=True)
class CompiledPaths(DraftPaths):
    """Draft paths, and where they end.

    Attributes:
        follows: of each depth, `[batch, 1]` bool at the root, else `[batch, K]`: whether anything follows.
    """

    follows: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class CompiledBlocks:
    """How the blocks of one run are drafted and verified.

    Attributes:
        target: whose config compiles the verification.
        draft: that grows the trees.
        vocabulary: the target's width.
        temperature: float64 scalar; 0 is greedy.
        verifier: of the run.
        verifies: how `verify` can do what the verifier would: "path" accepts one path as a block, "tree" runs the
            kernels; None where neither suits.
    """

    target: SlotTree
    draft: SlotTree
    vocabulary: int
    temperature: Tensor
    verifier: Verifier
    verifies: Literal["path", "tree"] | None

    def draft_paths(self, texts: Texts, length: int, noise: Noise) -> CompiledPaths:
        """Draw the K paths of one block; see `drafting.draft_paths`.

        Args:
            texts: what has been written; the draft has read all but its last two tokens.
            length: L >= 1.
            noise: a stream for each text, at the block's step.
        """
        token_ids, goes_on = texts.last_tokens(2), ~texts.finished[:, None]
        drawn, laws, follows = [], [], [goes_on]
        codes = torch.zeros_like(texts.lengths, dtype=torch.int8)
        for depth in range(length):
            law_and_noise = self.vocabulary, self.temperature, noise
            outcome = self.draft.draw(token_ids, depth, *law_and_noise, goes_on, texts.stops)
            token_ids, probs, status, goes_on = (_kept(values) for values in outcome)
            drawn.append(token_ids)
            follows.append(goes_on)
            codes = torch.maximum(codes, status.amax(1))
            row = torch.arange(status.numel(), device=status.device).view_as(status)
            laws.append(LevelLaws(Law(probs.flatten(0, 1), status.flatten()), row))
        tree = SeparatePaths.of(torch.stack(drawn, dim=2))
        return CompiledPaths(tree, laws, codes, tuple(follows))

    def verify(
        self, paths: CompiledPaths, target_logits: Tensor, node_index: Tensor, noise: Noise
    ) -> VerifiedBlock:
        """Verify a block without waiting for the device.

        Args:
            paths: K a text.
            target_logits: `[batch, 1 + K L, vocab]`.
            node_index: `[batch, K, L + 1]` int64, where the paths' nodes stand among them.
            noise: a stream for each text, at the block's step.
        """
        if self.verifies == "path":
            return self._verify_path(paths, target_logits, noise)
        return self._verify_tree(paths, target_logits, node_index, noise)

    def _verify_path(
        self, paths: CompiledPaths, target_logits: Tensor, noise: Noise
    ) -> VerifiedBlock:
        names = noise.seed, noise.sequence, noise.step
        probs = tuple(level.law.probs[:, None] for level in paths.laws)
        step: Step = verification_step
        if self.target.is_usual(paths.tree.depth):
            step = self.target.model.fast(step)
        path = target_logits, probs, paths.tree.token_ids[:, 0]
        outcome = step(*path, self.temperature, names, paths.follows)
        output, accepted, status = (_kept(values) for values in outcome)
        return VerifiedBlock(output, accepted, torch.zeros_like(accepted), status.amax(1))

    def _verify_tree(
        self, paths: CompiledPaths, target_logits: Tensor, node_index: Tensor, noise: Noise
    ) -> VerifiedBlock:
        batch = len(target_logits)
        follows = torch.cat(paths.follows, dim=1)[:, :, None]
        # as in `plain_law`: a quotient of halves would round the law, and one by a small temperature overflow
        wide = target_logits.to(compute_dtype(target_logits.dtype))
        numbers = torch.finfo(wide.dtype)
        heat = self.temperature.clamp(numbers.tiny, numbers.max).to(wide.dtype)
        tempered = (wide - wide.amax(-1, keepdim=True)) / heat
        # certain of token 0, as the draft's laws are there
        behind_a_stop = torch.full_like(wide[:1, :1], -torch.inf)
        behind_a_stop[..., 0] = 0
        drafts = [level.law.probs.unflatten(0, (batch, -1)) for level in paths.laws]
        return verify_block(
            torch.where(follows, tempered, behind_a_stop),
            torch.cat(drafts, dim=1).log(),
            paths.tree.token_ids,
            node_index,
            drawn=paths.tree.drawn,
            verifier=self.verifier,
            seed=noise.seed,
            sequence=noise.sequence,
            step=noise.step,
        )


def compiled_blocks(
    target: Branches,
    draft: Branches | None,
    vocabulary: int,
    temperature: float,
    verifier: Verifier,
    num_drafts: int,
) -> CompiledBlocks | None:
    """The compiled blocks of two models on static caches; None for others."""
    if not isinstance(target, SlotTree) or not isinstance(draft, SlotTree):
        return None
    if torch.float64 in (target.model.model.dtype, draft.model.model.dtype):
        # behind a processor stack, and only there, the pipeline's laws are float32
        return None
    device = target.model.lengths.device
    heat = torch.tensor(temperature, dtype=torch.float64, device=device)
    verifies = _verifies(verifier, num_drafts, vocabulary, device)
    return CompiledBlocks(target, draft, vocabulary, heat, verifier, verifies)


def _verifies(
    verifier: Verifier, num_drafts: int, vocabulary: int, device: torch.device
) -> Literal["path", "tree"] | None:
    """See `CompiledBlocks`."""
    name = verifier.name
    if num_drafts == 1:
        known = name in BLOCK_VERIFIERS and type(verifier) is type(get_verifier(name))
        return "path" if known else None
    logits = torch.empty(0, 1, vocabulary, device=device)
    tokens = torch.empty(0, num_drafts, 1, dtype=torch.int64, device=device)
    refusal = why_not_verification(verifier, logits, tokens)
    return "tree" if takes_triton("auto", logits, (), refusal=refusal) else None


def _kept(values: Tensor) -> Tensor:
    """What a graph returned, where its next replay does not write."""
    return values.clone() if values.is_cuda else values
