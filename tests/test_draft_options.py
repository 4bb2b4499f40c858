"""Every verifier, structure and layout through `model.generate`: what does not depend on them, and what is refused."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_model

from warpdraft.integrations.transformers import SpeculativeDecoding, generate
from warpdraft.verification import VERIFIERS
from warpdraft.verifiers.k_seq import KSeq

VOCAB = 64
PROMPTS = torch.tensor([[5, 9, 2, 30, 41], [0, 0, 7, 7, 12], [0, 3, 61, 8, 20]])
PROMPT = {"input_ids": PROMPTS, "attention_mask": (PROMPTS != 0).long()}

WAYS = {
    **{name: {"verifier": name} for name in sorted(VERIFIERS.keys() - {"block"})},
    "block": {"verifier": "block", "num_drafts": 1},
    "hybrid": {"verifier": "optimal", "num_top": 1},
    "lex": {"verifier": "optimal_block", "selector": "lex"},
    "k_seq, rollover": {"verifier": "k_seq", "structure": "rollover", "node_budget": 7},
    "recursive, rollover": {"verifier": "recursive", "structure": "rollover"},
    "optimal_block, rollover": {"verifier": "optimal_block", "structure": "rollover"},
}
on_ways = pytest.mark.parametrize("options", WAYS.values(), ids=WAYS.keys())


@pytest.fixture(scope="module")
def target():
    return tiny_model("gemma3", vocab=VOCAB, context=256)


@pytest.fixture(scope="module")
def draft():
    """The target with a perturbed output layer: accepted runs of every length."""
    draft = tiny_model("gemma3", vocab=VOCAB, context=256)
    weight = draft.get_output_embeddings().weight
    with torch.no_grad():
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
        weight.add_(noise * weight.std() / 4)
    return draft


def written(target, draft, options, **arguments):
    settings = {"num_drafts": 3, "draft_length": 4, "seed": 1, "max_new_tokens": 24, **options}
    return generate(
        target, draft, **PROMPT, top_k=0, return_dict_in_generate=True, **settings, **arguments
    )


@pytest.mark.parametrize("layout", ["paths", "tree"])
@on_ways
def test_greedy_equals_generate(target, draft, options, layout):
    plain = target.generate(**PROMPT, max_new_tokens=24, do_sample=False)
    output = written(target, draft, {**options, "layout": layout}, do_sample=False)
    assert torch.equal(output.sequences, plain)
    assert output.stats.block_efficiency > 1.5


@on_ways
def test_both_layouts_write_the_same_text(target, draft, options):
    # caches that kept a wrong path would show in the second block
    texts = [
        written(target, draft, {**options, "layout": layout}, do_sample=True).sequences
        for layout in ("paths", "tree")
    ]
    assert torch.equal(*texts)


@on_ways
def test_an_identical_draft_is_always_accepted_but_by_target_only(target, options):
    stats = written(target, target, {**options, "max_new_tokens": 60}, do_sample=True).stats
    if options["verifier"] == "target_only":
        # the most likely tokens cannot cover a sampled text, whatever the models
        assert 0.2 < stats.acceptance_rate < 1
    else:
        assert stats.acceptance_rate == 1


def test_statistics_of_the_rows_add_up(target, draft):
    stats = written(target, draft, {"structure": "rollover"}, do_sample=True).stats
    assert len(stats.target_calls_by_row) == len(stats.emitted_tokens_by_row) == len(PROMPTS)
    assert sum(stats.target_calls_by_row) == stats.target_calls
    assert sum(stats.emitted_tokens_by_row) == stats.emitted_tokens == 24 * len(PROMPTS)


def test_a_verifier_itself_can_be_given(target, draft):
    by_name = written(target, draft, {"verifier": "k_seq"}, do_sample=True)
    by_value = written(target, draft, {"verifier": KSeq()}, do_sample=True)
    assert torch.equal(by_name.sequences, by_value.sequences)
    assert by_value.stats.verifier == "k_seq"


BATCHED = {
    "k_seq, rollover": {"verifier": "k_seq", "structure": "rollover", "node_budget": 9},
    "optimal_block, rollover": {"structure": "rollover", "node_budget": 9},
    "without replacement": {"verifier": "recursive_without_replacement"},
    "traversal": {"verifier": "traversal"},
    "greedy_drafts": {"verifier": "greedy_drafts"},
}


@pytest.mark.parametrize("layout", ["paths", "tree"])
@pytest.mark.parametrize("options", BATCHED.values(), ids=BATCHED.keys())
def test_a_row_does_not_depend_on_the_batch_around_it(options, layout):
    # the numbers of the paths name noise: they must be the text's own, however many paths the others have
    models = [tiny_model(seed=seed, vocab=VOCAB, dtype=torch.float64) for seed in (0, 1)]
    settings = {"num_drafts": 3, "draft_length": 4, "layout": layout, **options}
    arguments = {"do_sample": True, "top_k": 0, "max_new_tokens": 20, "seed": 4, **settings}
    whole = generate(*models, **PROMPT, sequence=torch.tensor([5, 6, 7]), **arguments)
    for row in range(len(PROMPTS)):
        alone = {name: tensor[row : row + 1] for name, tensor in PROMPT.items()}
        text = generate(*models, **alone, sequence=torch.tensor([5 + row]), **arguments)
        assert torch.equal(text[0], whole[row]), f"row {row}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"verifier": "k_seq", "selector": "lex"}, 'verifier "k_seq" has no selector'),
        ({"verifier": "optimal_block", "num_top": 1}, "has no num_top"),
        ({"verifier": "optimal", "selector": "best"}, "selector must be"),
        ({"verifier": KSeq(), "selector": "lex"}, "itself"),
        ({"verifier": "greedy_drafts", "structure": "rollover"}, "i.i.d."),
        ({"structure": "star"}, "structure must be one of"),
        ({"node_budget": 12}, "belongs to structure"),
        ({"structure": "rollover", "node_budget": 2}, "node_budget must be in"),
        ({"layout": "rows"}, "layout must be one of"),
        ({"verifier": "block"}, "takes num_drafts=1, got 4"),
        ({"verifier": "block", "num_drafts": 1, "structure": "rollover"}, "with structure"),
    ],
)
def test_options_that_do_not_fit_fail_when_the_object_is_built(draft, options, message):
    with pytest.raises(ValueError, match=message):
        SpeculativeDecoding(draft, **options)
