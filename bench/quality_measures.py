"""How much the texts that one prompt got differ from each other.

    distinct-n   different n-grams / all n-grams, counted over all texts of the prompt (Li et al., 2016)
    self-BLEU    mean BLEU of each text against the others (Zhu et al., 2018): 1 where all are equal

BLEU is that of Papineni et al. (2002) up to 4-grams. An n-gram order without a match counts as 0.1 matches (method 1
of Chen and Cherry, 2014, as in the authors' code of self-BLEU), for short texts share no 4-gram.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

LONGEST = 4
UNMATCHED = 0.1

Text = Sequence[int]
"""Token ids."""


def n_grams(text: Text, n: int) -> Counter[tuple[int, ...]]:
    """How often each n-gram stands in a text."""
    return Counter(tuple(text[start : start + n]) for start in range(len(text) - n + 1))


def distinct_n(texts: Sequence[Text], n: int) -> float:
    """The share of different n-grams among those of all texts, in (0, 1].

    Raises:
        ValueError: no text has n tokens.
    """
    found: Counter[tuple[int, ...]] = Counter()
    for text in texts:
        found.update(n_grams(text, n))
    if not found:
        raise ValueError(f"distinct-{n} needs a text of at least {n} tokens")
    return len(found) / found.total()


def self_bleu(texts: Sequence[Text]) -> float:
    """Mean BLEU of each text against the others, in [0, 1].

    Raises:
        ValueError: fewer than two texts.
    """
    if len(texts) < 2:
        raise ValueError(f"self-BLEU needs at least two texts, got {len(texts)}")
    scores = [
        bleu(text, [*texts[:number], *texts[number + 1 :]]) for number, text in enumerate(texts)
    ]
    return sum(scores) / len(scores)


def bleu(text: Text, references: Sequence[Text]) -> float:
    """BLEU of a text, orders 1 to 4 with equal weights; orders longer than the text are left out."""
    if not text:
        return 0.0
    logs = []
    for n in range(1, min(LONGEST, len(text)) + 1):
        ours = n_grams(text, n)
        most: Counter[tuple[int, ...]] = Counter()
        for reference in references:
            most |= n_grams(reference, n)
        matched = (ours & most).total()
        logs.append(math.log(max(matched, UNMATCHED) / ours.total()))
    # the reference of the closest length; the shorter one of two
    closest = min((abs(len(each) - len(text)), len(each)) for each in references)[1]
    brevity = min(0.0, 1 - closest / len(text))
    return math.exp(brevity + sum(logs) / len(logs))
