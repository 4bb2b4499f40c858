"""The certificate: does speculation write exactly what plain sampling writes, and accept as often as it should?

Thousands of texts are written after one prompt, each from its own random numbers. Three things are tested:

    law         by the chain rule: after every observed prefix the next token against the target's own processed law
                there, chi-squares summed over the prefixes of a depth
    joint law   the first tokens against as many texts of transformers' plain sampling, so that the certificate does
                not rest on our own law code
    acceptance  of the first drafted token against its closed form, or where a verifier has none for a node, against
                the mean of its exact chances given the drafts

Holm's correction over all tests keeps the chance of any false alarm below the asked one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from scipy import stats
from torch import Tensor

from warpdraft.acceptance import optimal_acceptance
from warpdraft.kernels.noise import Noise
from warpdraft.laws import Law, LawPipeline, NodeLaws
from warpdraft.loop import LoopOptions, generate_tokens
from warpdraft.processors import Prefixes
from warpdraft.verification import DraftBlock, NodeVerifier, VerifiedBlock, Verifier

from .goodness_of_fit import (
    DETECTED,
    ChiSquare,
    one_sample,
    smallest_deviation,
    two_samples,
)
from .paired_summary import holm
from .strategies import Sampling, end_tokens, law_pipeline, warper_arguments
from .watched_verifier import WatchedVerifier

if TYPE_CHECKING:
    from .model_pair import ModelPair

Text = tuple[int, ...]

# texts a call: as many as keep the scored logits within this number of floats
MOST_LOGITS = 1 << 27
MOST_ROWS = 512
# exact chances given the drafts cost milliseconds a text
MOST_SURVIVALS = 1000
# of a closed form: float32 laws, and the bins of the optimal selection
ACCEPTANCE_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Check:
    """One test.

    Attributes:
        name: what is compared.
        samples: texts that enter.
        degrees: of freedom.
        p_value: Holm-corrected.
        smallest_deviation: found with probability 0.95: total variation spread evenly, or a difference of rates.
        note: what was pooled.
    """

    name: str
    samples: int
    degrees: int
    p_value: float
    smallest_deviation: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Certificate:
    """The outcome.

    Attributes:
        checks: all tests.
        false_alarm: chance that sound code fails any of them.
        acceptance: how often the first drafted token was accepted.
        expected_acceptance: how often it should have been.
        optimal_acceptance: alpha*, the most that any rule reaches with as many i.i.d. drafts.
        num_candidates: drafted tokens behind the prompt.
    """

    checks: list[Check]
    false_alarm: float
    acceptance: float
    expected_acceptance: float
    optimal_acceptance: float
    num_candidates: int

    @property
    def failed(self) -> list[Check]:
        """The tests that found a deviation."""
        return [check for check in self.checks if check.p_value < self.false_alarm]


def certify(
    pair: ModelPair,
    input_ids: Tensor,
    sampling: Sampling,
    verifier: Verifier,
    drafting: Mapping[str, Any],
    *,
    samples: int,
    false_alarm: float = 1e-3,
    on_texts: Callable[[str, int], None] = lambda stage, texts: None,
) -> Certificate:
    """Run all tests.

    Args:
        pair: a target and a draft model.
        input_ids: `[1, width]` int64, the prompt.
        sampling: the law; `max_new_tokens` first tokens are tested; the seed.
        verifier: under test.
        drafting: further arguments of `LoopOptions`.
        samples: texts of each kind.
        false_alarm: of the whole certificate.
        on_texts: told a stage and how many texts of it are done.

    Raises:
        ValueError: options that do not fit each other.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if not 0 < false_alarm < 1:
        raise ValueError(f"false_alarm must be in (0, 1), got {false_alarm}")
    tokens = sampling.max_new_tokens
    watch = FirstBlocks(verifier)
    ours: Counter[Text] = Counter()
    for texts in speculative_texts(pair, input_ids, sampling, watch, drafting, samples):
        ours.update(texts)
        on_texts("speculation", len(texts))
    theirs: Counter[Text] = Counter()
    for texts in plain_texts(pair, input_ids, sampling, samples):
        theirs.update(texts)
        on_texts("plain sampling", len(texts))

    level = false_alarm / (tokens + 2)
    checks = [law_check(pair, input_ids, sampling, ours, depth, level) for depth in range(tokens)]
    joint = two_samples(ours, theirs)
    checks.append(
        Check(
            f"first {tokens} tokens, two samples",
            samples,
            joint.degrees,
            joint.p_value,
            smallest_deviation(joint, level, samples=2),
            f"against transformers' plain sampling, {joint.degrees + 1} cells",
        )
    )
    checks.append(watch.check(level))
    corrected = holm([check.p_value for check in checks])
    return Certificate(
        [replace(check, p_value=p_value) for check, p_value in zip(checks, corrected, strict=True)],
        false_alarm,
        watch.acceptance,
        watch.expected_acceptance,
        watch.optimal_acceptance,
        watch.num_candidates,
    )


class FirstBlocks(WatchedVerifier):
    """The verifier under test; of every text's first block it notes what became of the first token.

    Attributes:
        num_candidates: drafted tokens behind the prompt.
        optimal_acceptance: alpha* there.
    """

    def __init__(self, inner: Verifier) -> None:
        super().__init__(inner)
        self.num_candidates = 0
        self.optimal_acceptance = 0.0
        self._first = True
        self._accepted: list[bool] = []
        self._survival: list[float] = []
        self._closed_form: float | None = None

    def next_is_first(self) -> None:
        """A new batch of texts begins."""
        self._first = True

    def verify(self, block: DraftBlock, noise: Noise) -> VerifiedBlock:
        """As the verifier inside."""
        verified = super().verify(block, noise)
        if self._first:
            if not self._accepted:
                self._look_at_root(block)
            self._accepted += (verified.num_accepted > 0).tolist()
            missing = MOST_SURVIVALS - len(self._survival)
            if self._closed_form is None and missing > 0:
                chances = self.inner.survival(FirstRows(block, missing))
                self._survival += chances[:, 0].tolist()
            self._first = False
        return verified

    def _look_at_root(self, block: DraftBlock) -> None:
        """Number of candidates, alpha*, and the closed form where the verifier has one."""
        node = block.drawn.new_zeros(1, dtype=torch.int64)
        laws = NodeLaws.of(block.target(node, node, 0), block.draft(node, node, 0))
        count = block.drawn[:, :, 0].sum(1)
        self.num_candidates = int(count.max())
        self.optimal_acceptance = float(
            optimal_acceptance(laws.target, laws.draft, self.num_candidates)
        )
        if isinstance(self.inner, NodeVerifier) and int(count.min()) == self.num_candidates:
            # the law of some verifiers is too much work for many candidates: then the drafts are looked at
            with suppress(ValueError):
                self._closed_form = float(
                    self.inner.expected_acceptance(laws.target, laws.draft, self.num_candidates)
                )

    @property
    def _compared(self) -> list[bool]:
        """The texts whose chances are known."""
        closed = self._closed_form is not None
        return self._accepted if closed else self._accepted[: len(self._survival)]

    @property
    def acceptance(self) -> float:
        """Observed rate of the texts that are compared."""
        return sum(self._compared) / len(self._compared)

    @property
    def expected_acceptance(self) -> float:
        """What it should be."""
        if self._closed_form is not None:
            return self._closed_form
        return sum(self._survival) / len(self._survival)

    def check(self, level: float) -> Check:
        """A binomial test; for chances that differ from text to text it is on the safe side."""
        samples, accepted = len(self._compared), sum(self._compared)
        expected = self.expected_acceptance
        nearest = min(
            max(self.acceptance, expected - ACCEPTANCE_TOLERANCE), expected + ACCEPTANCE_TOLERANCE
        )
        p_value = stats.binomtest(accepted, samples, min(max(nearest, 0.0), 1.0)).pvalue
        scatter = math.sqrt(max(expected * (1 - expected), 0.0) / samples)
        deviation = float(stats.norm.isf(level / 2) + stats.norm.ppf(DETECTED)) * scatter
        source = "closed form" if self._closed_form is not None else "chances given the drafts"
        return Check(
            "first drafted token accepted",
            samples,
            1,
            float(p_value),
            min(1.0, deviation + ACCEPTANCE_TOLERANCE),
            f"{self.acceptance:.4f}, {source} {expected:.4f}",
        )


class FirstRows:
    """The first texts of a block.

    Attributes:
        draft_token_ids: `[batch, K, L]` int64.
        drawn: `[batch, K, L]` bool.
        status: `[batch]` int8.
    """

    def __init__(self, block: DraftBlock, rows: int) -> None:
        self.draft_token_ids = block.draft_token_ids[:rows]
        self.drawn = block.drawn[:rows]
        self.status = block.status[:rows]
        self._block = block

    def target(self, rows: Tensor, path: Tensor, depth: int) -> Law:
        """Target law of the nodes."""
        return self._block.target(rows, path, depth)

    def draft(self, rows: Tensor, path: Tensor, depth: int) -> Law:
        """Draft law of the nodes."""
        return self._block.draft(rows, path, depth)


def law_check(
    pair: ModelPair,
    input_ids: Tensor,
    sampling: Sampling,
    texts: Mapping[Text, int],
    depth: int,
    level: float,
) -> Check:
    """The token at `depth` against the target's law after every prefix of so many tokens.

    Prefixes that are too rare for a chi-square of their own share one: there the cells are the ranks of the token in
    the law after its prefix, 1, 2-3, 4-7 and so on.
    """
    following: dict[Text, Counter[int]] = {}
    for text, count in texts.items():
        if len(text) > depth:
            following.setdefault(text[:depth], Counter())[text[depth]] += count
    total, rare = ChiSquare(), RareTexts()
    alone = 0
    for prefix, law in laws_after(pair, input_ids, sampling, list(following)):
        counts = torch.zeros_like(law)
        for token, count in following[prefix].items():
            counts[token] = count
        test = one_sample(counts.tolist(), law.tolist())
        if test.degrees > 0:
            total, alone = total + test, alone + 1
        else:
            rare.add(counts, law)
    total = total + rare.test()
    note = f"{alone:,} prefixes" if depth > 0 else "the target's law"
    if rare.samples > 0:
        note += f"; {rare.samples:,} samples after rare ones pooled by rank"
    given = {0: "", 1: " after token 1"}.get(depth, f" after tokens 1-{depth}")
    return Check(
        f"token {depth + 1}{given}",
        total.samples,
        total.degrees,
        total.p_value,
        smallest_deviation(total, level),
        note,
    )


class RareTexts:
    """Next tokens after rare prefixes, counted by their rank in the law there.

    The counts are a sum of multinomials, which scatters less than one multinomial of the mean law: the test is on the
    safe side.

    Attributes:
        samples: how many.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._observed: Counter[int] = Counter()
        self._expected: Counter[int] = Counter()
        self._impossible = 0

    def add(self, counts: Tensor, law: Tensor) -> None:
        """Counts and law over the vocabulary, `[vocab]` each."""
        samples = int(counts.sum())
        self.samples += samples
        self._impossible += int(counts[law == 0].sum())
        order = law.argsort(descending=True)
        law, counts = law[order], counts[order]
        start, width, bucket = 0, 1, 0
        while start < len(law):
            some = slice(start, start + width)
            self._observed[bucket] += int(counts[some].sum())
            self._expected[bucket] += samples * float(law[some].sum())  # type: ignore[assignment]
            start, width, bucket = start + width, 2 * width, bucket + 1

    def test(self) -> ChiSquare:
        """One statistic for all of them."""
        expected = [self._expected[bucket] for bucket in self._expected]
        if self.samples == 0:
            return ChiSquare()
        observed = [self._observed[bucket] for bucket in self._expected]
        probs = [each / self.samples for each in expected]
        return one_sample(observed, probs) + ChiSquare(impossible=self._impossible)


@torch.no_grad()
def laws_after(
    pair: ModelPair, input_ids: Tensor, sampling: Sampling, prefixes: list[Text]
) -> Iterator[tuple[Text, Tensor]]:
    """The target's processed law after the prompt and each prefix, `[vocab]` float64, without any cache."""
    pipeline: LawPipeline = law_pipeline(sampling)
    vocab = pair.target.config.get_text_config().vocab_size
    rows = max(1, min(MOST_ROWS, MOST_LOGITS // vocab))
    for start in range(0, len(prefixes), rows):
        some = prefixes[start : start + rows]
        head = input_ids.expand(len(some), -1)
        tail = torch.tensor(some, dtype=torch.int64, device=input_ids.device).view(len(some), -1)
        token_ids = torch.cat([head, tail], dim=1)
        target: Any = pair.target
        logits = target(input_ids=token_ids).logits[:, -1].to(input_ids.device)
        length = torch.full_like(token_ids[:, 0], token_ids.shape[1])
        row = torch.arange(len(some), device=input_ids.device)
        law = pipeline(logits, Prefixes(token_ids, length, row, len(some))).dense()
        yield from zip(some, law.probs.double().cpu(), strict=True)


def speculative_texts(
    pair: ModelPair,
    input_ids: Tensor,
    sampling: Sampling,
    watch: FirstBlocks,
    drafting: Mapping[str, Any],
    samples: int,
) -> Iterator[list[Text]]:
    """Texts of our loop, in batches: each of the batch has a name of its own, so all are independent."""
    tokens, width = sampling.max_new_tokens, input_ids.shape[1]
    length, paths = drafting["draft_length"], drafting["num_drafts"]
    vocab = pair.target.config.get_text_config().vocab_size
    rows = max(1, min(MOST_ROWS, MOST_LOGITS // (vocab * paths * (length + 1))))
    ends = end_tokens(pair.target)
    for start in range(0, samples, rows):
        count = min(rows, samples - start)
        watch.next_is_first()
        options = LoopOptions(
            # room for whole blocks: texts stop earlier, and what is drafted behind them has its real law
            max_length=width + tokens + length,
            pad_token_id=0,
            verifier=watch,
            eos_token_ids=ends,
            stopping=(lambda token_ids, scores: _full(token_ids, width + tokens),),
            seed=sampling.seed,
            sequence=torch.arange(start, start + count, device=input_ids.device),
            **drafting,
        )
        pipeline = law_pipeline(sampling)
        generated = generate_tokens(
            pair.target, pair.draft, input_ids.expand(count, -1), None, pipeline, options
        )
        yield texts_of(generated.token_ids[:, width : width + tokens], ends)


def plain_texts(
    pair: ModelPair, input_ids: Tensor, sampling: Sampling, samples: int
) -> Iterator[list[Text]]:
    """Texts of transformers' own sampling, in batches."""
    torch.manual_seed(sampling.seed)
    vocab = pair.target.config.get_text_config().vocab_size
    rows = max(1, min(MOST_ROWS, MOST_LOGITS // vocab))
    arguments = sampling.generate_arguments() | warper_arguments(sampling)
    target: Any = pair.target
    for start in range(0, samples, rows):
        prompts = input_ids.expand(min(rows, samples - start), -1)
        written = target.generate(prompts, attention_mask=torch.ones_like(prompts), **arguments)
        yield texts_of(written[:, input_ids.shape[1] :], end_tokens(pair.target))


def texts_of(token_ids: Tensor, ends: tuple[int, ...]) -> list[Text]:
    """Rows of new tokens, each up to and with its first end token."""
    texts = []
    for row in token_ids.tolist():
        stop = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
        texts.append(tuple(row[:stop]))
    return texts


def _full(token_ids: Tensor, length: int) -> Tensor:
    """Whether texts of this length are finished."""
    return torch.full((len(token_ids),), token_ids.shape[1] >= length, device=token_ids.device)
