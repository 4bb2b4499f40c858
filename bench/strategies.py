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
    from transformers import BatchEncoding, PreTrainedModel
    from transformers.generation.streamers import BaseStreamer

    from warpdraft.laws import LawPipeline
    from warpdraft.rules import Rule
    from warpdraft.statistics import GenerationStats
    from warpdraft.structures import Structure
    from warpdraft.tree_mask import Layout
    from warpdraft.verification import Selector, Verifier

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


def law_pipeline(sampling: Sampling) -> LawPipeline:
    """The law of a sampling for our own loop: temperature, then the rules."""
    from transformers import TemperatureLogitsWarper

    from warpdraft.laws import LawPipeline
    from warpdraft.processors import ProcessorStack

    if sampling.temperature == 0:
        return LawPipeline(greedy=True)
    heat = [TemperatureLogitsWarper(sampling.temperature)]
    return LawPipeline(ProcessorStack([] if sampling.temperature == 1 else heat), sampling.rules)


@dataclass(frozen=True, slots=True)
class Speculation:
    """How to draft and verify, as `SpeculativeDecoding` takes it."""

    num_drafts: int
    draft_length: int
    verifier: str
    selector: Selector | None = None
    num_top: int | None = None
    structure: Structure = "paths"
    node_budget: int | None = None
    layout: Layout = "auto"
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.label}, {self.num_drafts} x {self.draft_length}"

    @property
    def label(self) -> str:
        """The verifier and every option that is not its default."""
        options = [
            self.selector,
            None if self.num_top is None else f"top {self.num_top}",
            None if self.structure == "paths" else self.structure,
            None if self.node_budget is None else f"{self.node_budget} nodes",
            None if self.layout == "auto" else f"laid out as {self.layout}",
            "compiled" if self.compiled else None,
        ]
        return " ".join([self.verifier, *filter(None, options)])

    def make_verifier(self) -> Verifier:
        """The verifier with its options; ValueError for an unknown name or option."""
        from warpdraft.verification import get_verifier

        return get_verifier(self.verifier, selector=self.selector, num_top=self.num_top)

    def loop_arguments(self) -> dict[str, Any]:
        """The arguments of the loop, all but the verifier."""
        return {
            "num_drafts": self.num_drafts,
            "draft_length": self.draft_length,
            "structure": self.structure,
            "node_budget": self.node_budget,
            "layout": self.layout,
        }

    def check(self) -> None:
        """ValueError where the options do not fit each other."""
        from warpdraft.loop import LoopOptions

        options = {"verifier": self.make_verifier(), **self.loop_arguments()}
        if self.compiled:
            options["cache_implementation"] = "static"
        LoopOptions(max_length=0, pad_token_id=0, **options)
        if self.verifier == "block" and self.num_drafts > 1:
            raise ValueError(f'verifier "block" takes one draft path, got {self.num_drafts}')


@dataclass(frozen=True, slots=True)
class Run:
    """What one call of one strategy wrote and what it cost.

    Attributes:
        strategy: its name.
        tokens_by_row: new tokens of every text of the batch.
        calls_by_row: target calls that each of them took part in.
        seconds: wall time of the call.
        stats: of warpdraft's loop.
    """

    strategy: str
    tokens_by_row: list[int]
    calls_by_row: list[int]
    seconds: float
    stats: GenerationStats | None = None

    @property
    def tokens(self) -> int:
        """New tokens of all texts."""
        return sum(self.tokens_by_row)

    @property
    def target_calls(self) -> int:
        """Target calls of all texts."""
        return sum(self.calls_by_row)

    @property
    def block_efficiency(self) -> float:
        """Emitted tokens per target call."""
        return self.tokens / self.target_calls

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted drafted tokens / drafted tokens of one path; None where nobody counted."""
        if self.stats is None or self.stats.drafted_tokens == 0:
            return None
        return self.stats.acceptance_rate

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
    verifier: Verifier | None = None,
) -> Run:
    """warpdraft's loop: speculation with a draft model, fused sampling without one.

    Args:
        pair: the models.
        inputs: encoded prompts.
        sampling: the law.
        speculation: how to draft and verify.
        streamer: gets the text of one prompt.
        verifier: takes the place of the one that `speculation` names.
    """
    from warpdraft.integrations.transformers import SpeculativeOutput, generate

    start = time.perf_counter()
    output = generate(
        pair.target,
        pair.source,
        **inputs,
        **sampling.generate_arguments(),
        rules=sampling.rules,
        **speculation.loop_arguments(),
        verifier=verifier or speculation.make_verifier(),
        compile=speculation.compiled,
        seed=sampling.seed,
        streamer=streamer,
        return_dict_in_generate=True,
    )
    seconds = time.perf_counter() - start
    assert isinstance(output, SpeculativeOutput)
    stats = output.stats
    assert stats is not None
    return Run("warpdraft", stats.emitted_tokens_by_row, stats.target_calls_by_row, seconds, stats)


def run_plain(pair: ModelPair, inputs: BatchEncoding, sampling: Sampling) -> Run:
    """Plain sampling by transformers: every row takes part in one target call a token."""
    tokens, _, seconds = run_transformers(pair, inputs, sampling)
    return Run("plain sampling", tokens, tokens, seconds)


def run_assisted(
    pair: ModelPair, inputs: BatchEncoding, sampling: Sampling, draft_length: int
) -> Run:
    """transformers' assisted generation of one sequence, or its prompt look-up, at a constant draft length.

    Raises:
        ValueError: no draft model.
    """
    if pair.lookup is not None:
        tokens, calls, seconds = run_transformers(
            pair,
            inputs,
            sampling,
            prompt_lookup_num_tokens=draft_length,
            max_matching_ngram_size=pair.lookup.max_ngram,
        )
        return Run("assisted look-up", tokens, [calls], seconds)
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
    return Run("assisted generation", tokens, [calls], seconds)


def run_transformers(
    pair: ModelPair, inputs: BatchEncoding, sampling: Sampling, **extra: Any
) -> tuple[list[int], int, float]:
    """One call of `model.generate`: new tokens of each row, forward passes of the target, seconds."""
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


def end_tokens(model: PreTrainedModel) -> tuple[int, ...]:
    """The tokens that end a text of the model."""
    end = model.generation_config.eos_token_id
    if end is None:
        return ()
    return tuple(end) if isinstance(end, list) else (end,)


def emitted_tokens(pair: ModelPair, continuations: Tensor) -> list[int]:
    """Count `continuations` `[batch, length]` up to and with each row's first end token."""
    import torch

    ends = torch.tensor(end_tokens(pair.target), device=continuations.device)
    stops = torch.isin(continuations, ends).long()
    # a token counts while no end token lies before it
    counts: list[int] = (stops.cumsum(dim=1) - stops == 0).sum(1).tolist()
    return counts
