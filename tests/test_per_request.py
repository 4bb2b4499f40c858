"""Rules request by request: what slots hold, what the rows keep, what a client may send."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import warpdraft.per_request
from warpdraft import (
    DynamicTemperature,
    Epsilon,
    Eta,
    MinP,
    PLess,
    TopA,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    truncate,
)
from warpdraft.per_request import PerRequestRules, _truncate_slots
from warpdraft.request_parameters import rules_of_request

VOCAB = 40
LISTS = [
    (),
    (TopH(0.4),),
    (TopH(0.7),),
    (TopH(0.4, variant="transformers"),),
    (MinP(0.1),),
    (MinP(0.2, min_tokens_to_keep=3),),
    (TopK(5), TopH(0.9)),
    (TopK(9), TopH(0.3)),
    (TopH(0.9), TopK(5)),
    (PLess(),),
    (PLess(normalized=True), Typical(0.8)),
    (DynamicTemperature(0.5, 1.5), MinP(0.1)),
    (DynamicTemperature(0.8, 1.2, 2.0), MinP(0.3)),
]


def random_logits(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # coarse, so that logits tie
    return (torch.randn(rows, VOCAB, generator=generator) * 4).round() / 2


def naive(logits, slots, held):
    """One call of truncate a row."""
    rows = []
    for row, slot in zip(logits, slots, strict=True):
        rules, temperature = held.get(slot, ((), 1.0))
        if rules and temperature:
            row = truncate(row[None], rules, temperature=temperature)[0]
        rows.append(row)
    return torch.stack(rows)


class Batch(RuleBasedStateMachine):
    """The slots of an engine against a dictionary of them."""

    slots = st.integers(0, 5)

    def __init__(self):
        super().__init__()
        self.requests = PerRequestRules("cpu")
        self.held = {}
        self.step = 0

    @rule(slot=slots, rules=st.sampled_from(LISTS), temperature=st.sampled_from([0, 0.5, 1, 1.5]))
    def add(self, slot, rules, temperature):
        truncated = self.requests.add(slot, rules, temperature)
        assert truncated == bool(rules and temperature)
        self.held[slot] = (rules, temperature)

    @rule(slot=slots)
    def remove(self, slot):
        self.requests.remove(slot)
        self.held.pop(slot, None)

    @rule(old=slots, new=slots)
    def move(self, old, new):
        self.requests.move(old, new)
        self.held[new] = self.held.pop(old, ((), 1.0))

    @rule(first=slots, second=slots)
    def swap(self, first, second):
        self.requests.swap(first, second)
        nothing = ((), 1.0)
        self.held[first], self.held[second] = (
            self.held.get(second, nothing),
            self.held.get(first, nothing),
        )

    @rule(order=st.lists(slots, unique=True, max_size=6))
    def reorder(self, order):
        self.requests.reorder(order)
        self.held = {new: self.held[old] for new, old in enumerate(order) if old in self.held}

    @rule(slots=st.lists(slots, min_size=1, max_size=8))
    def rows_in_any_order(self, slots):
        logits = random_logits(len(slots), self.step)
        expected = naive(logits, slots, self.held)
        assert self.requests.apply_inplace(logits, slots) is logits
        assert torch.equal(logits, expected)

    @invariant()
    def every_row_keeps_what_its_own_call_would(self):
        self.step += 1
        logits = random_logits(6, self.step)
        expected = naive(logits, range(6), self.held)
        assert torch.equal(self.requests.apply_inplace(logits), expected)


TestBatch = Batch.TestCase
TestBatch.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@pytest.fixture
def mixed():
    requests = PerRequestRules("cpu")
    held = dict(enumerate([(TopH(0.4),), (MinP(0.2),), (TopH(0.8),), ()]))
    for slot, rules in held.items():
        requests.add(slot, rules, 1.5)
    return requests, {slot: (rules, 1.5) for slot, rules in held.items()}


def test_rows_that_only_the_device_can_tell_apart(mixed):
    requests, held = mixed
    # drafted tokens: several rows a request, and one of a slot that holds nothing
    slots = [2, 2, 0, 3, 1, 1, 1, 9]
    logits = random_logits(len(slots))
    expected = naive(logits, slots, held)
    for group in requests._grouped(None):
        _truncate_slots(logits, group, torch.tensor(slots, dtype=torch.int32))
    assert torch.equal(logits, expected)


def test_one_call_takes_all_requests_that_differ_in_parameters_only(mixed, monkeypatch):
    requests, _ = mixed
    calls = []

    def counting(logits, rules, **options):
        calls.append((rules, options["row_indices"].tolist()))
        return truncate(logits, rules, **options)

    monkeypatch.setattr(warpdraft.per_request, "truncate", counting)
    requests.apply_inplace(random_logits(4))
    assert [rows for _, rows in calls] == [[0, 2], [1]]
    (kept,) = calls[0][0]
    assert kept.alpha.tolist() == [0.4, 0.8]


def test_parameters_are_staged_when_requests_change_and_not_at_every_step(mixed, monkeypatch):
    requests, _ = mixed
    staged = []
    to_device = warpdraft.per_request._to_device
    monkeypatch.setattr(
        warpdraft.per_request, "_to_device", lambda *args: staged.append(1) or to_device(*args)
    )
    requests.apply_inplace(random_logits(4))
    first = len(staged)
    assert first > 0
    requests.apply_inplace(random_logits(4))
    # the same rules again, and an empty slot emptied
    requests.add(0, (TopH(0.4),), 1.5)
    requests.remove(7)
    requests.apply_inplace(random_logits(4))
    assert len(staged) == first
    requests.add(0, (TopH(0.5),), 1.5)
    requests.apply_inplace(random_logits(4))
    assert len(staged) == 2 * first


def test_nothing_waits_for_the_device():
    # tensors without values: whoever reads one on the host gets an error
    requests = PerRequestRules("meta")
    for slot, rules in enumerate(LISTS):
        requests.add(slot, rules, 1.5)
    logits = torch.empty(len(LISTS) + 2, VOCAB, device="meta")
    backwards = list(reversed(range(len(logits))))
    for slots in (None, backwards, torch.tensor(backwards, device="meta")):
        assert requests.apply_inplace(logits, slots) is logits
    with pytest.raises(RuntimeError, match="meta"):
        logits.sum().item()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_a_row_without_a_law_stays_and_stops_nobody(mixed, value):
    requests, held = mixed
    logits = random_logits(4)
    logits[0, :] = value
    expected = naive(logits[1:], [1, 2, 3], held)
    requests.apply_inplace(logits)
    assert logits[0].tolist() == pytest.approx([value] * VOCAB, nan_ok=True)
    assert torch.equal(logits[1:], expected)
    # nor does a batch of nothing else
    assert requests.apply_inplace(logits[:1].clone(), [0]).shape == (1, VOCAB)


def test_logits_of_an_engine_without_rules_are_not_read():
    requests = PerRequestRules("cpu")
    requests.add(0, ())
    requests.add(1, TopH(0.4), 0)
    assert len(requests) == 0
    assert requests.apply_inplace(None) is None


def test_a_request_has_numbers_for_parameters():
    requests = PerRequestRules("cpu")
    with pytest.raises(TypeError, match="must be numbers"):
        requests.add(0, TopH(torch.tensor([0.4])))
    with pytest.raises(ValueError, match="temperature must be in"):
        requests.add(0, TopH(0.4), -1)
    with pytest.raises(TypeError, match="truncation rules"):
        requests.add(0, ["top_h"])


@pytest.mark.parametrize(
    ("parameters", "rules"),
    [
        (None, ()),
        ({}, ()),
        ({"top_h": None}, ()),
        ({"kv_transfer_params": {"a": 1}}, ()),
        ({"top_h": 0.4, "of_another_plugin": "x"}, (TopH(0.4),)),
        ({"top_h": 0.4, "top_h_variant": "transformers"}, (TopH(0.4, variant="transformers"),)),
        ({"top_h": 1, "ties": "all", "min_tokens_to_keep": 2}, (TopH(1, "paper", "all", 2),)),
        ({"ties": "all"}, ()),
        ({"top_k": 50}, (TopK(50),)),
        ({"top_p": 0.9}, (TopP(0.9),)),
        ({"min_p": 0.1}, (MinP(0.1),)),
        ({"typical_p": 0.9}, (Typical(0.9),)),
        ({"epsilon_cutoff": 0.001}, (Epsilon(0.001),)),
        ({"eta_cutoff": 0.001}, (Eta(0.001),)),
        ({"top_n_sigma": 1.5}, (TopNSigma(1.5),)),
        ({"top_a": 0.2}, (TopA(0.2),)),
        ({"p_less": True}, (PLess(),)),
        ({"p_less": 1, "p_less_normalized": True}, (PLess(normalized=True),)),
        ({"p_less": True, "p_less_normalized": 1}, (PLess(normalized=True),)),
        ({"p_less": False}, ()),
        ({"rules": []}, ()),
        ({"rules": [{"top_k": 50}, {"top_h": 0.4}]}, (TopK(50), TopH(0.4))),
        ({"rules": '[{"top_h": 0.4}, {"top_k": 50}]'}, (TopH(0.4), TopK(50))),
    ],
    ids=lambda value: str(value) if isinstance(value, dict | None) else "",
)
def test_rules_of_a_request(parameters, rules):
    assert rules_of_request(parameters) == rules


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"top_h": -1}, "top_h: alpha must be in (0, inf], got -1"),
        ({"top_h": "0.4"}, "top_h: alpha must be a number"),
        ({"top_h": True}, "top_h: alpha must be a number"),
        ({"top_h": math.nan}, "alpha must be in (0, inf]"),
        ({"top_h": [0.4]}, "alpha must be a number"),
        ({"top_h": 10**400}, "alpha must be at most 16777216"),
        ({"top_k": 10**30}, "top_k must be at most 16777216"),
        ({"top_k": 2.5}, "top_k must be an integer"),
        ({"top_h": 0.4, "min_tokens_to_keep": 10**30}, "must be at most 16777216"),
        ({"top_h": 0.4, "min_tokens_to_keep": 0}, "min_tokens_to_keep must be at least 1"),
        ({"top_h": 0.4, "ties": "some"}, "ties must be 'lowest_id' or 'all'"),
        ({"top_h": 0.4, "top_h_variant": "author"}, "variant must be 'paper' or 'transformers'"),
        ({"min_p": 0.1, "top_h_variant": "paper"}, "top_h_variant is no option of min_p"),
        ({"top_h_variant": "paper"}, "top_h_variant without a rule"),
        ({"p_less": 0.5}, "p_less must be true or false"),
        ({"p_less": 1, "p_less_normalized": 2}, "p_less_normalized must be true or false"),
        ({"p_less": "yes"}, "p_less must be true or false"),
        ({"top_h": 0.4, "min_p": 0.1}, "top_h, min_p without an order"),
        ({"rules": [{"top_k": 5}], "top_h": 0.4}, "top_h must stand inside rules"),
        ({"rules": [{"top_q": 5}]}, "rules has no 'top_q'; its names are top_h, "),
        ({"rules": [{}]}, "rules must hold entries"),
        ({"rules": [5]}, "rules must hold entries"),
        ({"rules": 5}, "rules must be a list"),
        ({"rules": {"top_h": 0.4}}, "rules must be a list"),
        ({"rules": "[{"}, "rules is not JSON"),
        ({"rules": "[" * 10**5}, "rules is not JSON"),
        ({"rules": [{"top_h": 0.4}] * 13}, "at most 12"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_bad_request_gets_one_line(parameters, message):
    with pytest.raises(ValueError) as caught:
        rules_of_request(parameters)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("slot", "error"),
    [
        (-1, ValueError),
        (1 << 63, ValueError),
        (True, TypeError),
        (1.0, TypeError),
        ("0", TypeError),
    ],
    ids=str,
)
def test_a_slot_is_a_number(slot, error):
    requests = PerRequestRules("cpu")
    for call, name in (
        (lambda: requests.add(slot, TopH(0.4)), "slot"),
        (lambda: requests.remove(slot), "slot"),
        (lambda: requests.move(slot, 1), "source"),
        (lambda: requests.move(1, slot), "target"),
        (lambda: requests.swap(slot, 1), "first"),
        (lambda: requests.swap(1, slot), "second"),
    ):
        with pytest.raises(error, match=f"{name} must .*got"):
            call()
    assert len(requests) == 0


def test_slots_may_be_numbers_of_numpy():
    requests = PerRequestRules("cpu")
    requests.add(np.int32(1), TopK(1))
    logits = random_logits(2)
    kept = requests.apply_inplace(logits.clone(), np.array([1, 0], dtype=np.int32)) > -math.inf
    assert kept.sum(1).tolist() == [1, VOCAB]
    requests.remove(np.int64(1))
    assert len(requests) == 0


@pytest.mark.parametrize(
    ("order", "error"),
    [([0, 0], ValueError), ([-1], ValueError), (3, TypeError), ([0.5], TypeError)],
    ids=str,
)
def test_an_order_holds_different_slots(order, error):
    with pytest.raises(error, match=r"order.* must .*got"):
        PerRequestRules("cpu").reorder(order)


@pytest.mark.parametrize(
    ("slots", "error"),
    [
        ([0], ValueError),
        ([0, 1, 2], ValueError),
        ([0.0, 1.0], TypeError),
        (torch.tensor([0.0, 1.0]), TypeError),
        (1, TypeError),
        (torch.zeros(2, device="meta"), TypeError),
        (torch.zeros(3, dtype=torch.int64, device="meta"), ValueError),
    ],
    ids=["few", "many", "floats", "float_tensor", "number", "device_floats", "device_many"],
)
def test_there_is_one_slot_a_row(slots, error):
    device = slots.device.type if isinstance(slots, torch.Tensor) else "cpu"
    requests = PerRequestRules(device)
    requests.add(0, TopH(0.4))
    with pytest.raises(error, match=r"slots must be .*got"):
        requests.apply_inplace(torch.zeros(2, VOCAB, device=device), slots)


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        ([[0.0]], TypeError, "logits must be a tensor, got list"),
        (torch.zeros(VOCAB), ValueError, r"logits must have shape \[batch, vocab\]"),
        (torch.zeros(2, 0), ValueError, "logits have an empty vocabulary"),
        (torch.zeros(2, VOCAB, dtype=torch.int64), TypeError, "logits must be float32"),
        (torch.zeros(2, VOCAB, device="meta"), ValueError, "logits must be on cpu, got meta"),
    ],
    ids=["list", "one_row", "empty", "ints", "elsewhere"],
)
def test_logits_that_no_rules_fit_are_refused(logits, error, message):
    requests = PerRequestRules("cpu")
    requests.add(0, TopH(0.4))
    with pytest.raises(error, match=message):
        requests.apply_inplace(logits)


def test_a_request_that_is_no_mapping_is_refused():
    with pytest.raises(ValueError, match="parameters must be a mapping such as"):
        rules_of_request([("top_h", 0.4)])
    with pytest.raises(TypeError, match="temperature must be a number, got tensor"):
        PerRequestRules("cpu").add(0, TopH(0.4), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"device must be a torch\.device or the name of one"):
        PerRequestRules("gpu")
