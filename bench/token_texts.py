"""What tokens look like: the piece of a text that each one wrote, and a token on its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, takewhile
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


# what a reader would not see, or what would turn the text around: controls, bidirectional and line marks
ODD = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\xad\\u061c\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u2069\\ufeff]"
)


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the vocabulary.

    Attributes:
        id: its number.
        text: what it writes; its bytes in hexadecimal where they are no characters; the name of a special token.
        kind: which of the three `text` is.
    """

    id: int
    text: str
    kind: Literal["text", "bytes", "special"]


def pieces(
    tokenizer: PreTrainedTokenizerBase, context_ids: Sequence[int], token_ids: Sequence[int]
) -> list[str]:
    """The context's text, then what each token adds to it: put together they are the whole text, always.

    A character whose bytes lie in several tokens is written by the last of them. Special tokens write nothing.
    """
    ids = [*context_ids, *token_ids]
    texts = [
        str(tokenizer.decode(ids[:end], skip_special_tokens=True))
        for end in range(len(context_ids), len(ids) + 1)
    ]
    whole = texts[-1]
    # an unfinished character decodes to a replacement, which is no part of the whole
    ends = accumulate((agreement(text, whole) for text in texts), max)
    return [whole[start:end] for start, end in pairwise([0, *ends])]


def agreement(first: Sequence[object], second: Sequence[object]) -> int:
    """How many elements from the front are equal."""
    equal = (one == other for one, other in zip(first, second, strict=False))
    return sum(takewhile(bool, equal))


def legible(text: str) -> str:
    """The text with its odd characters named."""
    return ODD.sub(lambda found: f"[U+{ord(found[0]):04X}]", text)


def label(token: Token) -> str:
    """A token on its own: spaces and line breaks can be seen."""
    if token.kind == "bytes":
        return f"[bytes {token.text}]"
    text = legible(token.text)
    return text.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")


class Vocabulary:
    """Tokens on their own, each looked up once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._known: dict[int, Token] = {}

    def __getitem__(self, token_id: int) -> Token:
        """The token of that number."""
        if token_id not in self._known:
            self._known[token_id] = self._look_up(token_id)
        return self._known[token_id]

    def _look_up(self, token_id: int) -> Token:
        decode = self._tokenizer.decode
        if token_id in self._special:
            return Token(token_id, str(decode([token_id])), "special")
        # the second of two: some tokenizers drop the space that a text begins with
        once, twice = str(decode([token_id])), str(decode([token_id, token_id]))
        text = twice.removeprefix(once)
        written = self._tokenizer.convert_ids_to_tokens(token_id)
        if REPLACEMENT in text:
            return Token(token_id, hexadecimal(str(written)), "bytes")
        if text == "" and written is None:
            # models are padded to more logits than there are tokens
            return Token(token_id, f"[unused {token_id}]", "special")
        return Token(token_id, text, "text")


def hexadecimal(written: str) -> str:
    """The bytes of a token of a byte-level vocabulary, or of a single byte written `<0xE2>`; others as they are."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    if written.startswith("<0x") and written.endswith(">"):
        return written[3:-1]
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    if not set(written) <= byte_of.keys():
        return written
    return " ".join(f"{byte_of[character]:02X}" for character in written)
