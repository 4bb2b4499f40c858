from __future__ import annotations

import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_model
from torch import Tensor
from transformers import PrefixConstrainedLogitsProcessor

from warpdraft.laws import LawPipeline
from warpdraft.loop import Generated, LoopOptions, generate_tokens
from warpdraft.processors import ProcessorStack
from warpdraft.rules import MinP, TopK

PAD = 0


def prompts(batch: int = 3, width: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Left-padded prompts: row b starts with 3 - b slots of padding."""
    token_ids = torch.randint(2, 60, (batch, width), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(token_ids)
    for row in range(batch):
        mask[row, : max(0, 3 - row)] = 0
    return token_ids * mask, mask


def run(
    target: torch.nn.Module,
    draft: torch.nn.Module | None,
    token_ids: Tensor,
    mask: Tensor | None,
    new_tokens: int,
    *,
    pipeline: LawPipeline | None = None,
    **options: object,
) -> Generated:
    options = {"max_length": token_ids.shape[1] + new_tokens, "pad_token_id": PAD, **options}
    return generate_tokens(
        target, draft, token_ids, mask, pipeline or LawPipeline(), LoopOptions(**options)
    )


@pytest.mark.parametrize("draft_length", [1, 4, 7])
@pytest.mark.parametrize("draft", ["self", "other", "none"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_generate_in_a_ragged_batch(
    architecture: str, draft: str, draft_length: int
) -> None:
    target = tiny_model(architecture)
    drafts = {"self": target, "other": tiny_model(architecture, seed=1, layers=1), "none": None}
    token_ids, mask = prompts()
    # 30 new tokens: gemma3's window of 8 is passed more than twice
    expected = target.generate(
        input_ids=token_ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=30,
        pad_token_id=PAD,
    )
    got = run(
        target,
        drafts[draft],
        token_ids,
        mask,
        30,
        pipeline=LawPipeline(greedy=True),
        draft_length=draft_length,
    )
    assert got.token_ids.tolist() == expected.tolist()
    if draft == "self":
        assert got.stats.acceptance_rate == 1


@pytest.mark.parametrize("num_drafts", [1, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_row_does_not_depend_on_the_batch_around_it(architecture: str, num_drafts: int) -> None:
    target, draft = tiny_model(architecture), tiny_model(architecture, seed=1, layers=1)
    token_ids, mask = prompts()
    options = {"num_drafts": num_drafts, "draft_length": 3, "seed": 11}
    together = run(target, draft, token_ids, mask, 24, **options)
    for row in range(len(token_ids)):
        real = mask[row].bool()
        alone = run(
            target,
            draft,
            token_ids[row : row + 1, real],
            None,
            24,
            sequence=torch.tensor([row]),
            **options,
        )
        assert alone.token_ids[0].tolist() == together.token_ids[row, int((~real).sum()) :].tolist()


def test_the_same_seed_writes_the_same_text_and_another_does_not() -> None:
    target, draft = tiny_model(), tiny_model(seed=1)
    token_ids, mask = prompts()
    texts = [
        run(target, draft, token_ids, mask, 20, num_drafts=2, seed=seed).token_ids.tolist()
        for seed in (5, 5, 6)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_set_seed_governs_a_run_without_seed() -> None:
    target, draft = tiny_model(), tiny_model(seed=1)
    token_ids, mask = prompts()
    texts = []
    for _ in range(2):
        torch.manual_seed(3)
        texts.append(run(target, draft, token_ids, mask, 20).token_ids.tolist())
    texts.append(run(target, draft, token_ids, mask, 20).token_ids.tolist())
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_an_identical_draft_is_always_accepted(architecture: str) -> None:
    model = tiny_model(architecture)
    token_ids, mask = prompts()
    got = run(model, model, token_ids, mask, 60, num_drafts=4, draft_length=5, seed=1)
    assert got.stats.acceptance_rate == 1
    assert got.stats.acceptance_by_position == [1.0] * 5
    assert got.stats.block_efficiency == 6


def test_statistics_count_every_emitted_token() -> None:
    target, draft = tiny_model(), tiny_model(seed=1)
    token_ids, mask = prompts()
    stats = run(target, draft, token_ids, mask, 25, num_drafts=2, seed=1).stats
    assert stats.emitted_tokens == 3 * 25
    assert 1 <= stats.block_efficiency <= 5
    assert stats.drafted_tokens == sum(stats.drafted_by_position)
    assert stats.accepted_tokens == sum(stats.accepted_by_position)
    assert set(stats.seconds) == {"prefill", "draft", "target", "verify", "commit"}


@pytest.mark.parametrize("draft_width", [48, 80])
def test_padded_vocabularies_of_one_tokenizer_work(draft_width: int) -> None:
    target, draft = tiny_model(vocab=64), tiny_model(vocab=draft_width, seed=1)
    token_ids, mask = prompts()
    token_ids = token_ids.clamp(max=40)
    got = run(target, draft, token_ids, mask, 20, num_drafts=2, seed=1)
    assert int(got.token_ids.max()) < 64


def test_eos_inside_an_accepted_run_ends_the_row() -> None:
    model = tiny_model()
    token_ids, mask = prompts()
    free = run(model, model, token_ids, mask, 30, draft_length=7, seed=2).token_ids
    eos = int(free[0, 9 + 3])
    got = run(model, model, token_ids, mask, 30, draft_length=7, seed=2, eos_token_ids=[eos])
    for row in range(3):
        new = free[row, 9:].tolist()
        stop = new.index(eos) + 1 if eos in new else len(new)
        text = got.token_ids[row, 9:].tolist()
        assert text[:stop] == new[:stop]
        assert all(token == PAD for token in text[stop:])


def test_stopping_criteria_see_every_token_of_a_run_without_padding() -> None:
    model = tiny_model()
    token_ids, mask = prompts()
    seen: list[int] = []

    def criterion(rows: Tensor, scores: None) -> Tensor:
        assert scores is None
        seen.append(rows.shape[1])
        return rows[:, -1] % 7 == 0

    got = run(model, model, token_ids, mask, 20, draft_length=6, seed=2, stopping=[criterion])
    free = run(model, model, token_ids, mask, 20, draft_length=6, seed=2)
    for row in range(3):
        new = free.token_ids[row, 9:].tolist()
        stop = next((i + 1 for i, token in enumerate(new) if token % 7 == 0), len(new))
        assert got.token_ids[row, 9 : 9 + stop].tolist() == new[:stop]
        assert set(got.token_ids[row, 9 + stop :].tolist()) <= {PAD}
    assert set(range(10, max(seen) + 1)) <= set(seen)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_an_earlier_turns_cache_changes_nothing(architecture: str) -> None:
    target, draft = tiny_model(architecture), tiny_model(architecture, seed=1)
    token_ids, mask = prompts()
    options = {"num_drafts": 2, "seed": 4, "return_cache": True}
    first = run(target, draft, token_ids, mask, 8, **options)
    longer = torch.cat([first.token_ids, torch.randint(2, 60, (3, 4))], dim=1)
    longer_mask = torch.cat([mask, torch.ones(3, 12, dtype=mask.dtype)], dim=1)
    assert first.past_key_values.get_seq_length() == first.token_ids.shape[1] - 1
    before = [layer.keys.clone() for layer in first.past_key_values.layers]
    fresh = run(target, draft, longer, longer_mask, 8, **options)
    resumed = run(
        target, draft, longer, longer_mask, 8, past_key_values=first.past_key_values, **options
    )
    assert resumed.token_ids.tolist() == fresh.token_ids.tolist()
    for layer, keys in zip(first.past_key_values.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)


def test_the_returned_cache_is_that_of_the_returned_text() -> None:
    target, draft = tiny_model(), tiny_model(seed=1)
    token_ids, mask = prompts()
    free = run(target, draft, token_ids, mask, 12, seed=4)
    eos = int(free.token_ids[1, 9 + 4])
    got = run(target, draft, token_ids, mask, 12, seed=4, eos_token_ids=[eos], return_cache=True)
    lengths = (got.token_ids[:, 9:] != PAD).sum(1) + 9
    assert lengths.unique().numel() > 1, "the rows must stop at different places"
    width = got.token_ids.shape[1] - 1
    for row in range(3):
        start, stop = int((mask[row] == 0).sum()), min(int(lengths[row]), width)
        alone = target(input_ids=got.token_ids[row : row + 1, start:stop]).past_key_values
        for mine, theirs in zip(got.past_key_values.layers, alone.layers, strict=True):
            torch.testing.assert_close(
                mine.keys[row, :, start:stop], theirs.keys[0], atol=1e-5, rtol=1e-4
            )


@pytest.mark.parametrize(
    "options", [{}, {"layout": "paths"}, {"cache_implementation": "static"}], ids=str
)
def test_a_returned_cache_holds_the_padding_behind_a_stop(options) -> None:
    """A later turn may leave it visible: where the padding token is the end token, `generate` makes no mask."""
    target, draft = tiny_model(), tiny_model(seed=1)
    token_ids = prompts()[0][:, 3:]
    mask = torch.ones_like(token_ids)
    free = run(target, draft, token_ids, mask, 12, seed=4)
    eos = int(free.token_ids[1, token_ids.shape[1] + 2])
    stopping = {"eos_token_ids": [eos], "pad_token_id": eos, "return_cache": True}
    first = run(target, draft, token_ids, mask, 12, seed=4, **stopping, **options)
    width = first.token_ids.shape[1] - 1
    assert bool((first.token_ids[1, -2:] == eos).all()), "a row must stop early"
    read = target(input_ids=first.token_ids[:, :-1]).past_key_values
    for mine, theirs in zip(first.past_key_values.layers, read.layers, strict=True):
        assert mine.keys.shape[2] == width
        torch.testing.assert_close(mine.keys, theirs.keys, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(mine.values, theirs.values, atol=1e-5, rtol=1e-4)


def test_padding_between_tokens_of_a_sliding_window_is_refused(monkeypatch) -> None:
    target, draft = tiny_model("gemma3"), tiny_model("gemma3", seed=1)
    monkeypatch.setattr(target.config, "sliding_window", 12)
    token_ids, mask = prompts()
    run(target, draft, token_ids, mask, 13 - token_ids.shape[1], seed=4)
    mask[0, 5:7] = 0
    run(target, draft, token_ids, mask, 12 - token_ids.shape[1], seed=4)
    with pytest.raises(ValueError, match="sliding window of 12 tokens: move the padding"):
        run(target, draft, token_ids, mask, 13 - token_ids.shape[1], seed=4)


def test_the_returned_cache_keeps_the_slots_of_padding_between_tokens() -> None:
    target, draft = tiny_model(), tiny_model(seed=1)
    token_ids, mask = prompts()
    mask[0, 5:7] = 0
    got = run(target, draft, token_ids, mask, 6, seed=4, return_cache=True)
    mask = torch.cat([mask, torch.ones(3, 5, dtype=mask.dtype)], dim=1)
    read = target(
        input_ids=got.token_ids[:, :-1],
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp_min(0),
    ).past_key_values
    for mine, theirs in zip(got.past_key_values.layers, read.layers, strict=True):
        keys, expected = (layer.keys.transpose(1, 2)[mask != 0] for layer in (mine, theirs))
        torch.testing.assert_close(keys, expected, atol=1e-5, rtol=1e-4)


def test_collected_scores_are_the_processed_law_of_each_token() -> None:
    target, draft = tiny_model(), tiny_model(seed=1)
    token_ids, mask = prompts()
    pipeline = LawPipeline(ProcessorStack([]), [TopK(5), MinP(0.05)])
    got = run(
        target,
        draft,
        token_ids,
        mask,
        12,
        pipeline=pipeline,
        num_drafts=2,
        seed=4,
        collect_scores=True,
        collect_logits=True,
    )
    assert len(got.scores) == len(got.logits) == 12
    for step in range(12):
        width = 9 + step
        step_mask = torch.cat([mask, torch.ones(3, step, dtype=mask.dtype)], dim=1)
        positions = (step_mask.cumsum(1) - 1).clamp_min(0)
        expected = target(
            input_ids=got.token_ids[:, :width], attention_mask=step_mask, position_ids=positions
        ).logits[:, -1]
        torch.testing.assert_close(got.logits[step], expected, atol=1e-4, rtol=1e-4)
        drawn = got.scores[step].gather(1, got.token_ids[:, width : width + 1])
        assert torch.isfinite(drawn).all()
        assert ((got.scores[step] > -torch.inf).sum(1) <= 5).all()


def test_bfloat16_models_run() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    token_ids, mask = prompts()
    got = run(model, model, token_ids, mask, 12, num_drafts=2, seed=4)
    assert got.token_ids.shape == (3, 21)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 9}, "max_length must exceed the prompt's width 9, got 9"),
        ({"max_length": 600}, "the target model's context holds 512"),
        ({"num_drafts": 0}, r"num_drafts must be in \[1, 4096\], got 0"),
        ({"draft_length": 256}, r"draft_length must be in \[1, 255\], got 256"),
        ({"verifier": "no"}, "verifier must be one of"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_bad_options_are_refused(change: dict[str, object], message: str) -> None:
    model = tiny_model()
    token_ids, mask = prompts()
    with pytest.raises(ValueError, match=message):
        run(model, model, token_ids, mask, 4, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_drafts": True}, "num_drafts must be an int, got True"),
        ({"seed": 1.5}, "seed must be an int, got 1.5"),
        ({"generator": 3}, "generator must be a torch.Generator, got 3"),
        ({"sequence": [0, 1, 2]}, "sequence must be a tensor, got list"),
        ({"adaptive": True}, "adaptive must be an AdaptiveShape, got True"),
        ({"streamer": print}, r"streamer must have put\(\) and end\(\)"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_options_of_another_kind_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        LoopOptions(max_length=9, pad_token_id=PAD, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1 << 63}, "seed must be in"),
        ({"seed": 1, "generator": torch.Generator()}, "pass seed or generator, not both"),
        ({"sequence": torch.zeros(3)}, r"sequence must be int64 \[batch\], got torch.float32"),
        ({"sequence": torch.tensor(3)}, r"sequence must be int64 \[batch\], got .* \[\]"),
    ],
    ids=["seed", "seed_and_generator", "floats", "one_name"],
)
def test_noise_that_cannot_be_named_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoopOptions(max_length=9, pad_token_id=PAD, **change)


@pytest.mark.parametrize("name", ["input_ids", "attention_mask"])
def test_a_list_in_the_place_of_a_prompt_is_refused(name: str) -> None:
    token_ids, mask = prompts()
    if name == "input_ids":
        token_ids = token_ids.tolist()
    else:
        mask = mask.tolist()
    options = LoopOptions(max_length=20, pad_token_id=PAD)
    with pytest.raises(TypeError, match=f"{name} must be a tensor, got list"):
        generate_tokens(tiny_model(), None, token_ids, mask, LawPipeline(), options)


def test_a_small_draft_context_is_named() -> None:
    token_ids, mask = prompts()
    with pytest.raises(ValueError, match="the draft model's context holds 16"):
        run(tiny_model(), tiny_model(context=16), token_ids, mask, 20)


def test_right_padding_is_refused() -> None:
    model = tiny_model()
    token_ids, mask = prompts()
    mask[0, -1] = 0
    with pytest.raises(ValueError, match="pad prompts on the left"):
        run(model, model, token_ids, mask, 4)


@pytest.mark.parametrize("token", [-1, 64])
def test_a_prompt_token_that_the_target_does_not_have_is_refused(token: int) -> None:
    model = tiny_model()
    token_ids, mask = prompts()
    token_ids[1, 5] = token
    with pytest.raises(ValueError, match=r"input_ids must be in \[0, 63\], got"):
        run(model, model, token_ids, mask, 4)


@pytest.mark.parametrize("verifier", ["k_seq", "optimal_block"])
@pytest.mark.parametrize("eos_token_ids", [[5], []], ids=["end token", "length"])
def test_processors_are_never_asked_behind_the_end(verifier: str, eos_token_ids: list[int]) -> None:
    # as a grammar: three words or the end, and nothing at all behind it
    def allowed(row: int, prefix: Tensor) -> list[int]:
        assert len(prefix) < 9 + 12
        return [] if set(prefix[9:].tolist()) & set(eos_token_ids) else [5, 7, 8]

    token_ids, mask = prompts()
    pipeline = LawPipeline(ProcessorStack([PrefixConstrainedLogitsProcessor(allowed, 1)]))
    got = run(
        tiny_model(spread=1.0),
        tiny_model(seed=1, spread=1.0),
        token_ids,
        mask,
        12,
        pipeline=pipeline,
        num_drafts=3,
        draft_length=5,
        verifier=verifier,
        seed=1,
        eos_token_ids=eos_token_ids,
    )
    assert set(got.token_ids[:, 9:].flatten().tolist()) <= {5, 7, 8, PAD}
    assert ((got.token_ids == 5).any(1) | (got.token_ids.shape[1] == 21)).all()


@pytest.mark.parametrize("who", ["target", "draft"])
def test_nan_logits_are_an_error_not_a_token(who: str) -> None:
    sound, broken = tiny_model(), tiny_model(seed=1)
    broken.get_output_embeddings().weight.data[5] = float("nan")
    models = (broken, sound) if who == "target" else (sound, broken)
    token_ids, mask = prompts()
    with pytest.raises(ValueError, match=f"the {who} model's logits hold NaN"):
        run(*models, token_ids, mask, 4)
