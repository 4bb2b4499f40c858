"""Recursive rejection as a verifier, for i.i.d. candidates: SpecInfer's multi-step speculative sampling."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from warpdraft.abstract_verifiers import NodeVerifier
from warpdraft.kernels.draw import draw
from warpdraft.kernels.noise import Noise, Role
from warpdraft.kernels.recursive import acceptance_ratio, iid_acceptance, residual_law
from warpdraft.laws import NodeLaws


class Recursive(NodeVerifier):
    """Miao et al., 2023, arXiv 2305.09781, at every node."""

    name = "recursive"

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
        """Try the survivors' tokens in path order; recover from the last residual if none is accepted."""
        path = torch.arange(candidates.shape[1], device=candidates.device).expand_as(candidates)
        uniform = noise.uniform(Role.ACCEPT, torch.zeros_like(path), depth=depth, path=path)
        # the survivors first, in path order
        order = alive.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        candidates, uniform, count = (
            candidates.gather(1, order),
            uniform.gather(1, order),
            alive.sum(1),
        )
        emitted = torch.full_like(count, -1)
        rows = torch.arange(len(count), device=count.device)
        node = NodeLaws(target_probs, draft_probs, token_ids)
        for turn in range(candidates.shape[1] + 1):
            tried = count[rows] > turn
            _recover(_only(node, ~tried), noise, rows[~tried], depth, emitted)
            rows, node = rows[tried], _only(node, tried)
            if len(rows) == 0:
                break
            tokens = candidates[rows, turn]
            accepted = uniform[rows, turn] < acceptance_ratio(node.target, node.draft, tokens)
            emitted[rows[accepted]] = tokens[accepted]
            # a row costs nothing that grows with the vocabulary until it rejects
            rows, node = rows[~accepted], self.after(_only(node, ~accepted), tokens[~accepted])
        return emitted

    def after(self, node: NodeLaws, rejected: Tensor) -> NodeLaws:
        """The laws after the rejection of one candidate a row, `[rows]` int64 columns."""
        return replace(node, target=residual_law(node.target, node.draft))

    def law(
        self, target_probs: Tensor, draft_probs: Tensor, candidates: Tensor, depth: int = 0
    ) -> Tensor:
        """Acceptance in turn, then the last residual."""
        node = NodeLaws(target_probs[None], draft_probs[None])
        law, reached = torch.zeros_like(target_probs), target_probs.new_ones(())
        for token in candidates:
            ratio = acceptance_ratio(node.target, node.draft, token[None])[0]
            law[token] += reached * ratio
            reached = reached * (1 - ratio)
            node = self.after(node, token[None])
        return law + reached * node.target[0]

    def expected_acceptance(
        self, target_probs: Tensor, draft_probs: Tensor, num_candidates: int
    ) -> Tensor:
        """1 - prod_i (1 - sum min(t_i, d)): a recovered token is never a rejected candidate."""
        return iid_acceptance(target_probs, draft_probs, num_candidates)


def _only(node: NodeLaws, kept: Tensor) -> NodeLaws:
    """Some rows, without a copy where they are all of them."""
    return node if bool(kept.all()) else node.only(kept)


def _recover(node: NodeLaws, noise: Noise, rows: Tensor, depth: int, emitted: Tensor) -> None:
    """Write a token of what is left of the target into `emitted`, at the given rows of it."""
    if len(rows) > 0:
        emitted[rows] = draw(
            node.target,
            noise.select(rows),
            Role.RESIDUAL,
            depth=depth,
            token_ids=node.token_ids,
        )
