"""The grammar processors against stand-ins of xgrammar's and outlines' interfaces."""

import re
import sys
import types

import pytest
import torch
from tiny_models import tiny_model

from warpdraft.integrations.transformers import (
    FusedSampling,
    OutlinesLogitsProcessor,
    SpeculativeDecoding,
    XGrammarLogitsProcessor,
)

VOCAB, END = 40, 0
PATTERN = re.compile(r"(12|34)(5|6)+0")
PATTERNS = [re.compile(r"12(5|6)+0"), re.compile(r"34(5|6)+0")]


class Index:
    """outlines': `(12|34)(5|6)+`, then the end token; a state is the text's place in it.

    `first` leaves one of its beginnings.
    """

    def __init__(self, first=None):
        if first is not None:
            self.steps = {**self.steps, 0: {first: self.steps[0][first]}}

    steps = {  # noqa: RUF012
        0: {1: 1, 3: 2},
        1: {2: 3},
        2: {4: 3},
        3: {5: 4, 6: 4},
        4: {5: 4, 6: 4, END: 5},
        5: {},
    }

    def get_initial_state(self):
        return 0

    def get_next_state(self, state, token):
        return self.steps[state].get(token)

    def get_allowed_tokens(self, state):
        return list(self.steps[state])


class Matcher:
    """xgrammar's, over the same language."""

    def __init__(self, grammar):
        self.index, self.states = grammar.index, [0]

    def accept_token(self, token):
        state = self.index.get_next_state(self.states[-1], token)
        if state is not None:
            self.states.append(state)
        return state is not None

    def rollback(self, tokens):
        del self.states[-tokens:]

    def is_terminated(self):
        return self.states[-1] == 5

    def fill_next_token_bitmask(self, bitmask):
        bitmask.zero_()
        for token in self.index.get_allowed_tokens(self.states[-1]):
            bitmask[0, token // 32] |= 1 << token % 32


def processor_of(package, *indices):
    grammars = list(indices)
    if package == "xgrammar":
        info = types.SimpleNamespace(vocab_size=VOCAB)
        grammars = [types.SimpleNamespace(tokenizer_info=info, index=index) for index in indices]
    cls = XGrammarLogitsProcessor if package == "xgrammar" else OutlinesLogitsProcessor
    return cls(grammars if len(grammars) > 1 else grammars[0], prompt_length=3)


@pytest.fixture(params=["xgrammar", "outlines"])
def package(request, monkeypatch):
    module = types.ModuleType("xgrammar")
    module.GrammarMatcher = Matcher
    module.allocate_token_bitmask = lambda rows, width: torch.full(
        (rows, (width + 31) // 32), -1, dtype=torch.int32
    )
    monkeypatch.setitem(sys.modules, "xgrammar", module)
    return request.param


@pytest.fixture
def processor(package):
    return processor_of(package, Index())


def allowed(processor, *texts):
    scores = processor(torch.tensor(texts), torch.zeros(len(texts), VOCAB))
    return [row.isfinite().nonzero().flatten().tolist() for row in scores]


def test_every_call_reads_the_text_anew(processor):
    everything = list(range(VOCAB))
    assert allowed(processor, [9, 9, 9, 1, 2, 5], [8, 8, 8, 3, 4, 6]) == [[0, 5, 6], [0, 5, 6]]
    assert allowed(processor, [9, 9, 9]) == [[1, 3]]
    # outside the grammar, and back again
    assert allowed(processor, [9, 9, 9, 3, 7], [9, 9, 9, 3, 2]) == [everything, everything]
    assert allowed(processor, [9, 9, 9, 3]) == [[4]]


def test_a_text_shorter_than_the_prompt(processor):
    with pytest.raises(ValueError, match=r"prompt_length=3, but the text has 2"):
        allowed(processor, [9, 9])


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_speculation_stays_in_the_grammar(processor, sampled):
    model, draft = tiny_model(vocab=VOCAB), tiny_model(vocab=VOCAB, seed=1)
    arguments = {
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        "do_sample": sampled,
        "top_k": 0,
        "max_new_tokens": 40,
        "eos_token_id": END,
        "logits_processor": [processor],
    }
    prompts = torch.tensor([[0, 9, 2], [5, 7, 8]])
    written = model.generate(
        prompts, custom_generate=SpeculativeDecoding(draft, num_drafts=2, seed=1), **arguments
    )
    if not sampled:
        assert torch.equal(written, model.generate(prompts, **arguments))
    for row in written[:, 3:].tolist():
        text = "".join(map(str, row))
        assert PATTERN.match(text + "0"), text


@pytest.mark.parametrize("loop", ["plain", "fused", "speculative"])
def test_every_prompt_has_its_own_grammar(package, loop):
    model, draft = tiny_model(vocab=VOCAB), tiny_model(vocab=VOCAB, seed=1)
    loops = {"fused": FusedSampling(seed=1)}
    loops["speculative"] = SpeculativeDecoding(draft, num_drafts=2, seed=1)
    torch.manual_seed(0)
    written = model.generate(
        torch.tensor([[0, 9, 2], [5, 7, 8]]),
        attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]),
        do_sample=True,
        top_k=0,
        num_return_sequences=3,
        max_new_tokens=40,
        eos_token_id=END,
        logits_processor=[processor_of(package, Index(1), Index(3))],
        custom_generate=loops.get(loop),
    )
    for row, tokens in enumerate(written[:, 3:].tolist()):
        text = "".join(map(str, tokens))
        assert PATTERNS[row // 3].match(text + "0"), (row, text)


def test_grammars_that_do_not_fit_the_rows(package):
    with pytest.raises(ValueError, match="2 grammars, one a prompt, cannot be those of 3 rows"):
        allowed(processor_of(package, Index(1), Index(3)), [9] * 3, [9] * 3, [9] * 3)
    with pytest.raises(ValueError, match="got an empty list"):
        OutlinesLogitsProcessor([], prompt_length=3)


class Stateful:
    def __call__(self, input_ids, scores):
        return scores


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("xgrammar.contrib.hf", "XGrammarLogitsProcessor"),
        ("outlines.backends.outlines_core", "OutlinesLogitsProcessor"),
    ],
)
def test_a_stateful_grammar_is_refused_with_ours(monkeypatch, module, name):
    monkeypatch.setattr(Stateful, "__module__", module)
    model = tiny_model()
    with pytest.raises(ValueError, match=f"takes tokens back: use .*{name}"):
        model.generate(
            torch.tensor([[4]]),
            max_new_tokens=2,
            logits_processor=[Stateful()],
            custom_generate=SpeculativeDecoding(model),
        )
