"""The walk of kernels/walk_triton.py in plain torch and float64, over dense laws.

The same knots, the same noise and the same order of decisions; unlike the walk of warpdraft.verification a
recovered token ends it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from warpdraft import truncate
from warpdraft.kernels.draw import draw
from warpdraft.kernels.noise import Noise, Role
from warpdraft.kernels.ratio_splines import (
    evaluate,
    k_seq_spline,
    knot_masses,
    place,
    ratio_sums,
    residual_mass,
    selection_spline,
)
from warpdraft.kernels.support import OK
from warpdraft.truncation import resolve
from warpdraft.verification import VerifiedBlock

# as in the kernel
EXHAUSTED = 1e-6
NEGLIGIBLE = 1e-7


class Laws(NamedTuple):
    """The laws of all nodes, `[batch, nodes, vocab]` float64, and their status, `[batch, nodes]`."""

    target: Tensor
    target_status: Tensor
    draft: Tensor
    draft_status: Tensor


def laws_of(logits, rules, temperature):
    """Laws and status of `[nodes, vocab]` logits."""
    status = resolve(logits, rules, temperature=temperature).status
    laws = torch.zeros(logits.shape, dtype=torch.float64)
    sound = status == OK
    if sound.any():
        kept = truncate(logits[sound], rules, temperature=temperature, backend="torch").double()
        laws[sound] = torch.softmax(kept / (temperature or 1.0), -1)
    return laws, status


class Step(NamedTuple):
    """What a verifier says at one node, a row each.

    `stops`: whether the walk may stop there, `goes_on`: whether it may go on, with the token of path `chosen` and the
    weight `below`; what is recovered there is w t - d psi, of mass `rest`.
    """

    stops: Tensor
    goes_on: Tensor
    chosen: Tensor
    below: Tensor
    psi: Tensor
    rest: Tensor


class SplineWalk:
    """Blocks of drafts and the walk down each of them.

    Args:
        laws: of all nodes.
        token_ids: `[batch, K, L]`.
        node_index: `[batch, K, L + 1]`.
        drawn: `[batch, K, L]`.
        noise: a stream a row.
        knots: `[knots]`.
        verifier: "k_seq", "optimal" or "optimal_block".
        selector: "clip" or "lex".
    """

    def __init__(
        self,
        laws: Laws,
        token_ids: Tensor,
        node_index: Tensor,
        drawn: Tensor,
        noise: Noise,
        knots: Tensor,
        verifier: str,
        selector: str = "clip",
    ) -> None:
        self.laws, self.token_ids, self.node_index, self.drawn = laws, token_ids, node_index, drawn
        self.noise, self.knots = noise, knots.double()
        self.verifier, self.selector = verifier, selector

    def run(self) -> VerifiedBlock:
        """Down every row's paths, then the tokens behind the accepted ones."""
        batch, num_paths, length = self.token_ids.shape
        walks_block = self.verifier == "optimal_block"
        output = torch.full((batch, length + 1), -1)
        path, status = torch.zeros(batch, dtype=torch.int64), torch.zeros(batch, dtype=torch.int8)
        weight = torch.ones(batch, dtype=torch.float64)
        survivors = torch.ones(batch, num_paths, dtype=torch.bool)
        depth_of, node_of = torch.zeros_like(path), torch.zeros_like(path)
        is_bonus = torch.zeros(batch, dtype=torch.bool)
        stop_weight, rest = torch.ones_like(weight), torch.zeros_like(weight)
        psi = torch.zeros(batch, len(self.knots), dtype=torch.float64)
        rows = torch.arange(batch)
        for depth in range(length + 1):
            alive = survivors[rows]
            alive = alive & self.drawn[rows, :, depth] if depth < length else alive & False
            node = self.node_index[rows, path[rows], depth]
            inner = alive.any(1)
            found = self.laws.target_status[rows, node]
            drafted = torch.where(inner, self.laws.draft_status[rows, node], 0)
            status[rows] = torch.where(drafted != OK, drafted, found)
            leaves = rows[~inner & (status[rows] == OK)]
            if walks_block:
                accept = self._uniform(Role.ACCEPT, leaves, depth)
                leaves = leaves[accept < weight[leaves]]
            depth_of[leaves], is_bonus[leaves] = depth, True
            node_of[leaves] = self.node_index[leaves, path[leaves], depth]

            kept = inner & (status[rows] == OK)
            rows, alive, node = rows[kept], alive[kept], node[kept]
            if len(rows) == 0:
                break
            step = self._step(rows, node, alive, depth, weight[rows])
            stops = rows[step.stops]
            depth_of[stops], node_of[stops] = depth, node[step.stops]
            stop_weight[stops], rest[stops] = weight[stops], step.rest[step.stops]
            psi[stops] = step.psi[step.stops]
            on = step.goes_on
            if walks_block:
                path[rows] = step.chosen
            rows, chosen = rows[on], step.chosen[on]
            tokens = self.token_ids[rows, chosen, depth]
            weight[rows], output[rows, depth] = step.below[on], tokens
            survivors[rows] &= self.token_ids[rows, :, depth] == tokens[:, None]
            if not walks_block:
                path[rows] = survivors[rows].to(torch.int8).argmax(1)

        for bonus in (True, False):
            rows = ((is_bonus == bonus) & (status == OK)).nonzero().squeeze(1)
            if len(rows) == 0:
                continue
            mass = self.laws.target[rows, node_of[rows]]
            if not bonus:
                draft = self.laws.draft[rows, node_of[rows]]
                most = stop_weight[rows, None] * self.knots
                accepted = torch.where(psi[rows] < (1 - NEGLIGIBLE) * most, psi[rows], most)
                left = residual_mass(mass, draft, stop_weight[rows], accepted, self.knots)
                mass = torch.where(rest[rows, None] > EXHAUSTED, left, mass)
            role = Role.BONUS if bonus else Role.RESIDUAL
            tokens = draw(mass, self.noise.select(rows), role, depth=depth_of[rows])
            output[rows, depth_of[rows]] = tokens
        bad = status != OK
        output[torch.arange(length + 1) > depth_of[:, None]] = -1
        return VerifiedBlock(
            output.masked_fill(bad[:, None], -1),
            depth_of.masked_fill(bad, 0),
            path.masked_fill(bad, 0),
            status,
        )

    def _step(self, rows, node, alive, depth, weight) -> Step:
        target, draft = self.laws.target[rows, node], self.laws.draft[rows, node]
        sums = ratio_sums(target, draft, self.knots)
        candidates = self.token_ids[rows, :, depth].clamp_min(0)
        t, d = (law.gather(1, candidates) for law in (target, draft))
        ratio = torch.where(d > 0, t / d, 0.0)
        if self.verifier == "k_seq":
            return self._k_seq(rows, sums, ratio, alive, depth)
        return self._optimal(rows, sums, ratio, alive, depth, weight)

    def _k_seq(self, rows, sums, ratio, alive, depth) -> Step:
        plan = k_seq_spline(sums, self.knots, alive.sum(1))
        chance = evaluate(plan.ratio, self.knots, ratio)
        paths = torch.arange(alive.shape[1]).expand_as(alive)
        taken = alive & (self._uniform(Role.ACCEPT, rows, depth, paths) < chance)
        chosen, any_taken = taken.to(torch.int8).argmax(1), taken.any(1)
        one = torch.ones(len(rows), dtype=torch.float64)
        return Step(~any_taken, any_taken, chosen, one, plan.accepted, 1 - plan.acceptance)

    def _optimal(self, rows, sums, ratio, alive, depth, weight) -> Step:
        mass = knot_masses(sums, self.knots)
        n = alive.sum(1)
        plan = selection_spline(
            mass / mass.sum(1, keepdim=True), self.knots, weight, n, self.selector
        )
        paths = torch.arange(alive.shape[1]).expand_as(alive)
        uniform = self._uniform(Role.RANK, rows, depth, paths)
        lower, share = place(ratio, self.knots)
        upper = uniform >= 1 - share
        inner = torch.where(upper, (uniform - (1 - share)) / share, uniform / (1 - share))
        ranks = plan.ranks.rank(torch.where(upper, lower + 1, lower), inner)
        # a single candidate is the selected one, whatever its rank
        chosen = ranks.masked_fill(~alive, -1).argmax(1, keepdim=True)
        wanted, got = (
            evaluate(spline, self.knots, ratio).gather(1, chosen).squeeze(1)
            for spline in (plan.accepted, plan.ranks.phi)
        )
        below = torch.where(got > 0, wanted / got, 0.0).clamp_max(1)
        accept = self._uniform(Role.ACCEPT, rows, depth)
        chosen = chosen.squeeze(1)
        if self.verifier == "optimal":
            stops = accept >= below
            return Step(stops, ~stops, chosen, torch.ones_like(below), plan.accepted, plan.rest)
        left = plan.rest.clamp_min(0)
        stops = (accept * (1 - weight + left) < left) | (depth == 0)
        return Step(stops, below > 0, chosen, below, plan.accepted, plan.rest)

    def _uniform(self, role, rows, depth, paths=None) -> Tensor:
        """Numbers of the rows, one each or one for each of their paths."""
        zero = torch.zeros(len(rows), 1, dtype=torch.int64)
        noise = self.noise.select(rows)
        if paths is None:
            return noise.uniform(role, zero, depth=depth).squeeze(1)
        return noise.uniform(role, torch.zeros_like(paths), depth=depth, path=paths)
