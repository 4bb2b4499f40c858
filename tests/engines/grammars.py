"""xgrammar and outlines beside plain and speculative generation; run by grammars.sh."""

import importlib.metadata
import itertools
import json
import re
import sys
from pathlib import Path

import outlines_core
import pytest
import torch
import xgrammar
from scipy import stats
from tiny_models import tiny_model
from transformers import LogitsProcessorList

from warpdraft import MinP
from warpdraft.integrations.transformers import (
    FusedSampling,
    MinPLogitsProcessor,
    OutlinesLogitsProcessor,
    SpeculativeDecoding,
    XGrammarLogitsProcessor,
)

LETTERS = ["<end>", *"abcdefg"]
PATTERN = "(ab|cd)(e|f|g)(a|b)+"
PROMPTS = torch.tensor([[0, 0, 5], [3, 7, 2]])
MASK = torch.tensor([[0, 0, 1], [1, 1, 1]])


def xgrammar_processor(*patterns):
    info = xgrammar.TokenizerInfo(LETTERS, vocab_size=8, stop_token_ids=[0])
    compiler = xgrammar.GrammarCompiler(info)
    grammars = [compiler.compile_regex(pattern) for pattern in patterns or (PATTERN,)]
    return XGrammarLogitsProcessor(grammars, prompt_length=3)


def outlines_processor(*patterns):
    letters = {letter: [token] for token, letter in enumerate(LETTERS) if token > 0}
    vocabulary = outlines_core.Vocabulary(0, letters)
    indices = [outlines_core.Index(pattern, vocabulary) for pattern in patterns or (PATTERN,)]
    return OutlinesLogitsProcessor(indices, prompt_length=3)


PACKAGES = {"xgrammar": xgrammar_processor, "outlines_core": outlines_processor}
MODEL, DRAFT = (tiny_model(seed=seed, vocab=8, spread=1.5) for seed in (4, 5))


def write(processor, custom=None, rows=1, **arguments):
    settings = {"do_sample": True, "top_k": 0, "max_new_tokens": 12, "eos_token_id": 0}
    return MODEL.generate(
        PROMPTS.repeat(rows, 1),
        attention_mask=MASK.repeat(rows, 1),
        logits_processor=LogitsProcessorList([processor, MinPLogitsProcessor(0.01)]),
        custom_generate=custom,
        **settings | arguments,
    )[:, 3:]


def loops():
    return {
        "plain": None,
        "fused": FusedSampling(MinP(0.01), seed=1),
        "speculative": SpeculativeDecoding(DRAFT, num_drafts=3, rules=MinP(0.01), seed=1),
    }


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("loop", loops())
def test_every_text_matches_the_grammar(package, loop):
    torch.manual_seed(0)
    for tokens in write(PACKAGES[package](), loops()[loop], rows=40).tolist():
        text = "".join(LETTERS[token] for token in tokens).partition("<end>")[0]
        assert re.fullmatch(PATTERN, text), text


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("loop", loops())
def test_every_prompt_has_its_own_grammar(package, loop):
    torch.manual_seed(0)
    patterns = ["ab(e|f)+", "(cd)+g"]
    processor = PACKAGES[package](*patterns)
    texts = write(processor, loops()[loop], num_return_sequences=20).tolist()
    for row, tokens in enumerate(texts):
        text = "".join(LETTERS[token] for token in tokens).partition("<end>")[0]
        # a text of twelve tokens may be cut
        pattern = re.compile(patterns[row // 20])
        assert pattern.fullmatch(text) or (len(text) == 12 and pattern.match(text + "g")), text


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("drafts", [1, 3])
def test_greedy_equals_plain_generation(package, drafts):
    spec = SpeculativeDecoding(DRAFT, num_drafts=drafts)
    expected = write(PACKAGES[package](), do_sample=False)
    assert torch.equal(write(PACKAGES[package](), spec, do_sample=False), expected)


@torch.no_grad()
@pytest.mark.parametrize("package", PACKAGES)
def test_four_tokens_follow_the_constrained_law(package):
    """Chi-square over the 12 texts of four tokens, 2,000 rows; false alarms 1e-6 a case."""
    prompt, rows = torch.tensor([[3, 7, 2]]), 2000
    laws = {}
    for texts in itertools.product(["ab", "cd"], "efg", "ab"):
        text = torch.tensor([[LETTERS.index(letter) for letter in "".join(texts)]])
        logits = MODEL(torch.cat([prompt, text], 1)).logits[0, 2:-1]
        processor, mass = PACKAGES[package](), 1.0
        for step in range(4):
            scores = processor(torch.cat([prompt, text[:, :step]], 1), logits[step : step + 1])
            mass *= float(scores.softmax(-1)[0, text[0, step]])
        laws[tuple(text[0].tolist())] = mass
    assert abs(sum(laws.values()) - 1) < 1e-5
    written = MODEL.generate(
        prompt,
        do_sample=True,
        top_k=0,
        max_new_tokens=4,
        eos_token_id=0,
        num_return_sequences=rows,
        logits_processor=LogitsProcessorList([PACKAGES[package]()]),
        custom_generate=SpeculativeDecoding(DRAFT, num_drafts=3, draft_length=3, seed=2),
    )
    seen = [tuple(row) for row in written[:, 3:].tolist()]
    assert set(seen) <= set(laws)
    pairs = [(seen.count(text), rows * mass) for text, mass in laws.items()]
    rare = [pair for pair in pairs if pair[1] < 5]
    kept = [pair for pair in pairs if pair[1] >= 5]
    if rare:
        kept.append(tuple(map(sum, zip(*rare, strict=True))))
    statistic = sum((count - expected) ** 2 / expected for count, expected in kept)
    assert len(kept) > 4 and stats.chi2.sf(statistic, len(kept) - 1) > 1e-6


def test_the_stateful_processor_is_refused():
    (grammar,) = xgrammar_processor()._grammars
    with pytest.raises(ValueError, match=r"XGrammarLogitsProcessor\(compiled_grammar"):
        write(xgrammar.contrib.hf.LogitsProcessor(grammar), SpeculativeDecoding(DRAFT))


if __name__ == "__main__":
    status = pytest.main([__file__, "-q", "-n0", "-p", "no:cacheprovider"])
    if status == 0:
        names = ("xgrammar", "outlines_core", "transformers", "torch")
        versions = {name: importlib.metadata.version(name) for name in names}
        Path(sys.argv[1]).write_text(json.dumps({"passed": True, "versions": versions}) + "\n")
    sys.exit(status)
