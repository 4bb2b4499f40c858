"""Where a text of `generate` stops, and what a streamer gets of it."""

import pytest
import torch
import transformers
from drafted_texts import PROMPTS, VOCAB, greedy, model_of, one_prompt, perturbed_target, prompts
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedTokenizerFast,
    StoppingCriteria,
)

from warpdraft.integrations.transformers import FusedSampling, SpeculativeDecoding, generate


@pytest.fixture
def target():
    return model_of("llama")


@pytest.fixture
def draft():
    return model_of("llama", seed=1)


@pytest.fixture
def good_draft():
    return perturbed_target()


@pytest.fixture(scope="module")
def tokenizer():
    """One letter a token, so that a stop string spans tokens."""
    letters = [chr(ord("0") + number) for number in range(VOCAB)]
    words = Tokenizer(models.WordLevel({letter: n for n, letter in enumerate(letters)}, letters[0]))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=letters[0])


class Recorder:
    """A streamer that remembers what it was given."""

    def __init__(self):
        self.values, self.ends = [], 0

    def put(self, value):
        self.values.append(value)

    def end(self):
        self.ends += 1

    @property
    def tokens(self):
        return torch.cat([value.flatten() for value in self.values])


# stopping


class StopAt(StoppingCriteria):
    """Stops a row that ends with one of the tokens."""

    def __init__(self, tokens):
        self.tokens = torch.tensor(tokens)

    def __call__(self, input_ids, scores, **kwargs):
        return torch.isin(input_ids[:, -1], self.tokens)


def test_a_custom_criterion_stops_inside_an_accepted_run(target):
    arguments = prompts() | {"max_new_tokens": 30, "eos_token_id": 63}
    written = greedy(target, **arguments)
    # a token from the middle of each row
    criteria = transformers.StoppingCriteriaList([StopAt(written[:, 14:20].diagonal().tolist())])
    expected = greedy(target, **arguments, stopping_criteria=criteria)
    assert expected.shape[1] < 35
    spec = SpeculativeDecoding(target, draft_length=8)
    assert torch.equal(greedy(target, spec, **arguments, stopping_criteria=criteria), expected)


@pytest.mark.parametrize("lengths", [[20, 8], [8, 20], [5], [3, 30]], ids=str)
def test_every_length_of_the_caller_counts(target, draft, lengths):
    criteria = transformers.StoppingCriteriaList(MaxLengthCriteria(length) for length in lengths)
    expected = greedy(target, **prompts(), max_new_tokens=30, stopping_criteria=criteria)
    spec = SpeculativeDecoding(draft, draft_length=3)
    written = greedy(target, spec, **prompts(), max_new_tokens=30, stopping_criteria=criteria)
    assert torch.equal(written, expected)
    assert expected.shape[1] == max(min(lengths), PROMPTS.shape[1] + 1)


def test_max_time_ends_every_row_after_one_token(target, draft):
    written = greedy(
        target, SpeculativeDecoding(draft), **prompts(), max_new_tokens=30, max_time=0.0
    )
    assert written.shape[1] == PROMPTS.shape[1] + 1


@pytest.fixture
def stop_string(target, tokenizer):
    """Two letters that the greedy text of the first row holds in its middle."""
    written = greedy(target, **prompts(), max_new_tokens=30)
    return tokenizer.decode(written[0, 12:14])


def stopped(target, tokenizer, stop_string):
    return greedy(
        target,
        **prompts(),
        max_new_tokens=30,
        eos_token_id=63,
        stop_strings=stop_string,
        tokenizer=tokenizer,
    )


def test_stop_strings(target, draft, tokenizer, stop_string):
    expected = stopped(target, tokenizer, stop_string)
    assert (expected[0] == 0).any()
    for drafter in (draft, target):
        arguments = {**prompts(), "max_new_tokens": 30, "eos_token_id": 63, "do_sample": False}
        spec = SpeculativeDecoding(
            drafter, draft_length=8, tokenizer=tokenizer, stop_strings=[stop_string]
        )
        assert torch.equal(target.generate(custom_generate=spec, **arguments), expected)
        both = {"stop_strings": stop_string, "tokenizer": tokenizer}
        assert torch.equal(generate(target, drafter, **arguments, **both), expected)


def test_stop_strings_of_a_generation_config(target, draft, tokenizer, stop_string, monkeypatch):
    expected = stopped(target, tokenizer, stop_string)
    config = GenerationConfig(
        max_new_tokens=30, eos_token_id=63, pad_token_id=0, stop_strings=[stop_string]
    )
    written = generate(target, draft, **prompts(), generation_config=config, tokenizer=tokenizer)
    assert torch.equal(written, expected)
    assert config.stop_strings == [stop_string]
    monkeypatch.setattr(target, "generation_config", config)
    written = generate(target, draft, **prompts(), tokenizer=tokenizer)
    assert torch.equal(written, expected)
    assert target.generation_config is config and config.stop_strings == [stop_string]


def test_stop_strings_need_the_tokenizer(target, draft):
    with pytest.raises(ValueError, match="tokenizer="):
        SpeculativeDecoding(draft, stop_strings="x")
    with pytest.raises(ValueError, match="tokenizer="):
        generate(target, draft, **one_prompt(), stop_strings="x")


# streamers


@pytest.mark.parametrize("drafting", [False, True], ids=["fused", "speculative"])
def test_a_streamer_gets_prompt_and_text_once(target, good_draft, drafting):
    direct, through = Recorder(), Recorder()
    custom = (
        SpeculativeDecoding(good_draft, streamer=direct)
        if drafting
        else FusedSampling(streamer=direct)
    )
    arguments = one_prompt() | {"max_new_tokens": 17, "do_sample": False}
    expected = target.generate(**arguments)
    assert torch.equal(target.generate(custom_generate=custom, **arguments), expected)
    generate(target, good_draft if drafting else None, **arguments, streamer=through)
    for streamer in (direct, through):
        assert torch.equal(streamer.tokens, expected[0]) and streamer.ends == 1
        assert streamer.values[0].shape == (1, 5)
        assert all(value.ndim == 1 for value in streamer.values[1:])


class Failing(LogitsProcessor):
    stateless = True

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] > 8:
            raise RuntimeError("failing on purpose")
        return scores


def test_a_streamer_is_ended_when_anything_fails(target, draft):
    failures = [
        (RuntimeError, {"logits_processor": LogitsProcessorList([Failing()])}),
        (ValueError, {"num_beams": 2}),
    ]
    for error, arguments in failures:
        streamer = Recorder()
        spec = SpeculativeDecoding(draft, streamer=streamer)
        with pytest.raises(error):
            target.generate(**one_prompt(), max_new_tokens=9, custom_generate=spec, **arguments)
        assert streamer.ends == 1
    before_the_run = [{"max_new_tokens": 0}, {"no_such_argument": 1}, {"assistant_model": draft}]
    for arguments in [arguments for _, arguments in failures] + before_the_run:
        streamer = Recorder()
        with pytest.raises((ValueError, RuntimeError)):
            generate(
                target,
                draft,
                **one_prompt(),
                **{"max_new_tokens": 9} | arguments,
                streamer=streamer,
            )
        assert streamer.ends == 1
