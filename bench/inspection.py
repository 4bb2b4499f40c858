"""What a record of a generation holds: what was drawn from at each step, and what each rule would have kept.

Entropies are in nats. `dataclasses.asdict` makes JSON of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .token_texts import Token

Role = Literal["drawn", "accepted", "recovered", "bonus"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a rule keeps of one law.

    Attributes:
        count: tokens of the support.
        kept_mass: their probability.
        kept_entropy: of the law renormalised to them.
        threshold: the least probability that is kept, ties apart.
        upper: the largest probability that is kept, where more likely tokens are not.
        first_rank: the place of the first kept token in the order of the law; the others follow without a gap.
        bound: alpha times the entropy that the paper's top-H compares with; None without it.
        keeps_drawn: whether the drawn token is among them.
    """

    count: int
    kept_mass: float
    kept_entropy: float
    threshold: float
    upper: float | None
    first_rank: int
    bound: float | None
    keeps_drawn: bool


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the tokens that could have come.

    Attributes:
        token: it.
        rank: its place in the order of the law, from 1.
        probability: before any rule.
        draft_probability: in the law that the drafts were drawn from; None where nothing was drafted.
        drawable: whether the run's own rules keep it.
        kept_by: numbers of the compared rules that keep it.
    """

    token: Token
    rank: int
    probability: float
    draft_probability: float | None
    drawable: bool
    kept_by: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One emitted token.

    Attributes:
        token: it.
        piece: what it adds to the text.
        role: how it came about; "drawn" where nothing was drafted.
        block: the number of its block.
        rank: its place in the order of the law, from 1.
        probability: before any rule, at the run's temperature; at temperature 1 of a greedy run.
        drawn_probability: in the law that it was drawn from, behind the run's own rules.
        entropy: of the law before any rule.
        drawable: how many tokens the run's own rules keep.
        readings: of the compared rules, in their order.
        candidates: the most likely tokens, and the emitted one, by rank.
        curve: rank and probability at points of the whole law.
    """

    token: Token
    piece: str
    role: Role
    block: int
    rank: int
    probability: float
    drawn_probability: float
    entropy: float
    drawable: int
    readings: tuple[Reading, ...]
    candidates: tuple[Candidate, ...]
    curve: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class DraftedToken:
    """A token of a draft path.

    Attributes:
        token: it.
        accepted: whether it was emitted, together with everything before it.
        draft_probability: in the law that it was drawn from.
        target_probability: in the target's law there; None where the text went another way.
    """

    token: Token
    accepted: bool
    draft_probability: float
    target_probability: float | None


@dataclass(frozen=True, slots=True)
class Block:
    """The tokens of one target call.

    Attributes:
        first: the number of its first step.
        emitted: how many steps it has.
        accepted: how many of them were drafted.
        paths: what was drafted.
    """

    first: int
    emitted: int
    accepted: int
    paths: tuple[tuple[DraftedToken, ...], ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """The record of one generation.

    Attributes:
        version: of warpdraft.
        models: the pair's name.
        speculation: how drafts were made and verified; None without drafts.
        sampling: the run's own law.
        temperature: of all probabilities here, 1 for a greedy run.
        vocabulary: how many tokens there are.
        message: what a chat model answers; None where the text continues the prompt.
        prompt: what the text continues; empty for an answer.
        text: prompt and continuation, as `warpdraft generate` prints them.
        target_calls: of the whole text.
        acceptance_rate: accepted drafted tokens / drafted tokens of one path; None without drafts.
        rules: labels of the compared rules.
        steps: one a token.
        blocks: one a target call.
    """

    version: str
    models: str
    speculation: str | None
    sampling: str
    temperature: float
    vocabulary: int
    message: str | None
    prompt: str
    text: str
    target_calls: int
    acceptance_rate: float | None
    rules: tuple[str, ...]
    steps: tuple[Step, ...]
    blocks: tuple[Block, ...]

    @property
    def block_efficiency(self) -> float:
        """Emitted tokens per target call."""
        return len(self.steps) / self.target_calls

    @property
    def most_uncertain(self) -> int:
        """The number of the step with the largest entropy: the one with most to see."""
        return max(range(len(self.steps)), key=lambda number: self.steps[number].entropy)
