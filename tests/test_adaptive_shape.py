from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_model

from warpdraft.adaptive_shape import AdaptiveShape, Costs, Outcomes, Shape, ShapeChooser
from warpdraft.integrations.transformers import SpeculativeDecoding, generate

PROMPTS = torch.tensor([[5, 9, 2, 30, 41], [0, 0, 7, 7, 12], [0, 3, 61, 8, 20]])
PROMPT = {"input_ids": PROMPTS, "attention_mask": (PROMPTS != 0).long()}
GIVEN = AdaptiveShape((1, 2, 4), num_drafts=(1, 3), draft_cost=0.1, node_cost=0.02)


def choices(options: AdaptiveShape, rate: float, blocks: int = 60) -> list[Shape]:
    """What is chosen while each position is accepted at a rate, spread evenly over the blocks."""
    chooser = ShapeChooser(options, num_drafts=1)
    shapes, owed = [], [0.0] * 255
    for _ in range(blocks):
        shape = chooser.next_shape()
        accepted = 0
        while accepted < shape.draft_length:
            owed[accepted] += rate
            if owed[accepted] < 1:
                break
            owed[accepted] -= 1
            accepted += 1
        chooser.record(shape, [accepted], seconds=1.0)
        shapes.append(shape)
    return shapes


@pytest.mark.parametrize(
    ("rate", "draft_cost", "length"),
    # (1 + r + .. + r^L) / (1 + c L) is largest at L
    [(0.0, 0.1, 1), (0.5, 0.2, 1), (0.8, 0.1, 4), (0.9, 0.02, 8), (0.6, 0.01, 6)],
)
def test_the_length_of_most_tokens_a_cost_is_chosen(
    rate: float, draft_cost: float, length: int
) -> None:
    lengths = range(1, 9)
    speeds = {
        each: sum(rate**i for i in range(each + 1)) / (1 + draft_cost * each) for each in lengths
    }
    best = max(speeds.values())
    options = AdaptiveShape(tuple(lengths), draft_cost=draft_cost, node_cost=0.0, memory=1.0)
    settled = [shape for shape in choices(options, rate, 200)[100:] if shape.draft_length != 8]
    settled = settled or [Shape(1, 8)]
    assert all(speeds[shape.draft_length] > 0.97 * best for shape in settled)


def test_every_k_is_tried_again_and_again() -> None:
    options = AdaptiveShape((1, 4), (1, 2, 5), 0.1, 0.01, explore_every=10)
    shapes = choices(options, 0.5, 80)
    assert shapes[:3] == [Shape(1, 4), Shape(2, 4), Shape(5, 4)]
    # those that are not the best one are heard again, at the largest length
    best = max(set(shapes[3:]), key=shapes.count)
    explored = [shape for shape in shapes[10::10] if shape.num_drafts != best.num_drafts]
    assert {shape.num_drafts for shape in explored} == {1, 2, 5} - {best.num_drafts}
    assert all(shape.draft_length == 4 for shape in explored)


def test_expected_tokens() -> None:
    outcomes = Outcomes(3)
    for _ in range(10_000):
        outcomes.record(3, [3, 1], memory=1.0)
    # 1, then 1/2, then 1
    assert outcomes.tokens(3) == pytest.approx(1 + 1 + 0.5 + 0.5, abs=1e-3)


def test_old_outcomes_fade() -> None:
    outcomes = Outcomes(1)
    for accepted in [1] * 100 + [0] * 100:
        outcomes.record(1, [accepted], memory=0.9)
    assert outcomes.tokens(1) < 1.2


def test_costs_are_read_off_the_times() -> None:
    costs = Costs(None, None)
    for shape in (Shape(1, 8), Shape(1, 1), Shape(4, 8), Shape(4, 1)):
        nodes = shape.num_drafts * shape.draft_length
        costs.record(shape, 0.02 * (1 + 0.3 * shape.draft_length + 0.05 * nodes))
    costs.settle()
    assert costs.of(Shape(2, 4)) == pytest.approx(1 + 0.3 * 4 + 0.05 * 8)


@pytest.mark.parametrize("adaptive", [GIVEN, AdaptiveShape((1, 3), (1, 2))], ids=["given", "timed"])
def test_greedy_equals_generate(adaptive: AdaptiveShape) -> None:
    target, draft = tiny_model(), tiny_model(seed=1)
    plain = target.generate(**PROMPT, max_new_tokens=24, do_sample=False)
    text = generate(target, draft, **PROMPT, adaptive=adaptive, max_new_tokens=24, do_sample=False)
    assert torch.equal(text, plain)


def test_with_given_costs_a_seed_writes_the_same_text() -> None:
    target, draft = tiny_model(), tiny_model(seed=1)
    outputs = [
        generate(
            target,
            draft,
            **PROMPT,
            adaptive=GIVEN,
            max_new_tokens=30,
            do_sample=True,
            top_k=0,
            seed=2,
            return_dict_in_generate=True,
        )
        for _ in range(2)
    ]
    assert torch.equal(*(output.sequences for output in outputs))
    first, second = (output.stats.blocks_by_shape for output in outputs)
    assert first == second
    assert len(first) > 1


def test_an_identical_draft_gets_the_longest_blocks() -> None:
    model = tiny_model()
    output = generate(
        model,
        model,
        **PROMPT,
        num_drafts=2,
        adaptive=AdaptiveShape((1, 2, 5), draft_cost=0.05, node_cost=0.0),
        max_new_tokens=60,
        do_sample=True,
        top_k=0,
        seed=2,
        return_dict_in_generate=True,
    )
    assert output.stats.acceptance_rate == 1
    assert output.stats.blocks_by_shape == {(2, 5): 10}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft_lengths": ()}, "draft_lengths must hold"),
        ({"draft_lengths": (0, 4)}, "draft_lengths must hold"),
        ({"num_drafts": (5000,)}, "num_drafts must hold"),
        ({"draft_lengths": 4}, "draft_lengths must hold ints in .*got 4"),
        ({"num_drafts": (True,)}, r"num_drafts must hold ints in .*got \(True,\)"),
        ({"draft_cost": 0.1}, "give draft_cost and node_cost both"),
        ({"draft_cost": -1.0, "node_cost": 0.0}, "draft_cost must be"),
        ({"memory": 0.0}, "memory must be"),
        ({"explore_every": 0}, "explore_every must be"),
        ({"draft_cost": float("nan"), "node_cost": 0.0}, "draft_cost must be in .*got nan"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptiveShape(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "0.5"}, "memory must be a number, got '0.5'"),
        ({"memory": True}, "memory must be a number, got True"),
        ({"explore_every": 1.5}, "explore_every must be an int, got 1.5"),
        ({"draft_cost": "1", "node_cost": 0.0}, "draft_cost must be a number, got '1'"),
    ],
)
def test_options_that_are_no_numbers_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        AdaptiveShape(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "rollover"}, 'needs structure="paths"'),
        ({"verifier": "block", "num_drafts": 1}, "takes num_drafts=1, got 3"),
    ],
)
def test_shapes_that_the_verifier_does_not_take_are_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SpeculativeDecoding(tiny_model(), adaptive=GIVEN, **options)
