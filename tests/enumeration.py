"""Exact laws for the tests: every draft and every outcome, weighted by its probability."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

import warpdraft.laws as laws_module
from warpdraft.kernels.noise import Noise, Role
from warpdraft.laws import Law
from warpdraft.verification import NodeVerifier, VerifiedBlock, Verifier


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


def next_tokens(
    verifier: Verifier, draft: Tensor, before: Sequence[int], num_top: int = 0
) -> list[tuple[int, float]]:
    """The tokens that the next draw at a node can give the verifier, after the draws before, and their chances.

    None where the draft has no further token: then nothing is drawn.
    """
    if verifier.drafts == "beam" or len(before) < num_top:
        likely = [
            token for token in draft.argsort(descending=True, stable=True) if token not in before
        ][:1]
        return [(int(token), 1.0) for token in likely if draft[token] > 0]
    drawn_from = draft.clone()
    drawn_from[list(before if verifier.drafts == "without_replacement" else before[:num_top])] = 0
    shares = (drawn_from / drawn_from.sum()).nan_to_num(0.0).tolist()
    return [(token, share) for token, share in enumerate(shares) if share > 0]


def candidate_sets(
    verifier: Verifier, draft: Tensor, num_candidates: int
) -> list[tuple[tuple[int, ...], float]]:
    """All that the root's draws can be, in their order, and their chances."""
    sets: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    for _ in range(num_candidates):
        longer = []
        for before, chance in sets:
            following = next_tokens(verifier, draft, before, verifier.num_top(num_candidates))
            longer += [((*before, token), chance * share) for token, share in following] or [
                (before, chance)
            ]
        sets = longer
    return sets


def node_law(
    verifier: NodeVerifier, target: Tensor, draft: Tensor, num_candidates: int
) -> tuple[Tensor, float]:
    """Law of the emitted token, and the chance that it is a candidate."""
    law, acceptance = torch.zeros_like(target), 0.0
    for candidates, weight in candidate_sets(verifier, draft, num_candidates):
        outcome = verifier.law(target, draft, torch.tensor(candidates))
        law += weight * outcome
        acceptance += weight * float(outcome[list(set(candidates))].sum())
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


def optimum_of_drafts(
    verifier: Verifier, target: Tensor, draft: Tensor, num_candidates: int
) -> float:
    """The best that any rule can do with the candidates that the verifier asks for.

    The linear programme by its minimum cut: 1 + min over all sets S of tokens of [T(S) - P(all candidates lie in S)].
    """
    sets = candidate_sets(verifier, draft, num_candidates)
    best = 1.0
    for members in itertools.product([False, True], repeat=len(target)):
        inside = [token for token, member in enumerate(members) if member]
        caught = sum(chance for candidates, chance in sets if set(candidates) <= set(inside))
        best = min(best, 1 + float(target[inside].sum()) - caught)
    return best


class ScriptedUniform:
    """In place of `Noise`: given uniform numbers `[rows, K]` of the role that accepts, and which rows they are."""

    def __init__(self, numbers: Tensor, rows: Tensor | None = None) -> None:
        self.numbers = numbers
        self.rows = torch.arange(len(numbers)) if rows is None else rows

    def uniform(self, role: Role, index: Tensor, *, depth: int, path: Tensor) -> Tensor:
        assert role is Role.ACCEPT
        assert path.tolist() == [list(range(path.shape[1]))] * len(path)
        return self.numbers

    def select(self, rows: Tensor) -> ScriptedUniform:
        return ScriptedUniform(self.numbers[rows], self.rows[rows])


def selection_law(
    verifier: NodeVerifier,
    target: Tensor,
    draft: Tensor,
    candidates: Tensor,
    ratios: dict[int, float],
    *,
    depth: int,
    alive: Tensor | None = None,
) -> Tensor:
    """Law of `select` where paths are tried in turn, over which of them is the first to be accepted.

    Args:
        verifier: draws its recovered token by `draw` of its module or of one it derives from.
        target: `[vocab]`.
        draft: `[vocab]`.
        candidates: `[K]`, of all paths.
        ratios: of the paths that are tried, in that order: the chance of each to be accepted after the ones before were
            not. The numbers lie 1e-9 on either side, so these chances must be the code's own.
        depth: of the node.
        alive: `[K]` bool, by default the paths that are tried.
    """
    if alive is None:
        alive = torch.tensor([path in ratios for path in range(len(candidates))])
    numbers, weights, reached = [], [], 1.0
    for first in [*ratios, None]:
        row = [0.5] * len(candidates)
        for path, ratio in ratios.items():
            row[path] = ratio * (1 - 1e-9) if path == first else ratio + (1 - ratio) * 1e-9
        numbers.append(row)
        weights.append(reached * (1.0 if first is None else ratios[first]))
        reached *= 1 - (0.0 if first is None else ratios[first])
    rows = len(numbers)
    recovered = torch.zeros(rows, len(target), dtype=torch.float64)

    def draw(
        mass: Tensor, noise: ScriptedUniform, role: Role, *, depth: int, token_ids: Tensor | None
    ) -> Tensor:
        assert role is Role.RESIDUAL
        recovered[noise.rows] = mass / mass.sum(1, keepdim=True)
        return torch.full((len(mass),), -1)

    modules = [
        module
        for module in (sys.modules[each.__module__] for each in type(verifier).__mro__[:-1])
        if hasattr(module, "draw")
    ]
    with patch.object(modules[0], "draw", draw):
        tokens = verifier.select(
            *(column.expand(rows, -1) for column in (target, draft, candidates, alive)),
            ScriptedUniform(torch.tensor(numbers, dtype=torch.float64)),
            depth,
        )
    emitted = torch.where(
        (tokens >= 0)[:, None], torch.eye(len(target), dtype=torch.float64)[tokens], recovered
    )
    return torch.tensor(weights, dtype=torch.float64) @ emitted


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


@dataclass(frozen=True)
class DraftSets:
    """Every set of paths that a draft structure can give.

    Attributes:
        paths: `[sets, K, L]`, -1 behind a path's end.
        drawn: `[sets, K, L]` bool.
        weight: `[sets]`, their chances.
    """

    paths: Tensor
    drawn: Tensor
    weight: Tensor

    def survival(self, verifier: Verifier, tables: Tables) -> Tensor:
        """P(at least i tokens are accepted), `[L]`, from the verifier's own of each set."""
        block = TabledBlock(tables, self.paths, self.drawn)
        return self.weight @ verifier.survival(block)


Paths = tuple[tuple[int, ...], ...]
"""The tokens of every path so far."""


def independent(num_drafts: int) -> Callable[[Paths], list[int]]:
    """K paths that each draw one token a level."""
    return lambda paths: [0] * num_drafts if paths == ((),) else list(range(len(paths)))


def draft_sets(
    verifier: Verifier, tables: Tables, sources: Callable[[Paths], list[int]]
) -> DraftSets:
    """Draw level by level the candidates that the verifier asks for.

    Args:
        verifier: says how a node's candidates are drawn.
        tables: the laws.
        sources: the paths so far -> for each draw of the next level the path that it goes on from. The first draw from
            a path belongs to it, others begin paths of their own; a path that nothing goes on from has ended.
    """
    num_top = verifier.num_top(len(sources(((),))))
    sets: list[tuple[Paths, tuple[tuple[bool, ...], ...], float]] = [(((),), ((),), 1.0)]
    for depth, laws in enumerate(tables.draft):
        longer = []
        for paths, drawn, weight in sets:
            for tokens, chance in _draws(verifier, laws, paths, sources(paths), depth, num_top):
                longer.append((*_grown(paths, drawn, sources(paths), tokens), weight * chance))
        sets = longer
    most = max(len(sources(((),))), *(len(paths) for paths, _, _ in sets))
    length = len(tables.draft)
    token_ids = torch.full((len(sets), most, length), -1)
    flags = torch.zeros(len(sets), most, length, dtype=torch.bool)
    for row, (paths, drawn, _) in enumerate(sets):
        for number, (tokens, own) in enumerate(zip(paths, drawn, strict=True)):
            token_ids[row, number, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
            flags[row, number, : len(own)] = torch.tensor(own, dtype=torch.bool)
    weights = torch.tensor([weight for *_, weight in sets], dtype=torch.float64)
    return DraftSets(token_ids, flags, weights)


def _draws(
    verifier: Verifier,
    laws: Tensor,
    paths: Paths,
    sources: list[int],
    depth: int,
    num_top: int,
) -> list[tuple[tuple[int, ...], float]]:
    """The tokens of one level's draws, -1 for one that finds nothing, and their chances."""
    outcomes: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    for source in sources:
        node = paths[source]
        law = laws[prefix_number(torch.tensor([node], dtype=torch.int64), depth, laws.shape[1])[0]]
        longer = []
        for tokens, chance in outcomes:
            siblings = zip(tokens, sources, strict=False)
            before = [token for token, other in siblings if paths[other] == node and token >= 0]
            following = next_tokens(verifier, law, before, num_top if depth == 0 else 0)
            longer += [
                ((*tokens, token), chance * share) for token, share in following or [(-1, 1.0)]
            ]
        outcomes = longer
    return outcomes


def _grown(
    paths: Paths,
    drawn: tuple[tuple[bool, ...], ...],
    sources: list[int],
    tokens: tuple[int, ...],
) -> tuple[Paths, tuple[tuple[bool, ...], ...]]:
    """The paths after one more level."""
    grown, flags = list(paths), list(drawn)
    met = set()
    for source, token in zip(sources, tokens, strict=True):
        if token < 0:
            continue
        longer = (*paths[source], token)
        if source in met:
            grown.append(longer)
            flags.append((*(False for _ in paths[source]), True))
        else:
            met.add(source)
            grown[source], flags[source] = longer, (*drawn[source], True)
    return tuple(grown), tuple(flags)


class TabledBlock:
    """A draft block whose laws stand in tables."""

    def __init__(
        self, tables: Tables, draft_token_ids: Tensor, drawn: Tensor | None = None
    ) -> None:
        self.draft_token_ids = draft_token_ids
        every = torch.ones_like(draft_token_ids, dtype=torch.bool)
        self.drawn = every if drawn is None else drawn
        self.status = torch.zeros(len(draft_token_ids), dtype=torch.int8)
        self._tables = tables

    def target(self, rows: Tensor, path: Tensor, depth: int) -> Law:
        return Law.of_probs(self._tables.target[depth][self._prefix(rows, path, depth)])

    def draft(self, rows: Tensor, path: Tensor, depth: int) -> Law:
        return Law.of_probs(self._tables.verified_draft[depth][self._prefix(rows, path, depth)])

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
        self._laws: dict[tuple[int | bytes, ...], Tensor] = {}

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
            self.weight[row] *= self._law(target, draft, paths[survivors], depth)[token]
        return tokens

    def draw_bonus(
        self,
        mass: Tensor,
        noise: Noise,
        role: Role,
        *,
        depth: int,
        path: int,
        token_ids: Tensor | None,
    ) -> Tensor:
        """In place of the draw of the bonus token."""
        assert role is Role.BONUS
        rows = noise.sequence
        tokens = self.script[rows, depth]
        share = mass / mass.sum(1, keepdim=True)
        self.weight[rows] *= share.gather(1, tokens[:, None]).squeeze(1)
        return tokens

    def law(
        self, target_probs: Tensor, draft_probs: Tensor, candidates: Tensor, depth: int = 0
    ) -> Tensor:
        return self._verifier.law(target_probs, draft_probs, candidates, depth)

    def expected_acceptance(
        self, target_probs: Tensor, draft_probs: Tensor, num_candidates: int
    ) -> Tensor:
        return self._verifier.expected_acceptance(target_probs, draft_probs, num_candidates)

    def _law(self, target: Tensor, draft: Tensor, candidates: Tensor, depth: int) -> Tensor:
        key = depth, *(tensor.numpy().tobytes() for tensor in (target, draft, candidates))
        if key not in self._laws:
            self._laws[key] = self.law(target, draft, candidates, depth)
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

    @property
    def chance(self) -> Tensor:
        """`[rows]`, that sum to 1: a block that ends early has a row for every way in which its script goes on."""
        length = self.paths.shape[2]
        vocab = round(len(self.law) ** (1 / (length + 1)))
        emitted = (self.verified.output_token_ids >= 0).sum(1)
        return self.weight / float(vocab) ** (length + 1 - emitted)

    @property
    def survival(self) -> Tensor:
        """P(at least i drafted tokens are accepted), `[L]`."""
        depths = torch.arange(1, self.paths.shape[2] + 1)
        accepted = self.verified.num_accepted[:, None] >= depths
        return (self.chance[:, None] * accepted).sum(0)


def block_law(
    verifier: NodeVerifier, tables: Tables, num_drafts: int, drafts: DraftSets | None = None
) -> BlockLaw:
    """Run the verifier's own walk over all sets of paths and all scripts of L + 1 tokens.

    The paths are K independent ones, unless other `drafts` are given.
    """
    vocab, length = tables.target[0].shape[1], len(tables.draft)
    if drafts is None:
        drafts = draft_sets(verifier, tables, independent(num_drafts))
    scripts = tuples(vocab, length + 1)
    paths = drafts.paths.repeat_interleave(len(scripts), dim=0)
    drawn = drafts.drawn.repeat_interleave(len(scripts), dim=0)
    script = scripts.repeat(len(drafts.weight), 1)

    scripted = ScriptedVerifier(verifier, script)
    noise = Noise.create(len(script), seed=0, device="cpu")
    with patch.object(laws_module, "draw", scripted.draw_bonus):
        verified = scripted.verify(TabledBlock(tables, paths, drawn), noise)

    weight = drafts.weight.repeat_interleave(len(scripts)) * scripted.weight
    steps = text_probability(tables.target, script)
    # a row whose block ended early is continued by plain sampling, as its script says
    emitted = (verified.output_token_ids >= 0).sum(1)
    continued = torch.arange(length + 1) >= emitted[:, None]
    whole = weight * torch.where(continued, steps, 1.0).prod(1)
    law = torch.zeros(len(scripts), dtype=torch.float64)
    law.index_add_(0, torch.arange(len(scripts)).repeat(len(drafts.weight)), whole)
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


def add_continued(
    law: Tensor, tables: Tables, prefixes: Tensor, next_laws: Tensor, weight: Tensor
) -> None:
    """Add to `law`, over texts of L + 1 tokens, weighted rows that emit a prefix and one more token.

    Plain sampling continues them.

    Args:
        law: `[vocab ** (L + 1)]`, changed in place.
        tables: the laws.
        prefixes: `[rows, depth]` int64.
        next_laws: `[rows, vocab]`, of the token behind them.
        weight: `[rows]`.
    """
    vocab, length, depth = next_laws.shape[1], len(tables.target), prefixes.shape[1]
    emitted = torch.zeros(vocab**depth, vocab, dtype=torch.float64)
    number = prefix_number(prefixes, depth, vocab)
    emitted.index_add_(0, number, next_laws * weight[:, None])
    texts = tuples(vocab, length)
    continued = text_probability(tables.target, texts)[:, depth + 1 :].prod(1)
    law += emitted[prefix_number(texts, depth, vocab), texts[:, depth]] * continued
