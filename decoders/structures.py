"""Draft structures: which nodes of the tree draw how many tokens, and how.

    paths       K paths, drawn independently: every path draws one token at its node
    rollover    the same, at most N nodes in all: draws that duplicates saved are given to deeper levels
    stochastic  K nodes a level, drawn without replacement (Jeon et al., 2024, arXiv 2402.14160, RSD-S)
    beam        the K most likely prefixes of each level, as engines with deterministic trees draft

A structure looks only at levels above the one it fills, so a verifier's decisions at a node never depend on what is
drawn below it: lossless for any of them.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from warpdraft.kernels.noise import Noise, Role
from warpdraft.kernels.top_tokens import top_tokens, without_tokens

from .draft_tree import DraftTree, Draws, SeparatePaths
from .laws import Law

if TYPE_CHECKING:
    from .abstract_verifiers import Drafts

Structure = Literal["paths", "rollover"]
STRUCTURES: tuple[Structure, ...] = ("paths", "rollover")

# a tree of n nodes has fewer than 2 n paths, and noise names 4,096
MOST_NODES = 2048


class LevelLaws:
    """The draft's laws at the nodes of one level.

    Attributes:
        law: of the filled nodes of all texts, a row each.
        row: `[batch, n]` int64, the row of every node; -1 in padding.
    """

    def __init__(self, law: Law, row: Tensor) -> None:
        self.law = law
        self.row = row

    def at(self, text: Tensor, column: Tensor) -> Law:
        """The laws of some nodes, a row each."""
        return self.law.only(self.row[text, column])


class Drafter(ABC):
    """Draws the tokens of one level after the other."""

    @abstractmethod
    def draws(self, tree: DraftTree, laws: LevelLaws, noise: Noise) -> Draws:
        """The draws at the tree's last level.

        Args:
            tree: so far.
            laws: of the last level's nodes.
            noise: a stream for each text.
        """


def drawn_from(
    tree: DraftTree, laws: LevelLaws, noise: Noise, source: Tensor, draws: Tensor
) -> Draws:
    """One token for each path of `draws` `[batch, K]` bool, i.i.d. from the law where its source stands."""
    text, path = draws.nonzero(as_tuple=True)
    column = tree.column[text, source[text, path], -1]
    tokens = laws.at(text, column).draw(noise.select(text), Role.DRAFT, depth=tree.depth, path=path)
    token_ids = torch.full_like(source, -1)
    token_ids[text, path] = tokens
    return Draws(source, token_ids)


def drawn_by_all(tree: DraftTree, laws: LevelLaws, noise: Noise, path: Tensor) -> Draws:
    """One token for each path `[batch, K]` int64, the laws being in the order of the paths."""
    batch, num_paths = path.shape
    law = laws.law
    if num_paths > 1:
        text = torch.arange(batch, device=path.device).repeat_interleave(num_paths)
        noise = noise.select(text)
        law = law.only(text) if tree.depth == 0 else law
    tokens = law.draw(noise, Role.DRAFT, depth=tree.depth, path=path.flatten())
    source = path if tree.depth > 0 else torch.zeros_like(path)
    return Draws(source, tokens.view(batch, num_paths))


class Paths(Drafter):
    """K i.i.d. paths; `num_top` of them start with the draft's most likely tokens, the others with one of the rest."""

    def __init__(self, num_drafts: int, num_top: int = 0) -> None:
        self.num_drafts = num_drafts
        self.num_top = num_top

    def draws(self, tree: DraftTree, laws: LevelLaws, noise: Noise) -> Draws:
        """Every path draws one token."""
        batch = len(tree.token_ids)
        path = torch.arange(self.num_drafts, device=noise.seed.device).expand(batch, -1)
        if isinstance(tree, SeparatePaths) and self.num_top == 0:
            return drawn_by_all(tree, laws, noise, path)
        if tree.depth > 0:
            return drawn_from(tree, laws, noise, path, tree.column[:, :, -1] >= 0)
        source = torch.zeros_like(path)
        if self.num_top == 0:
            return drawn_from(tree, laws, noise, source, torch.ones_like(path, dtype=torch.bool))
        top, rest = without_top(laws.law, self.num_top)
        drawn = drawn_from(tree, LevelLaws(rest, laws.row), noise, source, path >= self.num_top)
        drawn.token_ids[:, : self.num_top] = top
        return drawn


class Rollover(Drafter):
    """At most `node_budget` nodes: level d draws floor((budget - nodes so far) / (levels left)) tokens.

    They are shared out one by one to the node with the largest share / (draws so far + 1/2). The root's share is 1, a
    child's is its parent's times the part of the parent's draws that led to it, so a node goes on with about as many
    draws as led to it, and more where paths that agree have left nodes over.
    """

    def __init__(self, node_budget: int, draft_length: int) -> None:
        self.node_budget = node_budget
        self.draft_length = draft_length
        self._left: list[int] = []
        self._shares: list[list[float]] = []

    def draws(self, tree: DraftTree, laws: LevelLaws, noise: Noise) -> Draws:
        """Count the draws of every node, then draw."""
        batch = len(tree.token_ids)
        if tree.depth == 0:
            self._left, self._shares = [self.node_budget] * batch, [[1.0]] * batch
            counts = [[self.node_budget // self.draft_length]] * batch
        else:
            filled = tree.levels[-1].filled.sum(1).tolist()
            self._left = [left - nodes for left, nodes in zip(self._left, filled, strict=True)]
            levels = self.draft_length - tree.depth
            counts = [
                share_out(left // levels, shares)
                for left, shares in zip(self._left, self._shares, strict=True)
            ]
        drawn = drawn_from(tree, laws, noise, *allot(tree, counts))
        self._shares = self._shares_below(tree, drawn, counts)
        return drawn

    def _shares_below(
        self, tree: DraftTree, drawn: Draws, counts: list[list[int]]
    ) -> list[list[float]]:
        """The shares of the next level's nodes, in the order of their columns."""
        stands = tree.column[:, :, -1].gather(1, drawn.source).tolist()
        drafted = drawn.token_ids.tolist()
        shares = []
        for text, (columns, tokens) in enumerate(zip(stands, drafted, strict=True)):
            below: dict[tuple[int, int], float] = {}
            for column, token in zip(columns, tokens, strict=True):
                if token >= 0:
                    part = self._shares[text][column] / counts[text][column]
                    below[column, token] = below.get((column, token), 0.0) + part
            shares.append(list(below.values()))
        return shares


class StochasticBeam(Drafter):
    """K draws a level without replacement: those of all nodes arrive in a race, and the first K are taken.

    A node's arrivals are a race of exponential clocks, a token's at the rate of its prefix's draft probability. The
    first arrival below a node comes when the node itself did; after each one the next is an exponential time away, at
    the rate of what is left at the node. Who arrives is independent of when it does, so each candidate, given those
    before it and given that there is one more, is a plain draw without replacement. How many there are does depend on
    who they are: a verifier must try them one by one, as if it did not know whether another one follows.
    """

    def __init__(self, num_drafts: int) -> None:
        self.num_drafts = num_drafts
        self._time = torch.zeros(0)
        self._rate = torch.zeros(0)

    def draws(self, tree: DraftTree, laws: LevelLaws, noise: Noise) -> Draws:
        """Take the first K arrivals of every text."""
        arrivals = Arrivals(tree, self.num_drafts)
        if tree.depth == 0:
            self._time = torch.zeros(laws.row.shape, dtype=torch.float64, device=laws.row.device)
            self._rate = torch.ones_like(self._time)
        else:
            # of paths, which stand in columns now
            self._time = self._time.gather(1, tree.levels[-1].path)
            self._rate = self._rate.gather(1, tree.levels[-1].path)
        time = torch.where(laws.row >= 0, self._time, torch.inf)
        left = laws.law.probs.clone()
        for _ in range(self.num_drafts):
            text = (time.amin(1) < torch.inf).nonzero().squeeze(1)
            column = time[text].argmin(1)
            when, rate = time[text, column], self._rate[text, column]
            path, row = arrivals.paths_at(text, column), laws.row[text, column]
            streams = noise.select(text)
            remaining = replace(laws.law.only(row), probs=left[row])
            token = remaining.draw(streams, Role.DRAFT, depth=tree.depth, path=path)
            place = column_of(remaining, token)
            arrivals.add(text, column, token, when, rate * laws.law.probs[row, place])
            left[row, place] = 0
            mass = left[row].sum(1, dtype=torch.float64)
            index = torch.zeros_like(path)[:, None]
            wait = streams.exponential(Role.CLOCK, index, depth=tree.depth, path=path)
            later = when + wait.squeeze(1) / (rate * mass)
            time[text, column] = torch.where(mass > 0, later, torch.inf)
        self._time, self._rate = arrivals.numbers()
        return arrivals.draws()


class Beam(Drafter):
    """The K most likely prefixes of the next level, by their draft probability; nothing is random."""

    def __init__(self, num_drafts: int) -> None:
        self.num_drafts = num_drafts
        self._rate = torch.zeros(0)

    def draws(self, tree: DraftTree, laws: LevelLaws, noise: Noise) -> Draws:
        """The best K children of all nodes, the best first."""
        arrivals = Arrivals(tree, self.num_drafts)
        if tree.depth == 0:
            self._rate = torch.ones(laws.row.shape, dtype=torch.float64, device=laws.row.device)
        else:
            self._rate = self._rate.gather(1, tree.levels[-1].path)
        place = top_tokens(laws.law.probs, self.num_drafts)
        best, width = laws.law.probs.gather(1, place), place.shape[1]
        row = laws.row.clamp_min(0)
        chance = self._rate[:, :, None] * best[row].double()
        chance = torch.where((laws.row >= 0)[:, :, None], chance, 0.0).flatten(1)
        chosen = chance.topk(min(self.num_drafts, chance.shape[1]), dim=1)
        every = torch.arange(len(row), device=row.device)
        for rate, number in zip(chosen.values.unbind(1), chosen.indices.unbind(1), strict=True):
            text = every[rate > 0]
            column, rank = number[text] // width, number[text] % width
            law_row = row[text, column]
            token = token_at(laws.law, law_row, place[law_row, rank])
            arrivals.add(text, column, token, rate[text], rate[text])
        self._rate, _ = arrivals.numbers()
        return arrivals.draws()


class Arrivals:
    """Draws as they come: the first at a node goes on with the path that stands there, each later one begins a path.

    Among the candidates of a node the numbers of their paths thus ascend in the order in which they came.
    """

    def __init__(self, tree: DraftTree, most: int) -> None:
        batch, paths = tree.token_ids.shape[:2]
        device = tree.token_ids.device
        root = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        used = paths_used(tree)
        self._stands = tree.levels[-1].path if tree.depth > 0 else root
        self._met = torch.zeros_like(self._stands, dtype=torch.bool)
        self._next = used.clone()
        self._least = paths
        width = paths + most
        every = torch.arange(width, device=device)
        self._source = torch.where(every < used[:, None], every, 0)
        self._token = torch.full_like(self._source, -1)
        self._numbers = torch.zeros(2, batch, width, dtype=torch.float64, device=device)

    def paths_at(self, text: Tensor, column: Tensor) -> Tensor:
        """The path that the next draw there belongs to, `[len(text)]`."""
        return torch.where(self._met[text, column], self._next[text], self._stands[text, column])

    def add(
        self, text: Tensor, column: Tensor, token: Tensor, first: Tensor, second: Tensor
    ) -> None:
        """One draw for each of the texts, with two numbers to remember of it."""
        path = self.paths_at(text, column)
        self._source[text, path] = self._stands[text, column]
        self._token[text, path] = token
        self._numbers[:, text, path] = torch.stack([first.double(), second.double()])
        self._next[text] += self._met[text, column].to(torch.int64)
        self._met[text, column] = True

    def draws(self) -> Draws:
        """All of them."""
        return Draws(self._source[:, : self._paths], self._token[:, : self._paths])

    def numbers(self) -> tuple[Tensor, Tensor]:
        """The remembered numbers `[batch, K]` of each path."""
        first, second = self._numbers[:, :, : self._paths]
        return first, second

    @property
    def _paths(self) -> int:
        return max(int(self._next.max()), self._least)


def share_out(draws: int, shares: Sequence[float]) -> list[int]:
    """How many of the draws each node gets: one by one to the largest share / (draws so far + 1/2)."""
    counts = [0] * len(shares)
    queue = [(-share * 2, node) for node, share in enumerate(shares)]
    heapq.heapify(queue)
    for _ in range(draws if shares else 0):
        _, node = queue[0]
        counts[node] += 1
        heapq.heapreplace(queue, (-shares[node] / (counts[node] + 0.5), node))
    return counts


def allot(tree: DraftTree, counts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Paths for `counts[text][column]` draws: those that stand there, then new ones.

    Returns:
        source `[batch, K]` int64, and which of the paths draw `[batch, K]` bool.
    """
    rows = []
    for stands, wanted, used in zip(
        tree.column[:, :, -1].tolist(), counts, paths_used(tree).tolist(), strict=True
    ):
        left, source, draws = list(wanted), list(range(used)), [False] * used
        leader = {column: path for path, column in reversed(list(enumerate(stands)))}
        for path, column in enumerate(stands):
            if column >= 0 and left[column] > 0:
                left[column] -= 1
                draws[path] = True
        for column, more in enumerate(left):
            source += [leader[column]] * more
            draws += [True] * more
        rows.append((source, draws))
    width = max(tree.num_paths, *(len(source) for source, _ in rows))
    device = tree.token_ids.device
    sources = [source + [0] * (width - len(source)) for source, _ in rows]
    flags = [draws + [False] * (width - len(draws)) for _, draws in rows]
    return torch.tensor(sources, device=device), torch.tensor(flags, device=device)


def paths_used(tree: DraftTree) -> Tensor:
    """How many paths each text has, `[batch]`: their numbers name noise, and must not depend on the texts around."""
    begun = tree.drawn.any(2).sum(1)
    return begun.clamp_min(1) if tree.depth == 0 else begun


def without_top(law: Law, count: int) -> tuple[Tensor, Law]:
    """The most likely tokens of each row `[rows, count]`, -1 where there are no more, and the law of the others."""
    column = top_tokens(law.probs, count)
    row = torch.arange(len(column), device=column.device)[:, None].expand_as(column)
    some = law.probs.gather(1, column) > 0
    tokens = torch.where(some, token_at(law, row, column), -1)
    missing = tokens.new_full((len(tokens), count - column.shape[1]), -1)
    rest = replace(law, probs=without_tokens(law.probs, column))
    return torch.cat([tokens, missing], 1), rest


def token_at(law: Law, row: Tensor, column: Tensor) -> Tensor:
    """The tokens of some columns."""
    return column if law.token_ids is None else law.token_ids[row, column]


def column_of(law: Law, token_ids: Tensor) -> Tensor:
    """The column of one token a row."""
    if law.token_ids is None:
        return token_ids
    return (law.token_ids == token_ids[:, None]).to(torch.int8).argmax(1)


def get_drafter(
    drafts: Drafts,
    *,
    structure: Structure,
    num_drafts: int,
    draft_length: int,
    num_top: int,
    node_budget: int | None,
) -> Drafter:
    """What draws the candidates that a verifier asks for.

    Raises:
        ValueError: an unknown structure, a rollover of candidates that are not i.i.d., a budget without a rollover, or
            one that does not reach the draft length.
    """
    if structure not in STRUCTURES:
        raise ValueError(f"structure must be one of {', '.join(STRUCTURES)}, got {structure!r}")
    if structure == "paths":
        if node_budget is not None:
            raise ValueError(f'node_budget={node_budget} belongs to structure="rollover"')
        if drafts == "iid":
            return Paths(num_drafts, num_top)
        if num_drafts * draft_length > MOST_NODES:
            raise ValueError(
                f"num_drafts * draft_length must be at most {MOST_NODES} for such drafts, "
                f"got {num_drafts} * {draft_length}"
            )
        return StochasticBeam(num_drafts) if drafts == "without_replacement" else Beam(num_drafts)
    if drafts != "iid" or num_top > 0:
        raise ValueError(
            'structure="rollover" is for verifiers of i.i.d. drafts, '
            f"got drafts={drafts!r} and num_top={num_top}"
        )
    budget = num_drafts * draft_length if node_budget is None else node_budget
    if not draft_length <= budget <= MOST_NODES:
        raise ValueError(
            f"node_budget must be in [{draft_length}, {MOST_NODES}] for draft_length={draft_length}, "
            f"got {budget}"
        )
    return Rollover(budget, draft_length)
