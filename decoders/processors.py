"""transformers' logits processors, each applied once to every row that a speculative loop scores.

The trailing run of temperature and truncation warpers is not called at all: it becomes a
temperature and rules, which the kernels apply together with the draw. Everything before it is
called as `processor_table` says: once over all rows, or once for the rows of each length.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .processor_table import Kind, Processor, kind_of, name_of, transformers_name
from .rules import Epsilon, Eta, MinP, Rule, TopH, TopK, TopP, Typical

# each warper keeps transformers' own meaning: ties of top-k whole, top-H over the 100 most likely
CONVERSIONS: dict[str, Callable[[Any], Rule]] = {
    "TopHLogitsWarper": lambda warper: TopH(warper.top_h, variant="transformers"),
    # `top_k` is already the larger of the argument and `min_tokens_to_keep`
    "TopKLogitsWarper": lambda warper: TopK(warper.top_k, ties="all"),
    "TopPLogitsWarper": lambda warper: TopP(
        warper.top_p, min_tokens_to_keep=warper.min_tokens_to_keep
    ),
    "MinPLogitsWarper": lambda warper: MinP(
        warper.min_p, min_tokens_to_keep=warper.min_tokens_to_keep
    ),
    "TypicalLogitsWarper": lambda warper: Typical(
        warper.mass, min_tokens_to_keep=warper.min_tokens_to_keep
    ),
    "EpsilonLogitsWarper": lambda warper: Epsilon(
        warper.epsilon, min_tokens_to_keep=warper.min_tokens_to_keep
    ),
    "EtaLogitsWarper": lambda warper: Eta(
        float(warper.epsilon), min_tokens_to_keep=warper.min_tokens_to_keep
    ),
}


class Prefixes(NamedTuple):
    """Where each row of a call stands.

    Attributes:
        token_ids: int64 `[rows, capacity]`: the sequence so far exactly as `generate` would hand it
            over, the prompt's left padding included; entries from `lengths` on are never read.
        lengths: int64 `[rows]`, at most `capacity`.
        batch_index: int64 `[rows]`: the row of the batch each row belongs to. One may occur often.
        batch: the batch size, after expansion by `num_return_sequences`.
    """

    token_ids: Tensor
    lengths: Tensor
    batch_index: Tensor
    batch: int


class ProcessorStack:
    """The prepared logits processors of one `generate` call, checked and split.

    Attributes:
        temperature: of the trailing warpers, 1.0 where there is none.
        rules: the trailing truncation warpers in their order, in transformers' own meaning.
        normalizes_scores: the list ends with `LogitNormalization`. It does not change the law, so
            it is not called; whoever returns scores applies `log_softmax` after the rules.
        names: what runs, in order: called processors, temperature, rules.

    Args:
        processors: the list in the order of the call.
        trusted: types of processors to run although they are unknown and declare nothing.
        convert: False calls the trailing warpers too: greedy decoding, which applies no law, takes
            the argmax of their scores.

    Raises:
        ValueError: for a class that cannot be run on many positions at once, or whose state nobody
            vouches for.
    """

    def __init__(
        self,
        processors: Sequence[Processor],
        *,
        trusted: Collection[type] = (),
        convert: bool = True,
    ) -> None:
        kinds = [kind_of(processor, trusted) for processor in processors]
        start, end = _trailing_run(processors) if convert else (len(processors), len(processors))
        warpers = list(processors[start:end])
        self.normalizes_scores = end < len(processors)
        self.temperature = 1.0
        temperature_names = []
        if warpers and transformers_name(warpers[0]) == "TemperatureLogitsWarper":
            self.temperature = float(warpers.pop(0).temperature)  # type: ignore[attr-defined]
            temperature_names = [f"temperature={self.temperature}"]
        self.rules = tuple(_rule_of(warper) for warper in warpers)
        self.names = (
            *map(name_of, processors[:start]),
            *temperature_names,
            *map(repr, self.rules),
        )
        # neighbours of one kind share the split into groups of equal length
        self._stages = [
            (context_free, [processors[position] for position in stage])
            for context_free, stage in itertools.groupby(
                range(start), lambda position: kinds[position] is Kind.CONTEXT_FREE
            )
        ]

    @property
    def is_empty(self) -> bool:
        """Whether a call changes nothing: all there is are a temperature and rules."""
        return not self._stages

    def __call__(self, logits: Tensor, prefixes: Prefixes) -> Tensor:
        """Apply every processor before the trailing warpers once to every row, in list order.

        Args:
            logits: `[rows, vocab]`, any float dtype; never written to.
            prefixes: where the rows stand, on the same device.

        Returns:
            Scores `[rows, vocab]` float32, before `temperature` and `rules`. They may share memory
            with `logits` where nothing is called.
        """
        if not self._stages:
            return logits.to(torch.float32)
        # a copy, so that a processor which writes into its scores cannot reach the logits
        scores = logits.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        for context_free, processors in self._stages:
            if context_free:
                for processor in processors:
                    scores = _call(processor, prefixes.token_ids, scores)
            else:
                scores = _by_length(processors, scores, prefixes)
        return scores


def _by_length(processors: list[Processor], scores: Tensor, prefixes: Prefixes) -> Tensor:
    """Run processors that read the prefix, one call for the rows of each length."""
    lengths, group_of_row = torch.unique(prefixes.lengths, return_inverse=True)
    output = torch.empty_like(scores)
    for group, length in enumerate(lengths.tolist()):
        rows = (group_of_row == group).nonzero().squeeze(1)
        token_ids = prefixes.token_ids[rows, :length]
        group_scores = scores[rows]
        for processor in processors:
            batch_rows = prefixes.batch_index[rows]
            if restrict := _RESTRICTIONS.get(transformers_name(processor)):
                processor = restrict(processor, batch_rows, prefixes.batch)
            elif of_rows := getattr(processor, "for_batch_rows", None):
                processor = of_rows(batch_rows, prefixes.batch)
            group_scores = _call(processor, token_ids, group_scores)
        output[rows] = group_scores
    return output


def _call(processor: Processor, token_ids: Tensor, scores: Tensor) -> Tensor:
    result = processor(token_ids, scores)
    if not isinstance(result, Tensor) or result.shape != scores.shape:
        got = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
        expected = f"scores of shape {list(scores.shape)}"
        raise ValueError(f"{name_of(processor)} returned {got}; {expected} are expected.")
    return result.to(torch.float32)


def _restrict_encoder_repetition_penalty(processor: Any, rows: Tensor, batch: int) -> Any:
    if len(processor.encoder_input_ids) != batch:
        raise ValueError(
            f"encoder_repetition_penalty was prepared for {len(processor.encoder_input_ids)} rows "
            f"and the batch has {batch}: with num_return_sequences, transformers pairs its prompts "
            "with the wrong rows. Repeat the prompts in the batch instead."
        )
    restricted = copy.copy(processor)
    restricted.encoder_input_ids = processor.encoder_input_ids[rows]
    return restricted


def _restrict_encoder_no_repeat_ngram(processor: Any, rows: Tensor, batch: int) -> Any:
    sequences_per_prompt = batch // processor.batch_size
    restricted = copy.copy(processor)
    restricted.batch_size = len(rows)
    restricted.generated_ngrams = [
        processor.generated_ngrams[row // sequences_per_prompt] for row in rows.tolist()
    ]
    return restricted


def _restrict_repetition_penalty(processor: Any, rows: Tensor, batch: int) -> Any:
    ignored = processor.prompt_ignore_length
    # a number, or nothing, is the same for all rows; newer transformers give each row its padding
    if not isinstance(ignored, Tensor):
        return processor
    restricted = copy.copy(processor)
    restricted.prompt_ignore_length = ignored[rows.to(ignored.device) // (batch // len(ignored))]
    return restricted


def _restrict_prefix_constraint(processor: Any, rows: Tensor, batch: int) -> Any:
    batch_rows = rows.tolist()
    allowed_tokens = processor._prefix_allowed_tokens_fn
    restricted = copy.copy(processor)
    restricted._prefix_allowed_tokens_fn = lambda row, prefix: allowed_tokens(
        batch_rows[row], prefix
    )
    return restricted


# the same processor for a choice of batch rows, in any order and any number: without it the rows
# that a group lacks would have to be filled with prefixes which the processor may not accept
_RESTRICTIONS: dict[str, Callable[[Any, Tensor, int], Any]] = {
    "EncoderRepetitionPenaltyLogitsProcessor": _restrict_encoder_repetition_penalty,
    "EncoderNoRepeatNGramLogitsProcessor": _restrict_encoder_no_repeat_ngram,
    "RepetitionPenaltyLogitsProcessor": _restrict_repetition_penalty,
    "PrefixConstrainedLogitsProcessor": _restrict_prefix_constraint,
}


def _trailing_run(processors: Sequence[Processor]) -> tuple[int, int]:
    """Start and end of the trailing [temperature, truncation ...], before any normalisation."""
    names = [transformers_name(processor) for processor in processors]
    end = len(names) - (names[-1:] == ["LogitNormalization"])
    start = end
    while start > 0 and _converts(processors[start - 1]):
        start -= 1
    # rules act after the temperature, so only one temperature, at their head, can join them
    if start > 0 and names[start - 1] == "TemperatureLogitsWarper":
        start -= 1
    return start, end


def _rule_of(warper: Any) -> Rule:
    """The rule of a warper that names its own, as those of `install` do, or of transformers' own."""
    rule = getattr(warper, "truncation_rule", None)
    return rule if isinstance(rule, Rule) else CONVERSIONS[type(warper).__name__](warper)


def _converts(processor: Any) -> bool:
    if isinstance(getattr(processor, "truncation_rule", None), Rule):
        return bool(processor.filter_value == -math.inf)
    name = transformers_name(processor)
    if name not in CONVERSIONS or processor.filter_value != -math.inf:
        return False
    # the hard-coded head of TopHLogitsWarper is an attribute that a caller can change
    return name != "TopHLogitsWarper" or processor.top_n == 100
