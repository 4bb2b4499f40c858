"""SpecTr's k-SEQ as a verifier: the paper's baseline, and with one draft path standard speculative sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from warpdraft.abstract_verifiers import NodeVerifier
from warpdraft.kernels.draw import draw
from warpdraft.kernels.k_seq import acceptance_ratio, k_seq_plan, residual_mass
from warpdraft.kernels.noise import Noise, Role


class KSeq(NodeVerifier):
    """Sun et al., NeurIPS 2023, arXiv 2310.15141, Algorithm 2 at every node, n = the survivors there."""

    name = "k_seq"

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
        """Try the survivors' tokens in path order; recover from the residual if none is accepted."""
        plan = k_seq_plan(target_probs, draft_probs, alive.sum(1))
        ratio = acceptance_ratio(plan, target_probs, draft_probs, candidates)
        path = torch.arange(candidates.shape[1], device=candidates.device).expand_as(candidates)
        uniform = noise.uniform(Role.ACCEPT, torch.zeros_like(path), depth=depth, path=path)
        accepted = alive & (uniform < ratio)
        first = accepted.to(torch.int8).argmax(1, keepdim=True)
        tokens = candidates.gather(1, first).squeeze(1)
        rejected = (~accepted.any(1)).nonzero().squeeze(1)
        if len(rejected) > 0:
            residual = residual_mass(plan, target_probs, draft_probs)[rejected]
            tokens[rejected] = draw(
                residual,
                noise.select(rejected),
                Role.RESIDUAL,
                depth=depth,
                token_ids=None if token_ids is None else token_ids[rejected],
            )
        return tokens

    def law(
        self, target_probs: Tensor, draft_probs: Tensor, candidates: Tensor, depth: int = 0
    ) -> Tensor:
        """Acceptance in turn, then the residual."""
        target, draft = target_probs[None], draft_probs[None]
        plan = k_seq_plan(target, draft, candidates.new_tensor([len(candidates)]))
        ratios = acceptance_ratio(plan, target, draft, candidates[None])[0]
        residual = residual_mass(plan, target, draft)[0]
        law, reached = torch.zeros_like(target_probs), target_probs.new_ones(())
        for token, ratio in zip(candidates, ratios, strict=True):
            law[token] += reached * ratio
            reached = reached * (1 - ratio)
        return law + reached * residual / residual.sum()

    def expected_acceptance(
        self, target_probs: Tensor, draft_probs: Tensor, num_candidates: int
    ) -> Tensor:
        """p_acc(rho*) = 1 - (1 - beta(rho*))^n: at the exact root a recovered token is never a rejected candidate."""
        count = torch.full((len(target_probs),), num_candidates, device=target_probs.device)
        return k_seq_plan(target_probs, draft_probs, count).acceptance
