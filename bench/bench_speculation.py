"""Block efficiency of the verifiers over draft paths and draft length, against plain sampling.

Each text is one sample of (emitted tokens, target calls). Block efficiency is the ratio of their sums; its standard
error is that of a ratio estimator (Cochran 1977, section 2.11):

    R = sum(e) / sum(c),   error^2 = n / (n - 1) * sum((e - R c)^2) / sum(c)^2

alpha* is the mean of the bound over the first texts' roots of every eighth block: what it costs is not in the times.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from warpdraft.acceptance import optimal_acceptance
from warpdraft.kernels.noise import Noise
from warpdraft.laws import NodeLaws
from warpdraft.structures import Structure
from warpdraft.verification import VERIFIERS, DraftBlock, Selector, VerifiedBlock, Verifier

from .strategies import Run, Sampling, Speculation, run_plain, run_warpdraft
from .watched_verifier import WatchedVerifier

if TYPE_CHECKING:
    from transformers import BatchEncoding

    from .model_pair import ModelPair

Strategy = Callable[["BatchEncoding", Sampling], Run]
PLAIN = Speculation(num_drafts=0, draft_length=0, verifier="plain")
# blocks between two looks at alpha*
BOUND_EVERY = 8
# a difference of so many standard errors is no accident
CLEAR = 2.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """One line of the result; plain sampling drafts nothing and has the ratio 1.

    Attributes:
        verifier: its name.
        num_drafts: K.
        draft_length: L.
        prompts: texts.
        emitted_tokens: of all texts.
        target_calls: of all texts.
        block_efficiency: their ratio.
        block_efficiency_error: its standard error.
        acceptance_rate: accepted drafted tokens / drafted tokens of one path.
        tokens_per_second: over the wall time of the calls, prompts included.
        ratio_to_plain: of the speeds.
        selector: asked for.
        num_top: asked for.
        structure: of the drafts.
        node_budget: asked for.
        optimal_acceptance: mean alpha* at the looked-at roots, for as many i.i.d. drafts.
        acceptance_by_position: rate of the i-th drafted token, over the calls that drafted it.
        seconds: by stage: "prefill", "draft", "target", "verify", "commit".
    """

    verifier: str
    num_drafts: int
    draft_length: int
    prompts: int
    emitted_tokens: int
    target_calls: int
    block_efficiency: float
    block_efficiency_error: float
    acceptance_rate: float | None
    tokens_per_second: float
    ratio_to_plain: float
    selector: str | None
    num_top: int | None
    structure: str
    node_budget: int | None
    optimal_acceptance: float | None
    acceptance_by_position: list[float]
    seconds: dict[str, float]

    @property
    def label(self) -> str:
        """Verifier and options."""
        return self._setting().label

    def __str__(self) -> str:
        return str(self._setting())

    def _setting(self) -> Speculation:
        return Speculation(
            self.num_drafts,
            self.draft_length,
            self.verifier,
            selector=self.selector,  # type: ignore[arg-type]
            num_top=self.num_top,
            structure=self.structure,  # type: ignore[arg-type]
            node_budget=self.node_budget,
        )


def settings(
    verifiers: Sequence[str],
    num_drafts: Sequence[int],
    draft_lengths: Sequence[int],
    *,
    selectors: Sequence[Selector | None] = (None,),
    structures: Sequence[Structure] = ("paths",),
    template: Speculation = PLAIN,
) -> list[Speculation]:
    """Every combination that its verifier takes; one of several that takes none of the options goes without.

    Args:
        verifiers: names; "all" for every one.
        num_drafts: K.
        draft_lengths: L.
        selectors: None for the verifier's own.
        structures: of the drafts.
        template: holds the other options.

    Raises:
        ValueError: a verifier takes none of them; then why not.
    """
    names = list(VERIFIERS) if list(verifiers) == ["all"] else list(verifiers)
    found = []
    for name in names:
        asked = [
            replace(
                template,
                verifier=name,
                num_drafts=paths,
                draft_length=length,
                selector=selector,
                structure=structure,
            )
            for length, selector, structure, paths in itertools.product(
                draft_lengths, selectors, structures, num_drafts
            )
        ]
        taken, refusal = those_taken(asked)
        if not taken and len(names) > 1:
            # among others a verifier without such options takes part as it is
            bare = [
                Speculation(each.num_drafts, each.draft_length, name, layout=each.layout)
                for each in asked
            ]
            taken, refusal = those_taken(list(dict.fromkeys(bare)))
        if refusal is not None and not taken and list(verifiers) != ["all"]:
            raise refusal
        found += taken
    if not found:
        raise ValueError(f"no verifier takes num_drafts in {list(num_drafts)}")
    return found


def those_taken(asked: Sequence[Speculation]) -> tuple[list[Speculation], ValueError | None]:
    """The settings that are sound, and what is wrong with the last one that is not."""
    taken, refusal = [], None
    for setting in asked:
        try:
            setting.check()
        except ValueError as error:
            refusal = error
        else:
            taken.append(setting)
    return taken, refusal


class RootBounds(WatchedVerifier):
    """Notes alpha* at the first text's root, now and then.

    Attributes:
        bounds: as they came.
        seconds: that it took.
    """

    def __init__(self, inner: Verifier) -> None:
        super().__init__(inner)
        self.bounds: list[float] = []
        self.seconds = 0.0
        self._blocks = 0

    def verify(self, block: DraftBlock, noise: Noise) -> VerifiedBlock:
        """As the verifier inside."""
        start = time.perf_counter()
        if self._blocks % BOUND_EVERY == 0 and block.draft_token_ids.shape[2] > 0:
            node = torch.zeros(1, dtype=torch.int64, device=block.drawn.device)
            laws = NodeLaws.of(block.target(node, node, 0), block.draft(node, node, 0))
            candidates = int(block.drawn[0, :, 0].sum())
            if bool((block.status == 0).all()) and candidates > 0:
                self.bounds.append(float(optimal_acceptance(laws.target, laws.draft, candidates)))
        self._blocks += 1
        self.seconds += time.perf_counter() - start
        return super().verify(block, noise)


def run_watched(
    pair: ModelPair,
    setting: Speculation,
    bounds: list[float],
    inputs: BatchEncoding,
    sampling: Sampling,
) -> Run:
    """One call, alpha* added to `bounds` and what that took left out of the times.

    Drafts that are no draws from one law have no such bound.
    """
    if pair.lookup is not None:
        return run_warpdraft(pair, inputs, sampling, setting)
    watch = RootBounds(setting.make_verifier())
    run = run_warpdraft(pair, inputs, sampling, setting, verifier=watch)
    bounds += watch.bounds
    if run.stats is not None and "verify" in run.stats.seconds:
        run.stats.seconds["verify"] -= watch.seconds
    return replace(run, seconds=run.seconds - watch.seconds)


def measure(
    pair: ModelPair,
    prompts: Sequence[str],
    sampling: Sampling,
    settings: Sequence[Speculation],
    *,
    batch_size: int = 1,
    on_call: Callable[[str], None] = lambda strategy: None,
) -> Iterator[Measurement]:
    """Measure plain sampling, then every setting, on the same prompts.

    Args:
        pair: a target and a draft model.
        prompts: texts to continue, as they are.
        sampling: the law; the i-th call takes the seed `sampling.seed + i`.
        settings: what to measure, in this order.
        batch_size: prompts a call.
        on_call: told the strategy's name before each call.

    Raises:
        ValueError: fewer than two prompts, which have no standard error.
    """
    if len(prompts) < 2:
        raise ValueError(f"a standard error needs at least two prompts, got {len(prompts)}")
    starts = range(0, len(prompts), batch_size)
    batches = [pair.encode(list(prompts[i : i + batch_size]), raw=True) for i in starts]
    bounds: dict[Speculation, list[float]] = {each: [] for each in (PLAIN, *settings)}
    strategies: dict[Speculation, Strategy] = {PLAIN: partial(run_plain, pair)}
    strategies |= {each: partial(run_watched, pair, each, bounds[each]) for each in settings}
    # a setting that cannot run says so here, before the first is measured
    for setting, strategy in strategies.items():
        strategy(batches[0], sampling.warm_up())
        bounds[setting].clear()
    plain_speed = 0.0
    for setting, strategy in strategies.items():
        runs = []
        for number, batch in enumerate(batches):
            on_call(str(setting))
            runs.append(strategy(batch, replace(sampling, seed=sampling.seed + number)))
        plain_speed = plain_speed or speed(runs)
        yield summarise(setting, runs, bounds[setting], plain_speed)


def speed(runs: Sequence[Run]) -> float:
    """Emitted tokens a second over all calls."""
    return sum(run.tokens for run in runs) / sum(run.seconds for run in runs)


def summarise(
    setting: Speculation, runs: Sequence[Run], bounds: Sequence[float], plain_speed: float
) -> Measurement:
    """The ratio of sums, its standard error, and the speed beside plain sampling's."""
    texts = [row for run in runs for row in zip(run.tokens_by_row, run.calls_by_row, strict=True)]
    emitted, calls = (sum(column) for column in zip(*texts, strict=True))
    efficiency = emitted / calls
    scatter = sum((tokens - efficiency * own_calls) ** 2 for tokens, own_calls in texts)
    stats = [run.stats for run in runs if run.stats is not None]
    drafted = sum(each.drafted_tokens for each in stats)
    by_position = [
        sum(accepted) / max(sum(of), 1)
        for accepted, of in zip(
            itertools.zip_longest(*(each.accepted_by_position for each in stats), fillvalue=0),
            itertools.zip_longest(*(each.drafted_by_position for each in stats), fillvalue=0),
            strict=True,
        )
    ]
    stages = {stage for each in stats for stage in each.seconds}
    return Measurement(
        verifier=setting.verifier,
        num_drafts=setting.num_drafts,
        draft_length=setting.draft_length,
        prompts=len(texts),
        emitted_tokens=emitted,
        target_calls=calls,
        block_efficiency=efficiency,
        block_efficiency_error=math.sqrt(scatter * len(texts) / (len(texts) - 1)) / calls,
        acceptance_rate=sum(each.accepted_tokens for each in stats) / drafted if drafted else None,
        tokens_per_second=speed(runs),
        ratio_to_plain=speed(runs) / plain_speed,
        selector=setting.selector,
        num_top=setting.num_top,
        structure=setting.structure,
        node_budget=setting.node_budget,
        optimal_acceptance=sum(bounds) / len(bounds) if bounds else None,
        acceptance_by_position=by_position,
        seconds={
            stage: sum(each.seconds.get(stage, 0.0) for each in stats) for stage in sorted(stages)
        },
    )


def recommendation(measurements: Sequence[Measurement]) -> list[str]:
    """Which setting writes fastest, and which makes the most of a target call."""
    plain, *drafted = measurements
    fastest = max(drafted, key=lambda line: line.tokens_per_second)
    most = max(drafted, key=lambda line: line.block_efficiency)
    advice = [
        f"fastest: {fastest}, {fastest.tokens_per_second:.1f} tokens/s, "
        f"{fastest.ratio_to_plain:.2f} times plain sampling"
    ]
    if fastest.tokens_per_second <= plain.tokens_per_second:
        advice.append("plain sampling is faster: here the draft costs more than it saves")
    if most != fastest:
        gain = most.block_efficiency - fastest.block_efficiency
        error = math.hypot(most.block_efficiency_error, fastest.block_efficiency_error)
        clear = "" if gain > CLEAR * error else ", which lies within its error"
        advice.append(
            f"most tokens a target call: {most}, {most.block_efficiency:.2f}: "
            f"{gain:.2f} ± {error:.2f} more than the fastest{clear}"
        )
    return advice
