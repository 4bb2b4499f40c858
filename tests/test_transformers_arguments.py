"""What `generate` refuses: arguments, options, models and processors that nobody could honour."""

import functools
import inspect
import reprlib

import pytest
import torch
from drafted_texts import PROMPTS, VOCAB, model_of, one_prompt, prompts
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    Lfm2Config,
    LogitsProcessor,
    LogitsProcessorList,
    MambaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from warpdraft.integrations import transformers_arguments
from warpdraft.integrations.transformers import (
    FusedSampling,
    RulesLogitsProcessor,
    SpeculativeDecoding,
    generate,
)
from warpdraft.integrations.transformers_arguments import ARGUMENTS
from warpdraft.rules import MinP, TopK


@pytest.fixture
def target():
    return model_of("llama")


@pytest.fixture
def draft():
    return model_of("llama", seed=1)


# the table of arguments


def test_the_table_knows_every_field_and_parameter():
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    parameters = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}
    known = set(ARGUMENTS)
    assert fields - {"transformers_version"} <= known
    assert parameters <= known
    others = known - fields - parameters
    assert others == {
        "input_ids",
        "attention_mask",
        "position_ids",
        "past_key_values",
        "logits_to_keep",
        "inputs_embeds",
        "tokenizer",
        "assistant_tokenizer",
        "trust_remote_code",
    }


REFUSED = {
    "num_beams": 2,
    "num_beam_groups": 2,
    "constraints": [object()],
    "force_words_ids": [[1]],
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "use_mtp": True,
    "use_cache": False,
    "cache_implementation": "offloaded",
    "cache_config": {"backend": "quanto"},
    "prefill_chunk_size": 4,
    "guidance_scale": 2.0,
    "token_healing": True,
    "output_attentions": True,
    "output_hidden_states": True,
    "is_assistant": True,
    "prompt_lookup_num_tokens": 3,
    "assistant_early_exit": 1,
    "speculation_type": "dflash",
    "assistant_ensemble_weight": 0.5,
    "inputs_embeds": torch.zeros(1, 5, 32),
    "assistant_model": "another model",
    "assistant_tokenizer": "another tokenizer",
    "synced_gpus": True,
    "negative_prompt_ids": torch.ones(1, 2, dtype=torch.int64),
    "negative_prompt_attention_mask": torch.ones(1, 2, dtype=torch.int64),
    "custom_generate": "a/repository",
}


def test_every_refused_argument_has_a_case():
    assert set(REFUSED) == {name for name, a in ARGUMENTS.items() if a.treatment == "refused"}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_argument_is_named_by_generate(target, draft, name):
    with pytest.raises(ValueError, match=f"{name}=.*cannot be used"):
        generate(target, draft, **one_prompt(), max_new_tokens=4, **{name: REFUSED[name]})


# these are dropped, or refused by transformers itself, before a custom_generate object is called
NOT_SEEN = {
    "assistant_model",
    "assistant_tokenizer",
    "synced_gpus",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "custom_generate",
    "token_healing",
}


@pytest.mark.parametrize("name", sorted(set(REFUSED) - NOT_SEEN))
def test_a_refused_argument_is_named_through_model_generate(target, draft, name):
    arguments = one_prompt() | {"max_new_tokens": 4, name: REFUSED[name]}
    if name in ("output_attentions", "output_hidden_states"):
        arguments["return_dict_in_generate"] = True
    with pytest.raises(ValueError, match=name):
        target.generate(custom_generate=SpeculativeDecoding(draft), **arguments)


def test_a_refused_argument_of_the_models_own_config(target, draft, monkeypatch):
    config = GenerationConfig(num_beams=3)
    monkeypatch.setattr(target, "generation_config", config)
    with pytest.raises(ValueError, match="num_beams=3"):
        generate(target, draft, **one_prompt(), max_new_tokens=4)


def test_model_arguments_that_the_draft_would_not_see():
    model = model_of("gpt2")
    with pytest.raises(ValueError, match="token_type_ids"):
        generate(
            model,
            model,
            **one_prompt(),
            max_new_tokens=4,
            token_type_ids=torch.zeros_like(PROMPTS[:1]),
        )
    shifted = torch.arange(5)[None] + 7
    with pytest.raises(ValueError, match="position_ids must count"):
        generate(model, model, **one_prompt(), max_new_tokens=4, position_ids=shifted)


# models


def encoder_decoder():
    config = T5Config(
        vocab_size=VOCAB,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config)


def stateful():
    config = MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4)
    return AutoModelForCausalLM.from_config(config)


def convolutional():
    config = Lfm2Config(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        layer_types=["conv", "full_attention"],
    )
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (encoder_decoder, "encoder-decoder"),
        (stateful, "keeps a state"),
        (convolutional, "keeps a state"),
    ],
    ids=["encoder_decoder", "stateful", "convolutional"],
)
def test_models_that_cannot_be_used(target, draft, make, message):
    model = make()
    with pytest.raises(ValueError, match=f"draft model.*{message}"):
        generate(target, model, **one_prompt(), max_new_tokens=4)
    with pytest.raises(ValueError, match=f"target model.*{message}"):
        generate(model, draft, **one_prompt(), max_new_tokens=4)


def test_a_model_that_is_sharded_over_ranks(target, draft, monkeypatch):
    monkeypatch.setattr(transformers_arguments, "is_deepspeed_zero3_enabled", lambda: True)
    written = generate(target, draft, **one_prompt(), max_new_tokens=4)
    assert written.shape == (1, 9)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"sharded over ranks \(ZeRO-3"):
        target.generate(
            **one_prompt(), max_new_tokens=4, custom_generate=SpeculativeDecoding(draft)
        )


def test_a_draft_with_another_tokenizer(target):
    other = model_of("llama", vocab=2000)
    with pytest.raises(ValueError, match=r"64 tokens.*2000.*do not share a tokenizer"):
        generate(target, other, **one_prompt(), max_new_tokens=4)


def test_more_tokens_than_the_context_holds(target, draft):
    with pytest.raises(ValueError, match="256"):
        generate(target, draft, **one_prompt(), max_new_tokens=252)


class Unknown(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores


def test_an_unknown_processor_is_refused_or_trusted(target, draft):
    arguments = one_prompt() | {
        "max_new_tokens": 4,
        "do_sample": False,
        "logits_processor": LogitsProcessorList([Unknown()]),
    }
    with pytest.raises(ValueError, match="Unknown is unknown"):
        generate(target, draft, **arguments)
    written = generate(target, draft, **arguments, trusted=[Unknown])
    assert torch.equal(written, target.generate(**arguments))


@pytest.mark.parametrize("drafting", [False, True], ids=["fused", "speculative"])
def test_parameters_of_each_row_fit_plain_generation_alone(target, draft, drafting):
    rule = TopK(torch.tensor([1, 30, 5]))
    make = functools.partial(SpeculativeDecoding, draft) if drafting else FusedSampling
    with pytest.raises(ValueError, match=r"top_k must be one number for all rows .* tensor \[3\]"):
        make(rules=rule)
    arguments = prompts() | {"max_new_tokens": 3, "do_sample": True, "top_k": 0}
    processors = LogitsProcessorList([RulesLogitsProcessor(rule)])
    plain = target.generate(**arguments, logits_processor=processors)
    assert plain.shape == (3, 8)
    with pytest.raises(ValueError, match="RulesLogitsProcessor has a parameter of every row"):
        target.generate(**arguments, logits_processor=processors, custom_generate=make())


# options


BAD_OPTIONS = [
    ({"num_drafts": 0}, ValueError, r"num_drafts must be in \[1, 4096\], got 0"),
    ({"draft_length": 0}, ValueError, r"draft_length must be in \[1, 255\], got 0"),
    ({"draft_length": 256}, ValueError, r"draft_length must be in \[1, 255\], got 256"),
    ({"verifier": "k_sequence"}, ValueError, "verifier must be .*k_seq.*got 'k_sequence'"),
    ({"verifier": ["k_seq"]}, ValueError, r"verifier must be .*got \['k_seq'\]"),
    ({"rules": [0.4]}, TypeError, "rules must .*0.4"),
    ({"stop_strings": 3}, TypeError, "stop_strings must be a str or a list of them, got 3"),
    ({"stop_strings": [3]}, TypeError, "stop_strings must be a str or a list of them"),
    ({"stop_strings": []}, ValueError, "stop_strings must be texts of at least one letter"),
    ({"stop_strings": ""}, ValueError, "stop_strings must be texts of at least one letter"),
    ({"trusted": MinP}, TypeError, "trusted must be types of logits processors"),
    ({"trusted": ["Failing"]}, TypeError, "trusted must be types of logits processors"),
    ({"compile": 1}, TypeError, "compile must be True or False, got 1"),
    ({"compile": True, "structure": "rollover"}, ValueError, "compile=True need the same number"),
    ({"num_top": 3, "structure": "rollover", "verifier": "optimal"}, ValueError, "num_top=3"),
    ({"num_drafts": 2.0}, TypeError, "num_drafts must be an int, got 2.0"),
    ({"seed": "7"}, TypeError, "seed must be an int, got '7'"),
    ({"streamer": 3}, TypeError, r"streamer must have put\(\) and end\(\), got 3"),
]


@pytest.mark.parametrize(
    ("options", "error", "message"), BAD_OPTIONS, ids=[str(options) for options, *_ in BAD_OPTIONS]
)
def test_bad_options_fail_when_the_object_is_built(draft, options, error, message):
    with pytest.raises(error, match=message):
        SpeculativeDecoding(draft, **options)


@pytest.mark.parametrize(
    "draft", [None, "gpt2", torch.nn.Linear(2, 2)], ids=["none", "name", "module"]
)
def test_a_draft_that_cannot_draft_is_refused(draft):
    with pytest.raises(
        TypeError, match="draft must be a causal language model or a draft source, got"
    ) as refusal:
        SpeculativeDecoding(draft)
    assert f"got {reprlib.repr(draft)}:" in str(refusal.value)
