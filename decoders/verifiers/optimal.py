"""Optimal transport at every node: the most candidates that any rule for such drafts accepts."""

from __future__ import annotations

import torch
from torch import Tensor

from warpdraft.abstract_verifiers import NodeVerifier
from warpdraft.checks import LARGEST, check_integer
from warpdraft.kernels.draw import draw
from warpdraft.kernels.noise import Noise, Role
from warpdraft.kernels.optimal import (
    NUM_BINS,
    SELECTORS,
    Selection,
    Selector,
    plan_selection,
    target_where_exhausted,
)
from warpdraft.kernels.ranks import win_probabilities
from warpdraft.kernels.ratio_grid import row_sums
from warpdraft.kernels.top_tokens import mass_of, top_tokens, without_tokens


class Optimal(NodeVerifier):
    """Select the survivor of largest rank, then verify it like a single draft from the selection law.

    With hybrid drafts the first m of the root's K candidates are A, the draft's m most likely tokens, and the others
    are drawn from p', the draft's law without A. One of those n = K - m is selected and verified; it is optimal for
    the target on the other tokens, and what is recovered may lie in A, which counts as accepted:

        acceptance = target(A) + 1 + min over sets S outside A of [target(S) - p'(S)^n]

    Attributes:
        num_bins: of the grid of ratios; None sorts every row and attains the optimum up to rounding.
        selector: "clip" or "lex": two selection laws that accept equally often.
        most_top: at most so many of the root's candidates are the draft's most likely tokens; the argument `num_top`.

    Raises:
        TypeError: `num_bins` or `num_top` is no int.
        ValueError: `num_bins` below 1, `num_top` below 0, another selector.
    """

    name = "optimal"

    def __init__(
        self, num_bins: int | None = NUM_BINS, selector: Selector = "clip", num_top: int = 0
    ) -> None:
        self.num_bins = check_num_bins(num_bins)
        self.selector = check_selector(selector)
        check_integer("num_top", num_top, low=0)
        self.most_top = num_top

    def num_top(self, num_drafts: int) -> int:
        """m; one candidate at least stays random, so that a single path is drafted as ever."""
        return min(self.most_top, num_drafts - 1)

    def select(
        self,
        target_probs: Tensor,
        draft_probs: Tensor,
        candidates: Tensor,
        alive: Tensor,
        noise: Noise,
        depth: int,
        token_ids: Tensor | None = None,
    ) -> Tensor:
        """Accept the selected candidate with probability min(1, target / p), else recover from (target - p)+."""
        num_top = self._num_top_at(depth, candidates.shape[1])
        if num_top > 0:
            # a row that lacks one of them has no other token either: p' is zero there
            draft_probs = without_tokens(draft_probs, candidates[:, :num_top])
            alive = alive.clone()
            alive[:, :num_top] = False
        plan = self._plan(target_probs, draft_probs, alive.sum(1))
        path = plan.select(candidates, alive, noise, depth)
        tokens = candidates.gather(1, path[:, None]).squeeze(1)
        target = target_probs.gather(1, tokens[:, None]).squeeze(1)
        uniform = noise.uniform(Role.ACCEPT, torch.zeros_like(tokens)[:, None], depth=depth)
        accepted = uniform.squeeze(1) * plan.probs_of(tokens) < target
        # where the most likely tokens are all that the draft has, there is no other candidate
        rejected = (~accepted | ~alive.any(1)).nonzero().squeeze(1)
        if len(rejected) > 0:
            plan = plan.only(rejected)
            residual = plan.residual()
            mass = target_where_exhausted(residual, row_sums(residual), plan.target_probs)
            tokens[rejected] = draw(
                mass,
                noise.select(rejected),
                Role.RESIDUAL,
                depth=depth,
                token_ids=None if token_ids is None else token_ids[rejected],
            )
        return tokens

    def law(
        self, target_probs: Tensor, draft_probs: Tensor, candidates: Tensor, depth: int = 0
    ) -> Tensor:
        """The chance of each candidate to be selected, its acceptance, then the residual."""
        target, draft = target_probs[None], draft_probs[None]
        num_top = self._num_top_at(depth, len(candidates))
        if num_top > 0:
            # candidates that the draft ran short of change nothing: the last of them is all that p' has
            draft = without_tokens(draft, candidates[None, :num_top])
            candidates = candidates[num_top:]
        plan = self._plan(target, draft, candidates.new_tensor([len(candidates)]))
        selected = plan.law()[0]
        law = torch.zeros_like(target_probs)
        for token, chance in zip(
            candidates, win_probabilities(plan.rank_laws(candidates[None])[0]), strict=True
        ):
            law[token] += chance * (target_probs[token] / selected[token]).clamp_max(1)
        residual = plan.residual()
        residual = target_where_exhausted(residual, row_sums(residual), target)[0]
        return law + (1 - law.sum()) * residual / residual.sum()

    def expected_acceptance(
        self, target_probs: Tensor, draft_probs: Tensor, num_candidates: int
    ) -> Tensor:
        """Target(A) and the chance that the selected candidate is accepted: the optimum in the exact form.

        There a recovered token is never a random candidate; with bins it can be one, at most as often as the optimum is
        missed.
        """
        num_top = self._num_top_at(0, num_candidates)
        top = top_tokens(draft_probs, num_top)
        certain = mass_of(target_probs, top, draft_probs)
        if num_top > 0:
            draft_probs = without_tokens(draft_probs, top)
        count = torch.full((len(target_probs),), num_candidates - num_top, device=top.device)
        plan = self._plan(target_probs, draft_probs, count)
        accepted = torch.minimum(plan.law(), target_probs).sum(1, dtype=torch.float64)
        return accepted + certain

    def _num_top_at(self, depth: int, num_candidates: int) -> int:
        return self.num_top(num_candidates) if depth == 0 else 0

    def _plan(self, target_probs: Tensor, draft_probs: Tensor, num_candidates: Tensor) -> Selection:
        return plan_selection(
            target_probs,
            draft_probs,
            num_candidates,
            num_bins=self.num_bins,
            selector=self.selector,
        )


def check_num_bins(num_bins: int | None) -> int | None:
    """The number of bins, None for the exact form; TypeError or ValueError for anything else."""
    if num_bins is None:
        return None
    check_integer("num_bins", num_bins, low=-LARGEST)
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, or None for the exact form, got {num_bins}")
    return num_bins


def check_selector(selector: Selector) -> Selector:
    """The selector's name, or ValueError."""
    if not isinstance(selector, str) or selector not in SELECTORS:
        raise ValueError(f"selector must be one of {sorted(SELECTORS)}, got {selector!r}")
    return selector
