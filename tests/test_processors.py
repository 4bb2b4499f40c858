"""Every transformers processor, once a row, gives what `generate` would give."""

import inspect
import math

import pytest
import torch
import transformers.generation.logits_process as library
from transformers import GenerationConfig, LogitsProcessorList

from warpdraft.integrations.transformers import MinPLogitsProcessor, TopHLogitsProcessor
from warpdraft.processor_table import TABLE, Kind
from warpdraft.processors import Prefixes, ProcessorStack
from warpdraft.rules import TopH, TopK
from warpdraft.truncation import truncate

VOCAB = 24
EOS = 3
# the fourth and fifth row are two draft paths of batch row 0; row 2 is missing from the call
LENGTHS = [5, 7, 5, 6, 7]
BATCH_INDEX = [0, 1, 3, 0, 0]
BATCH = 4


def ragged_call(seed=0):
    """Logits and prefixes of five rows; the unused tail of `token_ids` would be seen if read."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(LENGTHS), VOCAB, generator=generator) * 2.5
    token_ids = torch.randint(0, 8, (len(LENGTHS), 9), generator=generator)
    lengths = torch.tensor(LENGTHS)
    unused = torch.arange(9) >= lengths[:, None]
    return logits, Prefixes(
        token_ids.masked_fill(unused, 11), lengths, torch.tensor(BATCH_INDEX), BATCH
    )


def row_by_row(logits, prefixes, processors_of):
    """transformers' own list on each row alone, with the row's own unpadded prefix."""
    rows = [
        LogitsProcessorList(processors_of(batch_row))(
            prefixes.token_ids[row : row + 1, :length], logits[row : row + 1].clone()
        )
        for row, (batch_row, length) in enumerate(
            zip(prefixes.batch_index.tolist(), prefixes.lengths.tolist(), strict=True)
        )
    ]
    return torch.cat(rows)


ENCODER_IDS = torch.tensor([[1, 2, 5, 2], [4, 4, 7, 6], [0, 1, 0, 3], [6, 5, 6, 2]])


def allowed_tokens(batch_row, prefix):
    """Refuses prefixes that are not those of its row, as a real constraint would."""
    _, prefixes = ragged_call()
    own = [
        prefixes.token_ids[row, :length].tolist()
        for row, length in enumerate(LENGTHS)
        if BATCH_INDEX[row] == batch_row
    ]
    assert prefix.tolist() in own, f"row {batch_row} was asked about a prefix of another row"
    return [batch_row, 5 + int(prefix[-1]), 20]


def whisper_config():
    config = GenerationConfig(eos_token_id=EOS)
    config.no_timestamps_token_id = 15
    config.max_initial_timestamp_index = 4
    return config


# class name -> instance for one batch row, or for the whole batch where the row is None
CASES = {
    "AlternatingCodebooksLogitsProcessor": lambda row: library.AlternatingCodebooksLogitsProcessor(
        2, 10, 6
    ),
    "BarkEosPrioritizerLogitsProcessor": lambda row: library.BarkEosPrioritizerLogitsProcessor(
        EOS, 0.02
    ),
    "EncoderNoRepeatNGramLogitsProcessor": lambda row: library.EncoderNoRepeatNGramLogitsProcessor(
        1, ENCODER_IDS if row is None else ENCODER_IDS[row : row + 1]
    ),
    "EncoderRepetitionPenaltyLogitsProcessor": lambda row: (
        library.EncoderRepetitionPenaltyLogitsProcessor(
            1.7, ENCODER_IDS if row is None else ENCODER_IDS[row : row + 1]
        )
    ),
    "EpsilonLogitsWarper": lambda row: library.EpsilonLogitsWarper(0.03),
    "EtaLogitsWarper": lambda row: library.EtaLogitsWarper(0.05),
    "ExponentialDecayLengthPenalty": lambda row: library.ExponentialDecayLengthPenalty(
        (1, 1.4), EOS, 4
    ),
    "ForcedBOSTokenLogitsProcessor": lambda row: library.ForcedBOSTokenLogitsProcessor(1),
    "ForcedEOSTokenLogitsProcessor": lambda row: library.ForcedEOSTokenLogitsProcessor(8, EOS),
    "InfNanRemoveLogitsProcessor": lambda row: library.InfNanRemoveLogitsProcessor(),
    "LogitNormalization": lambda row: library.LogitNormalization(),
    "MinLengthLogitsProcessor": lambda row: library.MinLengthLogitsProcessor(7, EOS),
    "MinNewTokensLengthLogitsProcessor": lambda row: library.MinNewTokensLengthLogitsProcessor(
        4, 2, EOS
    ),
    "MinPLogitsWarper": lambda row: library.MinPLogitsWarper(0.1),
    "NoBadWordsLogitsProcessor": lambda row: library.NoBadWordsLogitsProcessor(
        [[9], [4, 5], [2, 1, 6]], EOS
    ),
    "NoRepeatNGramLogitsProcessor": lambda row: library.NoRepeatNGramLogitsProcessor(2),
    "PrefixConstrainedLogitsProcessor": lambda row: library.PrefixConstrainedLogitsProcessor(
        allowed_tokens if row is None else lambda _, prefix: allowed_tokens(row, prefix), 1
    ),
    "RepetitionPenaltyLogitsProcessor": lambda row: library.RepetitionPenaltyLogitsProcessor(1.6),
    "SequenceBiasLogitsProcessor": lambda row: library.SequenceBiasLogitsProcessor(
        {(9,): 2.0, (4, 5): -3.0, (7, 1): 1.5}
    ),
    "SuppressTokensAtBeginLogitsProcessor": lambda row: (
        library.SuppressTokensAtBeginLogitsProcessor([2, 8], 7)
    ),
    "SuppressTokensLogitsProcessor": lambda row: library.SuppressTokensLogitsProcessor([2, 8]),
    "TemperatureLogitsWarper": lambda row: library.TemperatureLogitsWarper(0.7),
    "TopHLogitsWarper": lambda row: library.TopHLogitsWarper(0.6),
    "TopKLogitsWarper": lambda row: library.TopKLogitsWarper(5),
    "TopPLogitsWarper": lambda row: library.TopPLogitsWarper(0.8),
    "TypicalLogitsWarper": lambda row: library.TypicalLogitsWarper(0.6),
    "WatermarkLogitsProcessor": lambda row: library.WatermarkLogitsProcessor(VOCAB, "cpu"),
    "WhisperTimeStampLogitsProcessor": lambda row: library.WhisperTimeStampLogitsProcessor(
        whisper_config(), 2
    ),
}

# processors that only act at one length, or on scores the ragged call does not have, still act here
TRUNCATING = [name for name in CASES if name.endswith("Warper") and name[:4] != "Temp"]


def library_classes():
    return {
        name
        for name, cls in vars(library).items()
        if inspect.isclass(cls)
        and issubclass(cls, library.LogitsProcessor)
        and cls is not library.LogitsProcessor
    }


class Doubling(library.LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores * 2


class AddingLength(library.LogitsProcessor):
    """Writes into its scores, which a caller's processor may do."""

    stateless = True

    def __call__(self, input_ids, scores):
        scores += input_ids.shape[1]
        return scores


def test_the_table_lists_exactly_the_classes_of_transformers():
    assert set(TABLE) == library_classes()


def test_every_class_that_is_not_refused_has_a_case():
    assert set(CASES) == {name for name, entry in TABLE.items() if entry.kind is not Kind.REFUSED}


@pytest.mark.parametrize("name", CASES)
def test_a_ragged_call_equals_transformers_row_by_row(name):
    logits, prefixes = ragged_call()
    # a truncation with another fill value than -inf is called; a copy of -inf would be converted
    expected = row_by_row(logits, prefixes, lambda row: [CASES[name](row), Doubling()])
    stack = ProcessorStack([CASES[name](None), Doubling()], trusted=[Doubling])
    assert stack.rules == () and stack.temperature == 1.0
    torch.testing.assert_close(stack(logits, prefixes), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name", [name for name, entry in TABLE.items() if entry.kind in (Kind.PREFIX, Kind.ROW_INDEXED)]
)
def test_a_prefix_processor_acts_on_the_ragged_call(name):
    """So that the equality above cannot hold because nothing happens."""
    logits, prefixes = ragged_call()
    if name == "ForcedBOSTokenLogitsProcessor":
        prefixes = prefixes._replace(lengths=torch.ones(len(LENGTHS), dtype=torch.int64))
    assert not torch.equal(ProcessorStack([CASES[name](None)])(logits, prefixes), logits)


def test_padding_a_prefix_would_change_the_repetition_penalty():
    logits, prefixes = ragged_call()
    stack = ProcessorStack([CASES["RepetitionPenaltyLogitsProcessor"](None)])
    padded = prefixes._replace(lengths=torch.full((len(LENGTHS),), max(LENGTHS)))
    assert not torch.equal(stack(logits, prefixes), stack(logits, padded))


def test_a_long_list_keeps_its_order():
    logits, prefixes = ragged_call(seed=3)

    def processors(row):
        return [
            CASES["TemperatureLogitsWarper"](row),
            CASES["RepetitionPenaltyLogitsProcessor"](row),
            CASES["EncoderRepetitionPenaltyLogitsProcessor"](row),
            CASES["LogitNormalization"](row),
            CASES["SequenceBiasLogitsProcessor"](row),
            CASES["MinNewTokensLengthLogitsProcessor"](row),
            CASES["TopKLogitsWarper"](row),
            CASES["WatermarkLogitsProcessor"](row),
        ]

    stack = ProcessorStack(processors(None))
    assert stack.rules == ()
    torch.testing.assert_close(
        stack(logits, prefixes), row_by_row(logits, prefixes, processors), rtol=0, atol=1e-6
    )


def test_row_indexed_processors_follow_num_return_sequences():
    logits, prefixes = ragged_call()
    two_prompts = library.EncoderNoRepeatNGramLogitsProcessor(1, ENCODER_IDS[:2])
    expected = row_by_row(
        logits,
        prefixes,
        lambda row: [
            library.EncoderNoRepeatNGramLogitsProcessor(1, ENCODER_IDS[row // 2 : row // 2 + 1])
        ],
    )
    assert torch.equal(ProcessorStack([two_prompts])(logits, prefixes), expected)
    penalty = library.EncoderRepetitionPenaltyLogitsProcessor(1.7, ENCODER_IDS[:2])
    with pytest.raises(ValueError, match="2 rows and the batch has 4"):
        ProcessorStack([penalty])(logits, prefixes)


WARPER_LISTS = {
    **{name: [CASES[name](None)] for name in TRUNCATING},
    "temperature, then each": [
        library.TemperatureLogitsWarper(1.3),
        library.TopHLogitsWarper(0.9),
        library.TopKLogitsWarper(14),
        library.TopPLogitsWarper(0.95),
        library.MinPLogitsWarper(0.02),
        library.TypicalLogitsWarper(0.9),
        library.EpsilonLogitsWarper(0.01),
        library.EtaLogitsWarper(0.01),
    ],
    "another order": [
        library.TemperatureLogitsWarper(0.6),
        library.TopPLogitsWarper(0.9),
        library.TopKLogitsWarper(4),
    ],
    "min_tokens_to_keep": [
        library.TemperatureLogitsWarper(0.3),
        library.TopKLogitsWarper(1, min_tokens_to_keep=6),
        library.TopPLogitsWarper(0.1, min_tokens_to_keep=5),
        library.MinPLogitsWarper(1.0, min_tokens_to_keep=5),
        library.TypicalLogitsWarper(0.1, min_tokens_to_keep=4),
        library.EpsilonLogitsWarper(0.9, min_tokens_to_keep=3),
        library.EtaLogitsWarper(0.9, min_tokens_to_keep=2),
    ],
    "parameters that keep everything": [
        library.TopPLogitsWarper(1.0),
        library.MinPLogitsWarper(0.0),
    ],
    "parameters that keep one": [library.TopPLogitsWarper(0.0)],
}


@pytest.mark.parametrize("name", WARPER_LISTS)
def test_trailing_warpers_become_rules_with_the_same_law(name):
    warpers = WARPER_LISTS[name]
    logits = torch.randn(64, VOCAB, generator=torch.Generator().manual_seed(1)) * 3
    expected = LogitsProcessorList(warpers)(torch.zeros(64, 1, dtype=torch.int64), logits)
    stack = ProcessorStack(warpers)
    assert len(stack.names) == len(warpers)
    scores = truncate(logits, stack.rules, temperature=stack.temperature)
    torch.testing.assert_close(scores.div(stack.temperature).softmax(-1), expected.softmax(-1))
    assert torch.equal(scores.isneginf(), expected.isneginf())


def test_what_is_converted_and_what_is_called():
    finite = library.TopKLogitsWarper(5, filter_value=-1e4)
    stack = ProcessorStack(
        [
            library.RepetitionPenaltyLogitsProcessor(1.2),
            library.TopPLogitsWarper(0.9),
            finite,
            library.TemperatureLogitsWarper(0.5),
            library.TopHLogitsWarper(0.4),
            library.TopKLogitsWarper(3),
            library.LogitNormalization(),
        ]
    )
    assert stack.temperature == 0.5
    assert stack.rules == (TopH(0.4, variant="transformers"), TopK(3, ties="all"))
    assert stack.normalizes_scores
    assert stack.names == (
        "RepetitionPenaltyLogitsProcessor",
        "TopPLogitsWarper",
        "TopKLogitsWarper",
        "temperature=0.5",
        *map(repr, stack.rules),
    )


def test_without_conversion_every_warper_is_called():
    logits, prefixes = ragged_call()
    warpers = [library.TypicalLogitsWarper(0.3), library.LogitNormalization()]
    stack = ProcessorStack(warpers, convert=False)
    assert (stack.temperature, stack.rules, stack.normalizes_scores) == (1.0, (), False)
    expected = LogitsProcessorList(warpers)(prefixes.token_ids, logits)
    assert torch.equal(stack(logits, prefixes), expected)


def test_the_second_of_two_temperatures_is_converted():
    logits, prefixes = ragged_call()
    stack = ProcessorStack(
        [
            library.TemperatureLogitsWarper(2.0),
            library.TemperatureLogitsWarper(0.5),
            library.TopKLogitsWarper(3),
        ]
    )
    assert stack.temperature == 0.5
    assert torch.equal(stack(logits, prefixes), logits / 2)


def test_a_changed_top_n_is_called():
    warper = library.TopHLogitsWarper(0.4)
    warper.top_n = 10
    assert ProcessorStack([warper]).rules == ()


def test_an_empty_list_hands_the_logits_on():
    logits, prefixes = ragged_call()
    stack = ProcessorStack([])
    assert (stack.temperature, stack.rules, stack.names) == (1.0, (), ())
    assert torch.equal(stack(logits.bfloat16(), prefixes), logits.bfloat16().float())


@pytest.mark.parametrize(
    "name", [name for name, entry in TABLE.items() if entry.kind is Kind.REFUSED]
)
def test_a_refused_class_is_named(name):
    cls = getattr(library, name)
    with pytest.raises(ValueError, match=f"{name} cannot be used"):
        ProcessorStack([cls.__new__(cls)], trusted=[cls])


def test_an_unknown_class_must_be_declared_or_trusted():
    logits, prefixes = ragged_call()
    with pytest.raises(ValueError, match=r"Doubling is unknown.*stateless = True.*trusted=\[Doub"):
        ProcessorStack([Doubling()])
    assert torch.equal(
        ProcessorStack([Doubling()], trusted=[Doubling])(logits, prefixes), 2 * logits
    )
    declared = Doubling()
    declared.stateless = True
    assert torch.equal(ProcessorStack([declared])(logits, prefixes), 2 * logits)
    declared.stateless = False
    with pytest.raises(ValueError, match="Doubling is unknown"):
        ProcessorStack([declared])


def test_a_subclass_and_a_function_are_unknown_too():
    class Renamed(library.RepetitionPenaltyLogitsProcessor):
        pass

    def halve(input_ids, scores):
        return scores / 2

    logits, prefixes = ragged_call()
    with pytest.raises(ValueError, match="Renamed is unknown"):
        ProcessorStack([Renamed(1.2)])
    with pytest.raises(ValueError, match="halve is unknown"):
        ProcessorStack([halve])
    halve.stateless = True
    assert torch.equal(ProcessorStack([halve])(logits, prefixes), logits / 2)


@pytest.mark.parametrize("context_free", [False, True], ids=["prefix", "context_free"])
def test_a_processor_that_writes_into_its_scores_reaches_no_logits(context_free):
    logits, prefixes = ragged_call()
    before = logits.clone()
    processor = AddingLength()
    processor.context_free = context_free
    result = ProcessorStack([processor])(logits, prefixes)
    assert torch.equal(logits, before)
    added = torch.full((len(LENGTHS),), prefixes.token_ids.shape[1]) if context_free else LENGTHS
    assert torch.equal(result, before + torch.as_tensor(added)[:, None])


@pytest.mark.parametrize("result", [None, torch.zeros(1, VOCAB), torch.zeros(VOCAB)], ids=str)
def test_a_wrong_result_names_the_processor(result):
    def broken(input_ids, scores):
        return result

    broken.stateless = True
    logits, prefixes = ragged_call()
    with pytest.raises(ValueError, match="broken returned"):
        ProcessorStack([broken])(logits, prefixes)


OURS = {
    "top_h": (TopHLogitsProcessor(0.5, temperature=1.5), TopH(0.5)),
    "top_h_transformers": (
        TopHLogitsProcessor(0.5, temperature=1.5, variant="transformers"),
        TopH(0.5, variant="transformers"),
    ),
    "min_p": (MinPLogitsProcessor(0.2, temperature=1.5), None),
}


@pytest.mark.parametrize("name", OURS)
def test_our_processors_only_mask(name):
    processor, rule = OURS[name]
    scores = torch.randn(32, VOCAB, generator=torch.Generator().manual_seed(2)) * 3
    before = scores.clone()
    masked = LogitsProcessorList([processor])(torch.zeros(32, 4, dtype=torch.int64), scores)
    assert torch.equal(scores, before) and masked.data_ptr() != scores.data_ptr()
    kept = ~masked.isneginf()
    assert (~kept).any() and torch.equal(masked[kept], scores[kept])
    if rule is None:
        expected = library.MinPLogitsWarper(0.2)(None, scores / 1.5)
    else:
        expected = truncate(scores, rule, temperature=1.5)
    assert torch.equal(kept, ~expected.isneginf())


@pytest.mark.parametrize("name", OURS)
def test_our_processors_take_two_parameters_and_run_once_over_all_rows(name):
    processor, _ = OURS[name]
    assert len(inspect.signature(processor.__call__).parameters) == 2
    assert processor.supports_continuous_batching is True
    logits, prefixes = ragged_call()
    stack = ProcessorStack([processor])
    assert torch.equal(stack(logits, prefixes), processor(prefixes.token_ids, logits))
    # a context-free processor never looks at the lengths
    stack(logits, prefixes._replace(lengths=None))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_our_processors_refuse_a_bad_temperature(temperature):
    with pytest.raises(ValueError, match=f"temperature.*{temperature}"):
        MinPLogitsProcessor(temperature=temperature)


@pytest.mark.parametrize("temperature", ["1", True, None])
def test_our_processors_refuse_a_temperature_that_is_no_number(temperature):
    with pytest.raises(TypeError, match=f"temperature must be a number, got {temperature!r}"):
        MinPLogitsProcessor(temperature=temperature)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TopHLogitsProcessor(0.0),
        lambda: TopHLogitsProcessor(math.nan),
        lambda: TopHLogitsProcessor(variant="papers"),
        lambda: TopHLogitsProcessor(ties="none"),
        lambda: TopHLogitsProcessor(min_tokens_to_keep=0),
        lambda: MinPLogitsProcessor(1.5),
        lambda: MinPLogitsProcessor(-0.1),
    ],
    ids=["alpha=0", "alpha=nan", "variant", "ties", "min_tokens", "min_p=1.5", "min_p=-0.1"],
)
def test_our_processors_refuse_bad_parameters_when_built(make):
    with pytest.raises(ValueError):
        make()
