"""Records of generations whose tokens are as hostile as tokens get."""

from __future__ import annotations

from dataclasses import replace

from warpdraft.bench.inspection import Inspection
from warpdraft.bench.inspector import inspect_generation
from warpdraft.bench.model_pair import load_pair
from warpdraft.bench.rule_names import DEFAULT_RULES, rules_named
from warpdraft.bench.strategies import Sampling, Speculation
from warpdraft.bench.token_texts import Token
from warpdraft.bench.watched_generation import watch

HOSTILE = (
    Token(0, "</script><script>document.title='taken'</script>", "text"),
    Token(1, "<!--", "text"),
    Token(2, "<img src=x onerror=\"document.title='taken'\">", "text"),
    Token(3, "&lt;&#x3C;\"'`\\u003c", "text"),
    Token(4, "\u202eאבג\u2028 \u2066", "text"),
    Token(5, "\x00\x1b[31m\x07", "text"),
    Token(6, "E2 82", "bytes"),
    Token(7, "<eos>", "special"),
    Token(8, "\ud83d", "text"),
    Token(9, "", "text"),
    Token(10, "\n\n\t  ", "text"),
    Token(11, "a" * 300, "text"),
)


def inspection_of(
    prompt: str = "def add(a, b):", *, speculate: bool = True, tokens: int = 24
) -> Inspection:
    """A record of the built-in pair."""
    pair = load_pair()
    if not speculate:
        pair = replace(pair, draft=None)
    sampling, speculation = Sampling((), 1.2, tokens, 7), Speculation(4, 4, "optimal_block")
    watched = watch(pair, pair.encode([prompt]), sampling, speculation)
    compared = [rules_named(name) for name in DEFAULT_RULES]
    return inspect_generation(pair, watched, sampling, speculation, compared, top=20)


def hostile(inspection: Inspection) -> Inspection:
    """The record with every token replaced by a hostile one, and the prompt."""

    def other(number: int) -> Token:
        return replace(HOSTILE[number % len(HOSTILE)], id=number)

    steps = tuple(
        replace(
            step,
            token=other(number),
            piece="" if other(number).kind != "text" else other(number).text,
            candidates=tuple(
                replace(candidate, token=other(number + place))
                for place, candidate in enumerate(step.candidates)
            ),
        )
        for number, step in enumerate(inspection.steps)
    )
    blocks = tuple(
        replace(
            block,
            paths=tuple(
                tuple(replace(drafted, token=other(drafted.token.id)) for drafted in path)
                for path in block.paths
            ),
        )
        for block in inspection.blocks
    )
    prompt = "<script>document.title='taken'</script>\u202e"
    text = prompt + "".join(step.piece for step in steps)
    models = "</title><b>models</b>"
    return replace(
        inspection,
        steps=steps,
        blocks=blocks,
        message=prompt,
        prompt=prompt,
        text=text,
        models=models,
    )
