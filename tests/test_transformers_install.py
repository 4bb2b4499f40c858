"""`install`: plain generation by our kernels, and exactly transformers' own classes after it."""

import pytest
import torch
import transformers.generation.utils as generation_utils
from tiny_models import tiny_model
from transformers import ContinuousBatchingConfig, GenerationConfig

from warpdraft import TopH, truncate
from warpdraft.integrations.transformers import SpeculativeDecoding, install
from warpdraft.processors import CONVERSIONS

ORIGINALS = {name: getattr(generation_utils, name) for name in CONVERSIONS}
ARGUMENTS = {
    "TopHLogitsWarper": {"top_h": 0.4},
    "TopKLogitsWarper": {"top_k": 9},
    "TopPLogitsWarper": {"top_p": 0.8},
    "MinPLogitsWarper": {"min_p": 0.07},
    "EpsilonLogitsWarper": {"epsilon": 0.001},
}


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", vocab=500)


@pytest.fixture
def rows():
    return torch.randn(40, 3000, generator=torch.Generator().manual_seed(2)) * 2.5


@pytest.mark.parametrize("name", ARGUMENTS)
def test_scores_are_those_of_transformers_bit_for_bit(name, rows):
    expected = ORIGINALS[name](**ARGUMENTS[name])(None, rows.clone())
    with install(top_h_variant="transformers"):
        warper = getattr(generation_utils, name)(**ARGUMENTS[name])
    assert isinstance(warper, ORIGINALS[name]) and type(warper) is not ORIGINALS[name]
    assert torch.equal(warper(None, rows), expected)


def test_typical_and_eta_stay_transformers_own():
    with install():
        for name in ORIGINALS.keys() - ARGUMENTS.keys():
            assert getattr(generation_utils, name) is ORIGINALS[name]
    assert ORIGINALS.keys() - ARGUMENTS.keys() == {"TypicalLogitsWarper", "EtaLogitsWarper"}


def test_the_papers_rule_and_the_order_of_warpers(model, rows):
    config = GenerationConfig(do_sample=True, temperature=1.5, top_h=0.6, top_k=30, min_p=0.01)
    plain = [type(processor).__name__ for processor in model._get_logits_processor(config)]
    with install():
        processors = model._get_logits_processor(config)
        warper = generation_utils.TopHLogitsWarper(top_h=0.6)
    assert [type(processor).__name__ for processor in processors] == plain
    assert torch.equal(warper(None, rows), truncate(rows, TopH(0.6, variant="paper")))


def test_speculation_takes_the_installed_rules(model):
    with install():
        output = model.generate(
            torch.tensor([[4, 9]]),
            do_sample=True,
            top_h=0.4,
            top_k=0,
            max_new_tokens=3,
            return_dict_in_generate=True,
            custom_generate=SpeculativeDecoding(model),
        )
    assert output.stats.rules == (repr(TopH(0.4, variant="paper")),)


def current():
    return {name: getattr(generation_utils, name) for name in CONVERSIONS}


def test_installations_nest_and_are_undone_in_any_order():
    def variant():
        return generation_utils.TopHLogitsWarper(top_h=0.4).truncation_rule.variant

    first, second = install("paper"), install("transformers")
    assert variant() == "transformers"
    first.uninstall()
    first.uninstall()
    assert variant() == "transformers"
    third = install()
    assert variant() == "paper"
    third.uninstall()
    second.uninstall()
    assert current() == ORIGINALS
    with pytest.raises(RuntimeError, match="on purpose"), install():
        raise RuntimeError("on purpose")
    assert current() == ORIGINALS


def test_an_unknown_variant():
    with pytest.raises(ValueError, match="top_h_variant must be"):
        install("authors")
    assert current() == ORIGINALS


def test_continuous_batching_draws_from_the_papers_support(model):
    config = GenerationConfig(
        do_sample=True, top_h=0.05, top_k=0, max_new_tokens=6, eos_token_id=None, pad_token_id=0
    )
    batching = ContinuousBatchingConfig(block_size=16, num_blocks=8, max_batch_tokens=32)
    with install():
        outputs = model.generate_batch(
            [[5, 9, 2], [7, 7]], generation_config=config, continuous_batching_config=batching
        )
    assert len(outputs) == 2
    for output in outputs.values():
        text = [*output.prompt_ids, *output.generated_tokens]
        logits = model(torch.tensor([text])).logits[0, len(output.prompt_ids) - 1 : -1]
        kept = ~truncate(logits, TopH(0.05, variant="paper")).isneginf()
        assert len(output.generated_tokens) == 6
        assert kept[range(6), output.generated_tokens].all()
