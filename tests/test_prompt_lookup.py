from __future__ import annotations

import numpy as np
import pytest
import torch
from enumeration import DraftSets, Tables, block_law
from path_enumeration import path_law
from tiny_models import tiny_model

from warpdraft.integrations.transformers import PromptLookup, SpeculativeDecoding, generate
from warpdraft.verification import VERIFIERS, get_verifier
from warpdraft.verifiers.optimal_block import OptimalBlock

# rows that repeat themselves, one that does not, padding inside and in front
PROMPTS = torch.tensor(
    [[5, 9, 2, 30, 41, 5, 9, 2], [0, 0, 7, 7, 12, 7, 7, 12], [0, 3, 61, 8, 20, 21, 22, 23]]
)
PROMPT = {"input_ids": PROMPTS, "attention_mask": (PROMPTS != 0).long()}


@pytest.fixture(scope="module")
def model():
    return tiny_model(vocab=64, spread=12.0)


@pytest.fixture(scope="module")
def looping():
    """A model that reads the last token only, and so repeats itself before long."""
    model = tiny_model(vocab=64, spread=12.0)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    return model


@pytest.mark.parametrize(
    ("text", "options", "num_drafts", "expected"),
    [
        ([1, 2, 3, 4, 1, 2], {}, 1, [[3, 4, 1, 2]]),
        ([1, 2, 3, 9, 2, 4, 1, 2], {}, 1, [[3, 9, 2, 4]]),
        ([1, 2, 3, 9, 2, 4, 1, 2], {}, 3, [[3, 9, 2, 4], [4, 1, 2, 4]]),
        ([1, 2, 3, 9, 2, 4, 1, 2], {"max_ngram": 1}, 1, [[4, 1, 2, 4]]),
        ([1, 2, 3, 9, 2, 4, 1, 2], {"min_ngram": 2}, 3, [[3, 9, 2, 4]]),
        ([5, 6, 5, 6], {}, 2, [[5, 6, 5, 6]]),
        ([7, 7, 7], {}, 4, [[7, 7, 7, 7]]),
        ([1, 2, 3], {}, 4, []),
        ([1], {}, 4, []),
    ],
    ids=lambda value: str(value),
)
def test_continuations(text, options, num_drafts, expected):
    found = PromptLookup(**options).continuations(np.array(text), num_drafts, 4)
    assert found == expected


def written(model, options, **arguments):
    settings = {"max_new_tokens": 24, "seed": 1, "return_dict_in_generate": True, **options}
    return generate(model, PromptLookup(3), **PROMPT, **settings, **arguments)


WAYS = {
    "one path": {"num_drafts": 1},
    "four paths": {"num_drafts": 4},
    "four paths as rows": {"num_drafts": 4, "layout": "paths"},
    "optimal_block": {"num_drafts": 1, "verifier": "optimal_block"},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize(
    "processors",
    [{}, {"repetition_penalty": 1.5, "no_repeat_ngram_size": 3}, {"eos_token_id": 11}],
    ids=["bare", "reading the text", "end"],
)
def test_greedy_equals_generate(model, options, processors):
    plain = model.generate(
        **PROMPT, max_new_tokens=24, do_sample=False, pad_token_id=0, **processors
    )
    output = written(model, options, do_sample=False, pad_token_id=0, **processors)
    assert torch.equal(output.sequences, plain)


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS.keys())
def test_a_text_that_repeats_itself_costs_few_calls(looping, options):
    plain = looping.generate(**PROMPT, max_new_tokens=60, do_sample=False)
    output = written(looping, {**options, "max_new_tokens": 60}, do_sample=False)
    assert torch.equal(output.sequences, plain)
    assert output.stats.block_efficiency > 2.5


def test_a_row_does_not_depend_on_the_batch_around_it():
    model = tiny_model(vocab=64, spread=12.0, dtype=torch.float64)
    arguments = {"do_sample": True, "top_k": 0, "max_new_tokens": 20, "seed": 4}
    whole = generate(model, PromptLookup(), **PROMPT, sequence=torch.tensor([5, 6, 7]), **arguments)
    for row in range(len(PROMPTS)):
        alone = {name: tensor[row : row + 1] for name, tensor in PROMPT.items()}
        text = generate(
            model, PromptLookup(), **alone, sequence=torch.tensor([5 + row]), **arguments
        )
        assert torch.equal(text[0], whole[row]), f"row {row}"


def test_where_nothing_matches_a_block_is_a_plain_step():
    model = tiny_model(vocab=64)
    text = {"input_ids": PROMPTS[2:, 1:]}
    output = generate(
        model, PromptLookup(), **text, max_new_tokens=1, return_dict_in_generate=True, seed=1
    )
    assert output.stats.drafted_tokens == 0
    assert output.stats.target_calls == output.stats.emitted_tokens == 1


def test_statistics_count_what_was_found(looping):
    stats = written(looping, {"num_drafts": 4}, do_sample=False).stats
    assert 0 < stats.drafted_tokens < 4 * stats.target_calls
    assert stats.drafted_tokens == sum(stats.drafted_by_position)
    assert stats.accepted_tokens == sum(stats.accepted_by_position)
    assert stats.verifier == "target_only"


# ---- exact laws


def point_masses(vocab: int, length: int, seed: int) -> Tables:
    """Random target laws, and draft laws that are certain of one token after every prefix."""
    tables = Tables.random(vocab, length, seed, zeros=True)
    certain = [
        torch.nn.functional.one_hot(laws.argmax(1), vocab).to(laws.dtype) for laws in tables.draft
    ]
    return Tables(tables.target, certain, certain)


NODE_VERIFIERS = sorted(VERIFIERS.keys() - {"block", "optimal_block", "traversal"})


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", NODE_VERIFIERS)
def test_one_certain_path_is_verified_exactly(name, seed):
    block = block_law(get_verifier(name), point_masses(3, 2, seed), num_drafts=1)
    assert block.deviation < 1e-12


def test_block_verification_of_one_certain_path_is_exact():
    tables = point_masses(3, 3, seed=1)
    assert path_law(OptimalBlock(num_bins=None), tables, 1).deviation < 1e-12


def test_target_only_takes_several_certain_paths_of_different_lengths():
    tables = point_masses(3, 2, seed=1)
    paths = torch.tensor([[[0, 1], [2, -1], [0, 2]]])
    drafts = DraftSets(paths, paths >= 0, torch.ones(1, dtype=torch.float64))
    block = block_law(get_verifier("target_only"), tables, 3, drafts)
    assert block.deviation < 1e-12
    assert block.survival[0] > 0


# ---- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_drafts": 2, "verifier": "optimal_block"}, "are no draws from one law"),
        ({"num_drafts": 1, "verifier": "k_seq", "structure": "rollover"}, "structure"),
    ],
)
def test_drafts_that_are_no_draws_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SpeculativeDecoding(PromptLookup(), **options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_ngram": 0}, ValueError),
        ({"min_ngram": 4}, ValueError),
        ({"max_ngram": 2.0}, TypeError),
    ],
    ids=str,
)
def test_lengths_that_do_not_fit_are_refused(options, error):
    with pytest.raises(error, match=r"ngram must be .*got"):
        PromptLookup(**options)


def test_transformers_own_argument_names_ours(model):
    with pytest.raises(ValueError, match=r"pass PromptLookup\(max_matching_ngram_size\)"):
        generate(model, None, **PROMPT, prompt_lookup_num_tokens=4)
