"""Every logits processor of transformers, and whether one call may score many positions with it.

A speculative loop scores many positions of many sequences at once, and `generate` hands it one
list of logits processors made for one position of every sequence:

    context free   scores -> scores, row by row                    one call over all rows
    prefix         reads the tokens so far                         one call a length, never padded
    row indexed    also knows which row of the batch it serves     the same, keyed by that row
    refused        runs a model, keeps state, or couples rows      ValueError
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import Enum
from typing import NamedTuple

from torch import Tensor

Processor = Callable[[Tensor, Tensor], Tensor]
"""`(input_ids [rows, length], scores [rows, vocab] float32) -> scores [rows, vocab]`."""


class Kind(Enum):
    """How a processor can be run where one call scores many positions."""

    CONTEXT_FREE = "context free"
    PREFIX = "prefix"
    ROW_INDEXED = "row indexed"
    REFUSED = "refused"


class Entry(NamedTuple):
    """One line of `TABLE`."""

    kind: Kind
    reason: str


def _context_free(reason: str) -> Entry:
    return Entry(Kind.CONTEXT_FREE, reason)


def _prefix(reason: str) -> Entry:
    return Entry(Kind.PREFIX, reason)


def _row_indexed(reason: str) -> Entry:
    return Entry(Kind.ROW_INDEXED, reason)


def _refused(reason: str) -> Entry:
    return Entry(Kind.REFUSED, reason)


TABLE: dict[str, Entry] = {
    "AlternatingCodebooksLogitsProcessor": _prefix("the length chooses the codebook"),
    "BarkEosPrioritizerLogitsProcessor": _context_free("compares the end token's probability"),
    "ClassifierFreeGuidanceLogitsProcessor": _refused("it needs a second, unconditional forward"),
    "DiaClassifierFreeGuidanceLogitsProcessor": _refused("it needs an unconditional forward"),
    "DiaEOSChannelFilterLogitsProcessor": _refused("it couples rows as channels of one sound"),
    "DiaEOSDelayPatternLogitsProcessor": _refused("it counts its own calls"),
    "EncoderNoRepeatNGramLogitsProcessor": _row_indexed("each row has its own banned n-grams"),
    "EncoderRepetitionPenaltyLogitsProcessor": _row_indexed("each row has its own prompt"),
    "EpsilonLogitsWarper": _context_free("truncates"),
    "EtaLogitsWarper": _context_free("truncates"),
    "ExponentialDecayLengthPenalty": _prefix("the length scales the end token's bonus"),
    "ForcedBOSTokenLogitsProcessor": _prefix("acts at one length"),
    "ForcedEOSTokenLogitsProcessor": _prefix("acts at one length"),
    "InfNanRemoveLogitsProcessor": _context_free("replaces NaN and infinities"),
    "LogitNormalization": _context_free("subtracts a constant a row"),
    "MinLengthLogitsProcessor": _prefix("acts below a length"),
    "MinNewTokensLengthLogitsProcessor": _prefix("acts below a length"),
    "MinPLogitsWarper": _context_free("truncates"),
    "NoBadWordsLogitsProcessor": _prefix("matches the last tokens"),
    "NoRepeatNGramLogitsProcessor": _prefix("bans n-grams of the text so far"),
    "PrefixConstrainedLogitsProcessor": _row_indexed("asks a function of batch row and prefix"),
    "RepetitionPenaltyLogitsProcessor": _row_indexed("skips the padding of each row"),
    "SequenceBiasLogitsProcessor": _prefix("matches the last tokens"),
    "SuppressTokensAtBeginLogitsProcessor": _prefix("acts at one length"),
    "SuppressTokensLogitsProcessor": _context_free("masks a fixed set"),
    "SynthIDTextWatermarkLogitsProcessor": _refused("it keeps the contexts of its earlier calls"),
    "TemperatureLogitsWarper": _context_free("divides"),
    "TopHLogitsWarper": _context_free("truncates"),
    "TopKLogitsWarper": _context_free("truncates"),
    "TopPLogitsWarper": _context_free("truncates"),
    "TypicalLogitsWarper": _context_free("truncates"),
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": _refused("it runs a model with its cache"),
    "WatermarkLogitsProcessor": _prefix("seeds its green list from the last tokens at every call"),
    "WhisperNoSpeechDetection": _refused("it runs a model and keeps its result"),
    "WhisperTimeStampLogitsProcessor": _prefix("pairs the time stamps of the text so far"),
}
"""Every class of `transformers.generation.logits_process`, the same set from 5.17 to 5.23."""

_STATEFUL = {
    "xgrammar": "XGrammarLogitsProcessor(compiled_grammar, prompt_length)",
    "outlines": "OutlinesLogitsProcessor(index, prompt_length)",
}
"""Packages whose processors follow one text a row, and ours that read the text instead."""


def kind_of(processor: Processor, trusted: Collection[type]) -> Kind:
    """Look the processor up; an unknown one runs as declared, or is refused by name.

    Raises:
        ValueError: it is refused, or unknown and neither declared nor trusted.
    """
    entry = TABLE.get(transformers_name(processor))
    if entry is None:
        if getattr(processor, "needs_all_rows", False) is True:
            raise ValueError(
                f"{name_of(processor)} has a parameter of every row, and a generation calls it on "
                "other rows than those of the batch: give it one number for all rows."
            )
        if getattr(processor, "context_free", False) is True:
            return Kind.CONTEXT_FREE
        if getattr(processor, "stateless", False) is True or type(processor) in trusted:
            return Kind.PREFIX
        if stateless := _STATEFUL.get(type(processor).__module__.partition(".")[0]):
            raise ValueError(
                f"{name_of(processor)} of {type(processor).__module__} follows one text a row, and "
                "speculation takes tokens back: use "
                f"warpdraft.integrations.transformers.{stateless} instead."
            )
        raise ValueError(
            f"The logits processor {name_of(processor)} is unknown: it may keep state between "
            "calls, and speculation calls it on several continuations of one text. If its scores "
            "depend on nothing but input_ids and scores, set `stateless = True` on it, or pass "
            f"trusted=[{type(processor).__name__}]."
        )
    if entry.kind is Kind.REFUSED:
        raise ValueError(f"{name_of(processor)} cannot be used with speculation: {entry.reason}.")
    return entry.kind


def transformers_name(processor: Processor) -> str:
    """The class name where the class is transformers' own, "" for every other, subclasses too."""
    cls = type(processor)
    return cls.__name__ if cls.__module__ == "transformers.generation.logits_process" else ""


def name_of(processor: Processor) -> str:
    """The name of a function, or of an object's class."""
    return getattr(processor, "__qualname__", type(processor).__name__)
