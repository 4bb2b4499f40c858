"""Block efficiency of the verifiers over draft paths and draft length, against plain sampling.

Each call of `generate` is one sample of (emitted tokens, target calls). Block efficiency is the
ratio of their sums; its standard error is that of a ratio estimator (Cochran 1977, section 2.11):

    R = sum(e) / sum(c),   error^2 = n / (n - 1) * sum((e - R c)^2) / sum(c)^2
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from .strategies import Run, Sampling, Speculation, run_plain, run_warpdraft

if TYPE_CHECKING:
    from transformers import BatchEncoding

    from .model_pair import ModelPair

Strategy = Callable[["BatchEncoding", Sampling], Run]
PLAIN = Speculation(num_drafts=0, draft_length=0, verifier="plain")


@dataclass(frozen=True, slots=True)
class Measurement:
    """One line of the result; plain sampling drafts nothing and has the ratio 1."""

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
        ValueError: fewer than two calls, which have no standard error.
    """
    starts = range(0, len(prompts), batch_size)
    if len(starts) < 2:
        raise ValueError(
            f"a standard error needs at least two calls, {len(prompts)} prompts in batches of "
            f"{batch_size} give {len(starts)}"
        )
    batches = [pair.encode(list(prompts[i : i + batch_size]), raw=True) for i in starts]
    strategies: dict[Speculation, Strategy] = {PLAIN: partial(run_plain, pair)}
    strategies |= {each: partial(run_warpdraft, pair, speculation=each) for each in settings}
    # a setting that cannot run says so here, before the first is measured
    for strategy in strategies.values():
        strategy(batches[0], sampling.warm_up())
    plain_speed = 0.0
    for setting, strategy in strategies.items():
        runs = []
        for number, batch in enumerate(batches):
            on_call(str(setting))
            runs.append(strategy(batch, replace(sampling, seed=sampling.seed + number)))
        plain_speed = plain_speed or speed(runs)
        yield summarise(setting, len(prompts), runs, plain_speed)


def speed(runs: Sequence[Run]) -> float:
    """Emitted tokens a second over all calls."""
    return sum(run.tokens for run in runs) / sum(run.seconds for run in runs)


def summarise(
    setting: Speculation, prompts: int, runs: Sequence[Run], plain_speed: float
) -> Measurement:
    """The ratio of sums, its standard error, and the speed beside plain sampling's."""
    emitted, calls = sum(run.tokens for run in runs), sum(run.target_calls for run in runs)
    efficiency = emitted / calls
    scatter = sum((run.tokens - efficiency * run.target_calls) ** 2 for run in runs)
    drafted, accepted = sum(run.drafted for run in runs), sum(run.accepted for run in runs)
    return Measurement(
        verifier=setting.verifier,
        num_drafts=setting.num_drafts,
        draft_length=setting.draft_length,
        prompts=prompts,
        emitted_tokens=emitted,
        target_calls=calls,
        block_efficiency=efficiency,
        block_efficiency_error=math.sqrt(scatter * len(runs) / (len(runs) - 1)) / calls,
        acceptance_rate=accepted / drafted if drafted else None,
        tokens_per_second=speed(runs),
        ratio_to_plain=speed(runs) / plain_speed,
    )
