"""Who takes part in the paired comparison of verifiers, what must be drafted for them, and what is read off each block.

A block of K i.i.d. paths of L tokens holds the blocks of any K' of its paths and their first L' tokens, each with the
same law as if it had been drafted alone. So does one whose first m root candidates are the draft's most likely tokens,
for its first K' paths and any K' with the same m. Nodes drawn without replacement, beams and rollover trees depend on
their size, and are drafted anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from warpdraft.kernels.k_seq import k_seq_plan, k_seq_plan_reference
from warpdraft.laws import Law
from warpdraft.structures import Structure
from warpdraft.verification import DraftBlock, Drafts, Verifier, get_verifier
from warpdraft.verifiers.k_seq import KSeq


class CheckedKSeq(KSeq):
    """k-SEQ that compares every plan with plain bisection in float64.

    Attributes:
        largest_error: of the acceptance, over all nodes so far.
    """

    def __init__(self) -> None:
        self.largest_error = 0.0

    def law(
        self, target_probs: Tensor, draft_probs: Tensor, candidates: Tensor, depth: int = 0
    ) -> Tensor:
        """As `KSeq.law`."""
        count = candidates.new_tensor([len(candidates)])
        plan = k_seq_plan(target_probs[None], draft_probs[None], count)
        wide = target_probs[None].double(), draft_probs[None].double()
        # one candidate leaves nothing to bisect: any other rho than 1 is worse
        solve = k_seq_plan_reference if len(candidates) > 1 else k_seq_plan
        error = float((plan.acceptance - solve(*wide, count).acceptance).abs())
        self.largest_error = max(self.largest_error, error)
        return super().law(target_probs, draft_probs, candidates, depth)


@dataclass(frozen=True, slots=True)
class Contender:
    """A verifier and the way it is drafted for.

    Attributes:
        label: its name in the tables.
        verifier: with its options.
        structure: of i.i.d. drafts.
        whole_length: whether the acceptance of a token depends on how many are drafted behind it.
    """

    label: str
    verifier: Verifier
    structure: Structure = "paths"
    whole_length: bool = False

    def takes(self, num_drafts: int) -> bool:
        """Whether there is anything to compare at this K: one path is no tree."""
        most = self.verifier.most_drafts
        return (most is None or num_drafts <= most) and (
            num_drafts > 1 or self.structure == "paths"
        )


def all_contenders() -> list[Contender]:
    """Every verifier, with every option that changes what it accepts; a bare name is its default."""
    get = get_verifier
    return [
        Contender("k_seq", CheckedKSeq()),
        Contender("recursive", get("recursive")),
        Contender("optimal", get("optimal", selector="clip")),
        Contender("optimal lex", get("optimal", selector="lex")),
        Contender("optimal hybrid 1", get("optimal", num_top=1)),
        Contender("block", get("block")),
        Contender("traversal", get("traversal"), whole_length=True),
        Contender("optimal_block", get("optimal_block", selector="lex")),
        Contender("optimal_block clip", get("optimal_block", selector="clip")),
        Contender("k_seq rollover", get("k_seq"), "rollover"),
        Contender("optimal_block rollover", get("optimal_block", selector="lex"), "rollover"),
        Contender("optimal_block clip rollover", get("optimal_block", selector="clip"), "rollover"),
        Contender("recursive_without_replacement", get("recursive_without_replacement")),
        Contender("greedy_drafts", get("greedy_drafts")),
        Contender("target_only", get("target_only")),
    ]


def contenders_named(labels: Sequence[str]) -> list[Contender]:
    """The contenders of these labels; all for "all".

    Raises:
        ValueError: an unknown label, which lists those there are.
    """
    every = {contender.label: contender for contender in all_contenders()}
    if list(labels) == ["all"]:
        return list(every.values())
    unknown = [label for label in labels if label not in every]
    if unknown:
        raise ValueError(
            f"--verifier must be all or some of {', '.join(every)}; got {unknown[0]!r}"
        )
    return [every[label] for label in labels]


class Drafting(NamedTuple):
    """What one run of the loop drafts for each context."""

    drafts: Drafts
    num_drafts: int
    draft_length: int
    num_top: int
    structure: Structure


class Reading(NamedTuple):
    """A contender's look at a block.

    Attributes:
        contender: whose chances are read.
        num_drafts: K.
        view_length: tokens that it is shown.
        draft_lengths: the L that its chances answer, as prefixes.
    """

    contender: Contender
    num_drafts: int
    view_length: int
    draft_lengths: tuple[int, ...]

    def groups(self, drafting: Drafting, paths: int) -> list[range]:
        """The paths that it is shown, in turn: all of a tree, else K, and of i.i.d. ones every disjoint K."""
        if drafting.structure == "rollover" or drafting.drafts != "iid":
            return [range(paths)]
        last = paths if drafting.num_top == 0 else self.num_drafts
        starts = range(0, last - self.num_drafts + 1, self.num_drafts)
        return [range(start, start + self.num_drafts) for start in starts]


def readings_by_drafting(
    contenders: Sequence[Contender], num_drafts: Sequence[int], draft_lengths: Sequence[int]
) -> dict[Drafting, list[Reading]]:
    """The fewest runs that show every contender a block of every size."""
    longest = max(draft_lengths)
    cells = [(each, paths) for each in contenders for paths in num_drafts if each.takes(paths)]
    # shared blocks hold the most paths that anyone reads of them
    most: dict[int, int] = {}
    for contender, paths in cells:
        num_top = contender.verifier.num_top(paths)
        most[num_top] = max(most.get(num_top, 0), paths)
    plan: dict[Drafting, list[Reading]] = {}
    for contender, paths in cells:
        verifier = contender.verifier
        num_top = verifier.num_top(paths)
        # one draw without replacement is one draw
        drafts = "iid" if paths == 1 and verifier.drafts != "beam" else verifier.drafts
        shared = drafts == "iid" and contender.structure == "paths"
        drawn = most[num_top] if shared else paths
        apart = contender.whole_length or contender.structure == "rollover"
        looks: list[tuple[int, tuple[int, ...]]] = [(longest, tuple(draft_lengths))]
        if apart:
            looks = [(length, (length,)) for length in draft_lengths]
        for view_length, answers in looks:
            depth = view_length if contender.structure == "rollover" else longest
            drafting = Drafting(drafts, drawn, depth, num_top, contender.structure)
            reading = Reading(contender, paths, view_length, answers)
            plan.setdefault(drafting, []).append(reading)
    return plan


class BlockView:
    """Some paths of a block and their first tokens, its laws remembered for the next look at the same block.

    Attributes:
        draft_token_ids: `[batch, K, L]` int64.
        drawn: `[batch, K, L]` bool.
        status: `[batch]` int8.
    """

    def __init__(
        self, block: DraftBlock, paths: range, length: int, memory: dict[object, Law]
    ) -> None:
        self.draft_token_ids = block.draft_token_ids[:, paths.start : paths.stop, :length]
        self.drawn = block.drawn[:, paths.start : paths.stop, :length]
        self.status = block.status
        self._block = block
        self._first = paths.start
        self._memory = memory

    def target(self, rows: Tensor, path: Tensor, depth: int) -> Law:
        """Target law of the nodes."""
        key = "target", self._node(rows, path, depth)
        if key not in self._memory:
            self._memory[key] = self._block.target(rows, path + self._first, depth)
        return self._memory[key]

    def draft(self, rows: Tensor, path: Tensor, depth: int) -> Law:
        """Draft law of the nodes."""
        key = "draft", self._node(rows, path, depth)
        if key not in self._memory:
            self._memory[key] = self._block.draft(rows, path + self._first, depth)
        return self._memory[key]

    def _node(self, rows: Tensor, path: Tensor, depth: int) -> tuple[object, ...]:
        """Whose law it is: rows and the tokens before."""
        drafted = self.draft_token_ids[rows, path, :depth]
        return (*rows.tolist(), *map(tuple, drafted.tolist()))
