"""Reads the record of a generation off the rows that were kept of it.

What a rule keeps is read off `warpdraft.resolve`, the same supports that `truncate` and `sample` work with. Everything
else is plain float64 arithmetic on the whole row.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from warpdraft import TopH, __version__
from warpdraft.kernels.support import Support, contains
from warpdraft.rules import Rule
from warpdraft.truncation import check_status, resolve

from .inspection import Block, Candidate, DraftedToken, Inspection, Reading, Role, Step
from .rule_names import NamedRules, label_of
from .strategies import end_tokens
from .token_texts import Vocabulary, agreement, pieces

if TYPE_CHECKING:
    from .model_pair import ModelPair
    from .strategies import Sampling, Speculation
    from .watched_generation import Watched, WatchedBlock

# points of the whole law's curve, even in the logarithm of the rank
CURVE_POINTS = 48


def inspect_generation(
    pair: ModelPair,
    watched: Watched,
    sampling: Sampling,
    speculation: Speculation,
    compared: Sequence[NamedRules],
    *,
    top: int,
    message: str | None = None,
) -> Inspection:
    """The record of a generation.

    Args:
        pair: the models that wrote it.
        watched: what was kept of it.
        sampling: its law.
        speculation: how it was drafted and verified.
        compared: the rules to compare at every step.
        top: how many of the most likely tokens to list.
        message: what a chat model answers; None where the text continues the prompt.
    """
    temperature = sampling.temperature or 1.0
    vocabulary = Vocabulary(pair.tokenizer)
    context = watched.prompt_ids if message is None else ()
    prompt, *written = pieces(pair.tokenizer, context, watched.token_ids)
    blocks = trimmed(watched.blocks, end_tokens(pair.target))
    steps: list[Step] = []
    for number, block in enumerate(blocks):
        for place in range(block.emitted):
            position = len(steps)
            law = StepLaw(
                watched.logits[position],
                watched.scores[position],
                block.draft_laws[place] if place < len(block.draft_laws) else None,
                watched.token_ids[position],
                temperature,
            )
            steps.append(
                law.step(
                    vocabulary,
                    compared,
                    piece=written[position],
                    role=role_of(block, place),
                    block=number,
                    top=top,
                )
            )
    return Inspection(
        version=__version__,
        models=pair.name,
        speculation=None if pair.source is None else str(speculation),
        sampling=described(sampling),
        temperature=temperature,
        vocabulary=len(watched.logits[0]),
        message=message,
        prompt=prompt,
        text=prompt + "".join(written),
        target_calls=watched.stats.target_calls,
        acceptance_rate=None if pair.source is None else watched.stats.acceptance_rate,
        rules=tuple(rules.label for rules in compared),
        steps=tuple(steps),
        blocks=tuple(read_blocks(watched, blocks, vocabulary)),
    )


class StepLaw:
    """The law of one step.

    Args:
        logits: `[vocab]` float, untempered, -inf for tokens that cannot come.
        scores: `[vocab]` float that the token was drawn from, -inf outside the run's support.
        draft_law: `[vocab]` probabilities; None where nothing was drafted.
        token_id: the drawn token.
        temperature: above 0.
    """

    def __init__(
        self,
        logits: Tensor,
        scores: Tensor,
        draft_law: Tensor | None,
        token_id: int,
        temperature: float,
    ) -> None:
        self.logits, self.temperature, self.token_id = logits, temperature, token_id
        self.draft_law = draft_law
        tempered = logits.double() / temperature
        self.log_total = torch.logsumexp(tempered, 0)
        self.probs = torch.softmax(tempered, 0)
        self.drawable = scores > -torch.inf
        self.drawn_law = torch.softmax(scores.double(), 0)
        # descending, and of equal logits the lowest id first: the order that the rules go by
        self.order = logits.sort(descending=True, stable=True).indices

    def step(
        self,
        vocabulary: Vocabulary,
        compared: Sequence[NamedRules],
        *,
        piece: str,
        role: Role,
        block: int,
        top: int,
    ) -> Step:
        """The record of the step."""
        supports = [self.support(rules.rules) for rules in compared]
        kept = [self.kept(support) for support in supports]
        bounds = [self.bound(rules.rules) for rules in compared]
        rank = int((self.order == self.token_id).nonzero()) + 1
        ranks = sorted({*range(1, min(top, len(self.order)) + 1), rank})
        return Step(
            token=vocabulary[self.token_id],
            piece=piece,
            role=role,
            block=block,
            rank=rank,
            probability=float(self.probs[self.token_id]),
            drawn_probability=float(self.drawn_law[self.token_id]),
            entropy=entropy(self.probs),
            drawable=int(self.drawable.sum()),
            readings=tuple(map(self.reading, supports, kept, bounds)),
            candidates=tuple(self.candidate(vocabulary, place, kept) for place in ranks),
            curve=self.curve(),
        )

    def support(self, rules: Sequence[Rule]) -> Support:
        """What the rules keep, as thresholds."""
        resolved = resolve(self.logits[None], rules, temperature=self.temperature)
        check_status(resolved.status.tolist())
        return resolved.support

    def kept(self, support: Support) -> Tensor:
        """Which tokens those are: bool `[vocab]`."""
        return contains(self.logits[None], support)[0]

    def reading(self, support: Support, kept: Tensor, bound: float | None) -> Reading:
        """What a support is of the law."""
        mass = float(self.probs[kept].sum())
        first = int(kept[self.order].to(torch.int8).argmax())
        return Reading(
            count=int(kept.sum()),
            kept_mass=mass,
            kept_entropy=entropy(self.probs[kept] / mass),
            threshold=self.probability_at(float(support.value)),
            upper=None if first == 0 else self.probability_at(float(support.upper)),
            first_rank=first + 1,
            bound=bound,
            keeps_drawn=bool(kept[self.token_id]),
        )

    def bound(self, rules: Sequence[Rule]) -> float | None:
        """alpha H of the paper's top-H, H that of the law which the rules before the last such rule leave."""
        for number, rule in reversed(list(enumerate(rules))):
            if isinstance(rule, TopH) and rule.variant == "paper":
                left = self.probs[self.kept(self.support(rules[:number]))]
                return float(rule.alpha) * entropy(left / left.sum())
        return None

    def candidate(self, vocabulary: Vocabulary, rank: int, kept: Sequence[Tensor]) -> Candidate:
        """The token of that rank."""
        token_id = int(self.order[rank - 1])
        return Candidate(
            token=vocabulary[token_id],
            rank=rank,
            probability=float(self.probs[token_id]),
            draft_probability=None if self.draft_law is None else float(self.draft_law[token_id]),
            drawable=bool(self.drawable[token_id]),
            kept_by=tuple(number for number, each in enumerate(kept) if each[token_id]),
        )

    def curve(self) -> tuple[tuple[int, float], ...]:
        """Rank and probability, down to the last token that can come."""
        size = int((self.probs > 0).sum())
        points = torch.logspace(0, torch.tensor(size).log10().item(), CURVE_POINTS)
        ranks = points.round().long().clamp(1, size).unique().tolist()
        return tuple((rank, float(self.probs[self.order[rank - 1]])) for rank in ranks)

    def probability_at(self, logit: float) -> float:
        """The probability of a token of that logit."""
        return float(torch.exp(logit / self.temperature - self.log_total))


def described(sampling: Sampling) -> str:
    """The run's own law in words."""
    if sampling.temperature == 0:
        return f"greedy, probabilities at temperature 1, seed {sampling.seed}"
    rules = ", ".join(map(label_of, sampling.rules)) or "no rules"
    return f"temperature {sampling.temperature:g}, {rules}, seed {sampling.seed}"


def entropy(probs: Tensor) -> float:
    """Of probabilities `[n]`, in nats."""
    return float(torch.special.entr(probs).sum())


def role_of(block: WatchedBlock, place: int) -> Role:
    """How the token at that place of a block came about."""
    if not block.paths:
        return "drawn"
    if place < block.num_accepted:
        return "accepted"
    return "bonus" if block.is_bonus else "recovered"


def trimmed(blocks: Sequence[WatchedBlock], ends: Sequence[int]) -> list[WatchedBlock]:
    """The blocks without what was drafted behind an end token or behind the end of the text: nothing comes there."""
    result = []
    for number, block in enumerate(blocks):
        most = block.emitted if number + 1 == len(blocks) else sys.maxsize
        lengths = [min(most, length_until(path, ends)) for path in block.paths]
        cut = zip(lengths, block.paths, block.path_probs, strict=True)
        kept = [(path[:length], probs[:length]) for length, path, probs in cut]
        paths, path_probs = zip(*kept, strict=True) if kept else ((), ())
        result.append(replace(block, paths=paths, path_probs=path_probs))
    return result


def length_until(path: Sequence[int], ends: Sequence[int]) -> int:
    """Tokens up to and with the first end token."""
    return next((place + 1 for place, token in enumerate(path) if token in ends), len(path))


def read_blocks(
    watched: Watched, blocks: Sequence[WatchedBlock], vocabulary: Vocabulary
) -> Iterator[Block]:
    """What was drafted in each block, and which of it was accepted."""
    first = 0
    for block in blocks:
        emitted = watched.token_ids[first : first + block.emitted]
        laws = [
            score.double().softmax(0) for score in watched.scores[first : first + block.emitted]
        ]
        paths = []
        for path, probs in zip(block.paths, block.path_probs, strict=True):
            agreeing = agreement(path, emitted[: block.num_accepted])
            paths.append(
                tuple(
                    DraftedToken(
                        token=vocabulary[token],
                        accepted=place < agreeing,
                        draft_probability=prob,
                        target_probability=float(laws[place][token])
                        if place <= agreeing and place < len(laws)
                        else None,
                    )
                    for place, (token, prob) in enumerate(zip(path, probs, strict=True))
                )
            )
        yield Block(first, block.emitted, block.num_accepted, tuple(paths))
        first += block.emitted
