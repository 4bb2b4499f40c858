"""Exact laws for the tests: every draft and every outcome, weighted by its probability."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

import warpdraft.verification as verification
from warpdraft.kernels.noise import Noise, Role
from warpdraft.verification import NodeVerifier, VerifiedBlock


def random_laws(rows: int, vocab: int, seed: int, *, spread: float = 1.0) -> Tensor:
    """Laws `[rows, vocab]` float64; the smaller the spread, the more they peak."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.dirichlet(np.full(vocab, spread), rows))


def without_token(laws: Tensor, rows: slice, token: int) -> Tensor:
    """The laws, those of the given rows conditioned on another token."""
    laws = laws.clone()
    laws[rows, token] = 0
    return laws / laws.sum(1, keepdim=True)


def tuples(vocab: int, length: int) -> Tensor:
    """Every tuple of tokens, `[vocab ** length, length]`, in the order of base-`vocab` numbers."""
    rows = list(itertools.product(range(vocab), repeat=length))
    return torch.tensor(rows, dtype=torch.int64).view(vocab**length, length)


# ---- one node


def node_law(
    verifier: NodeVerifier, target: Tensor, draft: Tensor, num_candidates: int
) -> tuple[Tensor, float]:
    """Law of the emitted token, and the chance that it is a candidate."""
    law, acceptance = torch.zeros_like(target), 0.0
    for candidates in tuples(len(target), num_candidates):
        weight = float(draft[candidates].prod())
        if weight == 0:
            continue
        outcome = verifier.law(target, draft, candidates)
        law += weight * outcome
        acceptance += weight * float(outcome[candidates.unique()].sum())
    return law, acceptance


def optimal_acceptance(target: Tensor, draft: Tensor, num_candidates: int) -> float:
    """The best that any rule can do with i.i.d. candidates: 1 + min over prefixes of (T_j - D_j^n).

    Tokens stand in ascending order of target / draft. A set S of tokens is emitted at least as often as all candidates
    lie in it, D(S)^n, but only T(S) of that can be accepted; the tightest set is such a prefix.
    """
    order = torch.where(draft > 0, target / draft, torch.inf).argsort(stable=True)
    slack = target[order].cumsum(0) - draft[order].cumsum(0).clamp_max(1) ** num_candidates
    return min(1.0, 1.0 + float(slack.min()))


def transport_optimum(target: Tensor, draft: Tensor, num_candidates: int) -> float:
    """The same as a linear programme over all couplings of the candidates and the emitted token."""
    vocab = len(target)
    drafts = tuples(vocab, num_candidates)
    weights = draft[drafts].prod(1).numpy()
    shape = (len(drafts), vocab)
    hit = (drafts[:, :, None] == torch.arange(vocab)).any(1).numpy()
    of_draft = np.repeat(np.eye(len(drafts)), vocab, axis=1)
    of_token = np.tile(np.eye(vocab), len(drafts))
    # the last equation follows from the others, and rounding must not contradict it
    solution = linprog(
        -hit.reshape(np.prod(shape)).astype(float),
        A_eq=np.vstack([of_draft, of_token])[:-1],
        b_eq=np.concatenate([weights, target.numpy()])[:-1],
        method="highs",
    )
    assert solution.status == 0, solution.message
    return float(-solution.fun)


# ---- a block


@dataclass(frozen=True)
class Tables:
    """The laws of both models after every prefix: at depth i, `[vocab ** i, vocab]`.

    Attributes:
        target: depths 0 to L.
        draft: depths 0 to L - 1, that the paths are drawn from.
        verified_draft: what the verifier is told that they were drawn from.
    """

    target: list[Tensor]
    draft: list[Tensor]
    verified_draft: list[Tensor]

    @classmethod
    def random(cls, vocab: int, length: int, seed: int, *, zeros: bool) -> Tables:
        """Random tables; with zeros in the laws of every second prefix, at different tokens."""
        target = [
            random_laws(vocab**depth, vocab, 100 * seed + depth) for depth in range(length + 1)
        ]
        draft = [
            random_laws(vocab**depth, vocab, 100 * seed + 50 + depth) for depth in range(length)
        ]
        if zeros:
            target = [without_token(laws, slice(0, None, 2), 0) for laws in target]
            draft = [without_token(laws, slice(0, None, 2), vocab - 1) for laws in draft]
        return cls(target, draft, draft)


class TabledBlock:
    """A draft block whose laws stand in tables."""

    def __init__(self, tables: Tables, draft_token_ids: Tensor) -> None:
        self.draft_token_ids = draft_token_ids
        self.status = torch.zeros(len(draft_token_ids), dtype=torch.int8)
        self._tables = tables

    def target(self, rows: Tensor, path: Tensor, depth: int) -> Tensor:
        return self._tables.target[depth][self._prefix(rows, path, depth)]

    def draft(self, rows: Tensor, path: Tensor, depth: int) -> Tensor:
        return self._tables.verified_draft[depth][self._prefix(rows, path, depth)]

    def _prefix(self, rows: Tensor, path: Tensor, depth: int) -> Tensor:
        vocab = self._tables.target[0].shape[1]
        return prefix_number(self.draft_token_ids[rows, path], depth, vocab)


class ScriptedVerifier(NodeVerifier):
    """Emits the script's tokens, and keeps the probability that the given verifier would have.

    The row of the batch is read off the noise, whose sequence is the row number.
    """

    name = "scripted"

    def __init__(self, verifier: NodeVerifier, script: Tensor) -> None:
        self.script = script
        self.weight = torch.ones(len(script), dtype=torch.float64)
        self._verifier = verifier
        self._laws: dict[tuple[bytes, ...], Tensor] = {}

    def select(
        self,
        target_probs: Tensor,
        draft_probs: Tensor,
        candidates: Tensor,
        alive: Tensor,
        noise: Noise,
        depth: int,
    ) -> Tensor:
        rows = noise.sequence
        tokens = self.script[rows, depth]
        nodes = zip(
            rows.tolist(),
            target_probs,
            draft_probs,
            candidates,
            alive,
            tokens.tolist(),
            strict=True,
        )
        for row, target, draft, paths, survivors, token in nodes:
            self.weight[row] *= self._law(target, draft, paths[survivors])[token]
        return tokens

    def draw_bonus(self, mass: Tensor, noise: Noise, role: Role, *, depth: int) -> Tensor:
        """In place of the draw of the bonus token."""
        assert role is Role.BONUS
        rows = noise.sequence
        tokens = self.script[rows, depth]
        share = mass / mass.sum(1, keepdim=True)
        self.weight[rows] *= share.gather(1, tokens[:, None]).squeeze(1)
        return tokens

    def law(self, target_probs: Tensor, draft_probs: Tensor, candidates: Tensor) -> Tensor:
        return self._verifier.law(target_probs, draft_probs, candidates)

    def expected_acceptance(
        self, target_probs: Tensor, draft_probs: Tensor, num_candidates: int
    ) -> Tensor:
        return self._verifier.expected_acceptance(target_probs, draft_probs, num_candidates)

    def _law(self, target: Tensor, draft: Tensor, candidates: Tensor) -> Tensor:
        key = tuple(tensor.numpy().tobytes() for tensor in (target, draft, candidates))
        if key not in self._laws:
            self._laws[key] = self.law(target, draft, candidates)
        return self._laws[key]


@dataclass(frozen=True)
class BlockLaw:
    """A verified block for every set of draft paths and every script.

    Attributes:
        law: `[vocab ** (L + 1)]`, of the emitted tokens continued by plain sampling to L + 1 tokens.
        target: the same of plain sampling alone.
        verified: of every row.
        paths: `[rows, K, L]`.
        weight: `[rows]`, the chance of the row's paths and of what was emitted.
    """

    law: Tensor
    target: Tensor
    verified: VerifiedBlock
    paths: Tensor
    weight: Tensor

    @property
    def deviation(self) -> float:
        """The largest error of a probability."""
        return float((self.law - self.target).abs().max())


def block_law(verifier: NodeVerifier, tables: Tables, num_drafts: int) -> BlockLaw:
    """Run the verifier's own walk over all sets of K paths and all scripts of L + 1 tokens."""
    vocab, length = tables.target[0].shape[1], len(tables.draft)
    every_path = tuples(vocab, length)
    scripts = tuples(vocab, length + 1)
    path_sets = every_path[tuples(len(every_path), num_drafts)]
    paths = path_sets.repeat_interleave(len(scripts), dim=0)
    script = scripts.repeat(len(path_sets), 1)

    scripted = ScriptedVerifier(verifier, script)
    noise = Noise.create(len(script), seed=0, device="cpu")
    with patch.object(verification, "draw", scripted.draw_bonus):
        verified = scripted.verify(TabledBlock(tables, paths), noise)

    path_weight = text_probability(tables.draft, every_path).prod(1)
    drafted = path_weight[tuples(len(every_path), num_drafts)].prod(1)
    weight = drafted.repeat_interleave(len(scripts)) * scripted.weight
    steps = text_probability(tables.target, script)
    # a row whose block ended early is continued by plain sampling, as its script says
    emitted = (verified.output_token_ids >= 0).sum(1)
    continued = torch.arange(length + 1) >= emitted[:, None]
    whole = weight * torch.where(continued, steps, 1.0).prod(1)
    law = torch.zeros(len(scripts), dtype=torch.float64)
    law.index_add_(0, torch.arange(len(scripts)).repeat(len(path_sets)), whole)
    target = text_probability(tables.target, scripts).prod(1)
    return BlockLaw(law, target, verified, paths, weight)


def prefix_number(token_ids: Tensor, depth: int, vocab: int) -> Tensor:
    """The first `depth` tokens of each row as a base-`vocab` number."""
    number = token_ids.new_zeros(len(token_ids))
    for column in range(depth):
        number = number * vocab + token_ids[:, column]
    return number


def text_probability(laws: list[Tensor], token_ids: Tensor) -> Tensor:
    """Probability of each token after those before it, `[rows, length]`."""
    vocab = laws[0].shape[1]
    columns = [
        laws[depth][prefix_number(token_ids, depth, vocab), token_ids[:, depth]]
        for depth in range(token_ids.shape[1])
    ]
    return torch.stack(columns, dim=1)
