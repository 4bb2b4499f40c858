"""`custom_generate` objects: plain sampling with fused rules, and speculative decoding.

`model.generate` prepares inputs, processors and criteria, calls the object in place of its own loop,
and returns what it returns.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    CompileConfig,
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.utils import GenerateDecoderOnlyOutput

from warpdraft.draft_sources import DraftSource
from warpdraft.laws import LawPipeline
from warpdraft.loop import Generated, LoopOptions, generate_tokens
from warpdraft.processors import ProcessorStack
from warpdraft.rules import Rule
from warpdraft.statistics import GenerationStats
from warpdraft.truncation import check_rules_of_all_rows
from warpdraft.verification import DEFAULT_VERIFIER, Selector, Verifier, get_verifier

from .transformers_arguments import (
    check_arguments,
    check_model,
    check_model_kwargs,
    check_pair,
    settings_of,
)

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer

    from warpdraft.adaptive_shape import AdaptiveShape
    from warpdraft.draft_sources import Draft
    from warpdraft.structures import Structure
    from warpdraft.tree_mask import Layout


@dataclass
class SpeculativeOutput(GenerateDecoderOnlyOutput):
    """What `generate` returns with `return_dict_in_generate=True`; `stats` says what the run did."""

    stats: GenerationStats | None = None


class FusedSampling:
    """Plain sampling with temperature, rules and the draw in one step, as `custom_generate`.

    Args:
        rules: run after the warpers of the call, in the listed order; greedy decoding ignores them.
        seed: of the noise; None takes one number from torch's default generator.
        sequence: `[rows]` int64 names of the rows, by default their numbers.
        generator: takes the seed's place.
        trusted: types of logits processors to run although they do not say `stateless = True`.
        streamer: gets the prompt, then the new tokens; ended by every call, also one that raises. One text only.
        tokenizer: needed for `stop_strings`.
        stop_strings: a row ends with the token that completes one of them.

    Attributes:
        last_stats: of the run that finished last, whichever thread ran it.

    Raises:
        ValueError: `stop_strings` without a tokenizer, a seed and a generator; when called, for
            arguments of `generate` that `transformers_arguments.ARGUMENTS` lists as refused.
        TypeError: an argument of another kind, such as `rules` that are none.
    """

    _draft: Draft | None = None
    _compile = False

    def __init__(
        self,
        rules: Rule | Sequence[Rule] = (),
        *,
        seed: int | None = None,
        sequence: Tensor | None = None,
        generator: torch.Generator | None = None,
        trusted: Collection[type] = (),
        streamer: BaseStreamer | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        stop_strings: str | list[str] | None = None,
    ) -> None:
        _check_stop_strings(stop_strings, tokenizer)
        if not isinstance(trusted, Collection) or not all(isinstance(t, type) for t in trusted):
            raise TypeError(f"trusted must be types of logits processors, got {trusted!r}.")
        self.rules = check_rules_of_all_rows(rules)
        self.last_stats: GenerationStats | None = None
        self._trusted = trusted
        self._streamer = streamer
        self._tokenizer = tokenizer
        self._stop_strings = stop_strings
        # every run fills in its own length and special tokens
        self._options = LoopOptions(
            max_length=0,
            pad_token_id=0,
            seed=seed,
            sequence=sequence,
            generator=generator,
            streamer=streamer,
        )

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor | SpeculativeOutput:
        """Called by `model.generate` with everything prepared."""
        try:
            generated, processors = self._run(
                model,
                input_ids,
                logits_processor,
                stopping_criteria,
                generation_config,
                model_kwargs,
            )
        finally:
            if self._streamer is not None:
                self._streamer.end()
        self.last_stats = generated.stats
        if not generation_config.return_dict_in_generate:
            return generated.token_ids
        scores = generated.scores
        if scores is not None and processors.normalizes_scores:
            scores = tuple(step.log_softmax(-1) for step in scores)
        return SpeculativeOutput(
            sequences=generated.token_ids,  # type: ignore[arg-type]
            scores=scores,  # type: ignore[arg-type]
            logits=generated.logits,  # type: ignore[arg-type]
            past_key_values=generated.past_key_values,
            stats=generated.stats,
        )

    def _run(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        config: GenerationConfig,
        model_kwargs: dict[str, Any],
    ) -> tuple[Generated, ProcessorStack]:
        check_model(model, "target")
        # a source has made sure that its tokens are the target's
        if self._draft is not None and not isinstance(self._draft, DraftSource):
            check_model(self._draft, "draft")
            check_pair(model, self._draft)
        check_arguments(settings_of(config))
        cache = check_model_kwargs(model_kwargs, len(input_ids))
        greedy = not config.do_sample
        processors = ProcessorStack(logits_processor, trusted=self._trusted, convert=not greedy)
        pipeline = LawPipeline(processors, self.rules, greedy=greedy)
        generated = generate_tokens(
            model,
            self._draft,
            input_ids,
            model_kwargs.get("attention_mask"),
            pipeline,
            self._run_options(config, stopping_criteria, cache, input_ids),
        )
        if cache is None:
            return generated, processors
        # plain generation fills the caller's cache in place
        assert generated.past_key_values is not None
        cache.layers[:] = generated.past_key_values.layers
        return dataclasses.replace(generated, past_key_values=cache), processors

    def _run_options(
        self,
        config: GenerationConfig,
        criteria: StoppingCriteriaList,
        cache: Cache | None,
        input_ids: Tensor,
    ) -> LoopOptions:
        """One run's options: lengths and end tokens out of the prepared criteria, the rest called."""
        called = StoppingCriteriaList(
            criterion
            for criterion in criteria
            if type(criterion) not in (MaxLengthCriteria, EosTokenCriteria)
        )
        if self._stop_strings is not None:
            assert self._tokenizer is not None
            called.append(StopStringCriteria(self._tokenizer, self._stop_strings))
        end_tokens = [
            token
            for criterion in criteria
            if type(criterion) is EosTokenCriteria
            for token in criterion.eos_token_id.tolist()
        ]
        cache_implementation: Any = config.cache_implementation
        if cache_implementation is None:
            cache_implementation = "static" if self._compile else "dynamic"
        pad_token = config._pad_token_tensor
        lengths = [each.max_length for each in criteria if type(each) is MaxLengthCriteria]
        assert lengths, "generate always prepares a MaxLengthCriteria"
        # plain generation writes one token before it asks the caller's own
        max_length = max(min(lengths), input_ids.shape[1] + 1)
        return dataclasses.replace(
            self._options,
            max_length=max_length,
            cache_implementation=cache_implementation,
            compile_config=_compile_config(config, input_ids.device, asked=self._compile),
            # without a pad token there is no end token either: every row is filled to the end
            pad_token_id=0 if pad_token is None else int(pad_token),
            eos_token_ids=end_tokens,
            stopping=(called,) if called else (),
            collect_scores=config.return_dict_in_generate and config.output_scores,
            collect_logits=config.return_dict_in_generate and config.output_logits,
            past_key_values=cache,
            return_cache=config.return_dict_in_generate or cache is not None,
        )


def _check_stop_strings(
    stop_strings: str | list[str] | None, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    if stop_strings is None:
        return
    listed = [stop_strings] if isinstance(stop_strings, str) else stop_strings
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        raise TypeError(f"stop_strings must be a str or a list of them, got {stop_strings!r}.")
    if not listed or "" in listed:
        raise ValueError(
            f"stop_strings must be texts of at least one letter, got {stop_strings!r}."
        )
    if tokenizer is None:
        raise ValueError(f"stop_strings={stop_strings!r} need the tokenizer: pass tokenizer=.")


def _compile_config(
    config: GenerationConfig, device: torch.device, *, asked: bool
) -> CompileConfig | None:
    """How this run's calls are compiled; None where they are not."""
    given = config.compile_config
    static = asked or config.cache_implementation == "static"
    if config.disable_compile or not static or not (asked or given is not None):
        return None
    if given is not None:
        fixed: CompileConfig = dataclasses.replace(given, dynamic=False)
        return fixed
    # on a GPU launches cost more than the arithmetic of a draft step: that mode replays them as one CUDA graph
    mode: Any = "reduce-overhead" if device.type == "cuda" else None
    return CompileConfig(fullgraph=True, dynamic=False, mode=mode)


class SpeculativeDecoding(FusedSampling):
    """Speculative decoding with a draft model or another draft source, as `custom_generate`.

    The text has exactly the law of plain sampling with the same processors, warpers and rules.

    Args:
        draft: a causal model with the target's tokenizer, its vocabulary perhaps padded to another width; or a source
            that needs no second model: `FirstLayers(4)`, `PromptLookup(3)`.
        num_drafts: draft paths a round, in [1, 4096].
        draft_length: tokens of a path, in [1, 255].
        adaptive: chooses the number of tokens, and of paths if it is told to, block by block.
        verifier: a name in `warpdraft.verification.VERIFIERS`, or a verifier; None for the source's own:
            "optimal_block" of models, "target_only" of prompt look-up.
        selector: "clip" or "lex", how "optimal" and "optimal_block" use the mass that the optimum leaves free; None for
            their own default.
        num_top: of the verifier "optimal": so many of the first candidates are the draft's most likely tokens.
        structure: "paths", K paths of L tokens, or "rollover", a tree that gives the draws which duplicates save to
            deeper levels (for verifiers of i.i.d. drafts).
        node_budget: the most nodes of a rollover tree, None for K L.
        layout: "paths" runs the models with a row for each path, "tree" with one row a text and a 4-D mask; "auto"
            takes the tree where the model is known to take it.
        compile: run compiled calls on static caches, which the call's `cache_implementation="static"` gives too, not
            compiled: for `structure="paths"` and verifiers of i.i.d. drafts. The call's `compile_config` says how, by
            default with CUDA graphs on a GPU. Batch, K, L and the caches' capacity, which is rounded up, are compiled
            for when they first come; the code is kept as long as the model.
        rules: as in `FusedSampling`, like everything that follows.
        seed: see there.
        sequence: see there.
        generator: see there.
        trusted: see there.
        streamer: see there; gets the tokens of a round at once.
        tokenizer: see there.
        stop_strings: see there.

    Raises:
        ValueError: a parameter out of range, or parameters that do not go together; when called, as `FusedSampling`,
            and for models that cannot draft for one another.
        TypeError: `draft` is neither, a count is no int, or another argument of another kind.
    """

    def __init__(
        self,
        draft: Draft,
        *,
        num_drafts: int = 4,
        draft_length: int = 4,
        adaptive: AdaptiveShape | None = None,
        verifier: str | Verifier | None = None,
        selector: Selector | None = None,
        num_top: int | None = None,
        structure: Structure = "paths",
        node_budget: int | None = None,
        layout: Layout = "auto",
        compile: bool = False,
        rules: Rule | Sequence[Rule] = (),
        seed: int | None = None,
        sequence: Tensor | None = None,
        generator: torch.Generator | None = None,
        trusted: Collection[type] = (),
        streamer: BaseStreamer | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        stop_strings: str | list[str] | None = None,
    ) -> None:
        super().__init__(
            rules,
            seed=seed,
            sequence=sequence,
            generator=generator,
            trusted=trusted,
            streamer=streamer,
            tokenizer=tokenizer,
            stop_strings=stop_strings,
        )
        source = draft if isinstance(draft, DraftSource) else None
        is_model = isinstance(draft, torch.nn.Module) and hasattr(draft, "config")
        if source is None and not is_model:
            raise TypeError(
                "draft must be a causal language model or a draft source, "
                f"got {reprlib.repr(draft)}: "
                "FusedSampling samples without one"
            )
        if not isinstance(compile, bool):
            raise TypeError(f"compile must be True or False, got {compile!r}")
        if verifier is None:
            verifier = DEFAULT_VERIFIER if source is None else source.default_verifier
        rule = get_verifier(verifier, selector=selector, num_top=num_top)
        self._draft = draft
        self._options = dataclasses.replace(
            self._options,
            num_drafts=num_drafts,
            draft_length=draft_length,
            adaptive=adaptive,
            verifier=rule,
            structure=structure,
            node_budget=node_budget,
            layout=layout,
        )
        self._compile = compile
        if compile:
            # what static caches do not take is refused here, not in the run
            dataclasses.replace(self._options, cache_implementation="static")
        if source is not None:
            most = self._options.extreme_shapes(num_drafts)[1].num_drafts
            source.check_drafts(rule, most, structure)
