"""The three ways to sample that are compared: warpdraft, plain sampling, assisted generation.

All three follow the same processed law. Plain and assisted are `model.generate` of transformers,
with its own warpers in place of the rules.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BatchEncoding
    from transformers.generation.streamers import BaseStreamer

    from warpdraft.rules import Rule

    from .model_pair import ModelPair


@dataclass(frozen=True, slots=True)
class Sampling:
    """What to sample: the processed law, the length and the seed."""

    rules: tuple[Rule, ...]
    temperature: float
    max_new_tokens: int
    seed: int

    def __str__(self) -> str:
        rules = ", ".join(str(rule) for rule in self.rules) or "no rules"
        return f"temperature {self.temperature:g}, {rules}, seed {self.seed}"

    def warm_up(self) -> Sampling:
        """The same law for a few tokens, in which caches, threads and lazy imports settle."""
        return replace(self, max_new_tokens=min(self.max_new_tokens, 8))

    def generate_arguments(self) -> dict[str, Any]:
        """The arguments of `generate` that all strategies share, no warper but temperature on."""
        arguments = {"max_new_tokens": self.max_new_tokens, "do_sample": self.temperature != 0}
        if self.temperature == 0:
            return arguments
        return arguments | {"temperature": self.temperature, "top_k": 0, "top_p": 1.0}


@dataclass(frozen=True, slots=True)
class Speculation:
    """How to draft and verify."""

    num_drafts: int
    draft_length: int
    verifier: str

    def __str__(self) -> str:
        return f"{self.verifier}, {self.num_drafts} x {self.draft_length}"


@dataclass(frozen=True, slots=True)
class Run:
    """What one call of one strategy wrote and what it cost, summed over the rows of its batch."""

    strategy: str
    tokens: int
    target_calls: int
    seconds: float
    drafted: int = 0
    accepted: int = 0

    @property
    def block_efficiency(self) -> float:
        """Emitted tokens per target call."""
        return self.tokens / self.target_calls

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted drafted tokens / drafted tokens of one path; None where nobody counted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def tokens_per_second(self) -> float:
        """Emitted tokens over the wall time of the whole call, prompt included."""
        return self.tokens / self.seconds


def run_warpdraft(
    pair: ModelPair,
    inputs: BatchEncoding,
    sampling: Sampling,
    speculation: Speculation,
    *,
    streamer: BaseStreamer | None = None,
) -> Run:
    """warpdraft's loop: speculation with a draft model, fused sampling without one."""
    from warpdraft.integrations.transformers import SpeculativeOutput, generate

    start = time.perf_counter()
    output = generate(
        pair.target,
        pair.draft,
        **inputs,
        **sampling.generate_arguments(),
        rules=sampling.rules,
        num_drafts=speculation.num_drafts,
        draft_length=speculation.draft_length,
        verifier=speculation.verifier,
        seed=sampling.seed,
        streamer=streamer,
        return_dict_in_generate=True,
    )
    seconds = time.perf_counter() - start
    assert isinstance(output, SpeculativeOutput)
    stats = output.stats
    assert stats is not None
    return Run(
        "warpdraft",
        stats.emitted_tokens,
        stats.target_calls,
        seconds,
        stats.drafted_tokens,
        stats.accepted_tokens,
    )


def run_plain(pair: ModelPair, inputs: BatchEncoding, sampling: Sampling) -> Run:
    """Plain sampling by transformers: every row takes part in one target call a token."""
    tokens, _, seconds = run_transformers(pair, inputs, sampling)
    return Run("plain sampling", tokens, tokens, seconds)


def run_assisted(
    pair: ModelPair, inputs: BatchEncoding, sampling: Sampling, draft_length: int
) -> Run:
    """transformers' assisted generation of one sequence, at a constant draft length.

    Raises:
        ValueError: no draft model.
    """
    if pair.draft is None:
        raise ValueError("assisted generation needs a draft model")
    usual = pair.draft.generation_config
    pair.draft.generation_config = constant = copy.deepcopy(usual)
    constant.num_assistant_tokens = draft_length
    constant.num_assistant_tokens_schedule = "constant"
    constant.assistant_confidence_threshold = 0.0
    try:
        tokens, calls, seconds = run_transformers(
            pair, inputs, sampling, assistant_model=pair.draft
        )
    finally:
        pair.draft.generation_config = usual
    return Run("assisted generation", tokens, calls, seconds)


def run_transformers(
    pair: ModelPair, inputs: BatchEncoding, sampling: Sampling, **extra: Any
) -> tuple[int, int, float]:
    """One call of `model.generate`: emitted tokens, forward passes of the target, seconds."""
    import torch

    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    torch.manual_seed(sampling.seed)
    arguments = sampling.generate_arguments() | warper_arguments(sampling) | extra
    target: Any = pair.target
    hook = target.register_forward_hook(count)
    start = time.perf_counter()
    try:
        sequences = target.generate(**inputs, **arguments)
    finally:
        hook.remove()
    seconds = time.perf_counter() - start
    return emitted_tokens(pair, sequences[:, inputs["input_ids"].shape[1] :]), passes, seconds


def warper_arguments(sampling: Sampling) -> dict[str, Any]:
    """The rules as arguments of transformers' `generate`, which applies them in the same order.

    The paper's top-H, which transformers lacks, goes into the slot of custom processors, which
    run first.
    """
    from warpdraft import MinP, TopH, TopK, TopP
    from warpdraft.integrations.transformers import TopHLogitsProcessor

    arguments: dict[str, Any] = {}
    if sampling.temperature == 0:
        return arguments
    for rule in sampling.rules:
        match rule:
            case TopH(variant="transformers"):
                arguments["top_h"] = rule.alpha
            case TopH():
                processor = TopHLogitsProcessor(float(rule.alpha), temperature=sampling.temperature)
                arguments["logits_processor"] = [processor]
            case TopK():
                arguments["top_k"] = rule.top_k
            case TopP():
                arguments["top_p"] = rule.top_p
            case MinP():
                arguments["min_p"] = rule.min_p
            case _:
                raise ValueError(f"transformers' generate has no argument for {rule}")
    return arguments


def emitted_tokens(pair: ModelPair, continuations: Tensor) -> int:
    """Count `continuations` `[batch, length]` up to and with each row's first end token."""
    import torch

    end = pair.target.generation_config.eos_token_id
    if end is None:
        return continuations.numel()
    ends = torch.isin(continuations, torch.tensor(end, device=continuations.device)).long()
    # a token counts while no end token lies before it
    return int((ends.cumsum(dim=1) - ends == 0).sum())
