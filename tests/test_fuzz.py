"""The public functions on hostile tensors and parameters: a documented error, or what they promise.

`WARPDRAFT_FUZZ=1000000 pytest tests/test_fuzz.py` runs as many rows of truncation and sampling from
a generator of a fixed seed, in place of hypothesis's few, a tenth as many rows of batches that
change, and a five-thousandth as many generations.
"""

from __future__ import annotations

import math
import os
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import in_order, supports
from tiny_models import tiny_model

from warpdraft import (
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
    optimal_acceptance,
    sample,
    truncate,
    verify_block,
)
from warpdraft.integrations.transformers import (
    AdaptiveShape,
    FirstLayers,
    PromptLookup,
    generate,
)
from warpdraft.per_request import PerRequestRules
from warpdraft.truncation import resolve
from warpdraft.verification import VERIFIERS, get_verifier

SEED = 20261123
ROWS = int(os.environ.get("WARPDRAFT_FUZZ", "0"))
FEW = settings(max_examples=60, deadline=None, derandomize=True)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
VOCABS = (1, 2, 3, 7, 31, 64, 129)
TEMPERATURES = (0, 0.3, 1, 1, 1.5, 8, 1e-3, 1e3)
RULES = {
    TopH: (1e-6, 0.1, 0.4, 0.9, 1, 5.0, 0, -1, math.nan, "0.4", True, None),
    MinP: (0, 1e-9, 0.1, 0.5, 1, 1.1, -0.1, math.nan, None),
    TopK: (1, 2, 5, 10**6, 2**62, 0, -3, 2.0, True),
    TopP: (0, 0.01, 0.5, 0.9, 0.999, 1, 1.01, -1e-9, math.inf),
    TopNSigma: (0, 0.5, 1, 3.0, -1, math.nan),
    Epsilon: (0, 1e-9, 3e-4, 0.3, 1, -1),
    Eta: (0, 1e-9, 3e-4, 0.3, 1, math.nan),
    TopA: (0, 0.2, 1, 2, -1),
    Typical: (0.1, 0.5, 0.95, 1, 0, 1.5),
}
# a prefix of RULES[rule] is accepted: so many parameters
ACCEPTED = {
    TopH: 6,
    MinP: 5,
    TopK: 5,
    TopP: 6,
    TopNSigma: 4,
    Epsilon: 4,
    Eta: 4,
    TopA: 3,
    Typical: 4,
}


def a_row(rng, vocab):
    """One row of float64 logits and the status that it must have."""
    kind = rng.choice(
        ["gaussian", "ties", "one_hot", "uniform", "masked", "denormal", "wide", "cliff", "bad"]
    )
    noise = np.random.default_rng(rng.getrandbits(32))
    row = noise.normal(0, 2.5, vocab)
    if kind == "ties":
        row = np.round(row)
    elif kind == "one_hot":
        row[:] = -np.inf
        row[rng.randrange(vocab)] = rng.choice([-60000.0, -3.0, 0.0, 3.0, 60000.0])
    elif kind == "uniform":
        row[:] = rng.choice([-1e4, -0.0, 1.5, 6e4])
    elif kind == "masked":
        row[noise.random(vocab) < 0.7] = -np.inf
        row[rng.randrange(vocab)] = 0.5
    elif kind == "denormal":
        row *= 1e-42
    elif kind == "wide":
        row *= 100
    elif kind == "cliff":
        row[rng.randrange(vocab)] = 30.0
    elif kind == "bad":
        worst = rng.choice([np.nan, np.inf, -np.inf])
        if worst == -np.inf:
            row[:] = worst
        else:
            row[rng.randrange(vocab)] = worst
    return row


def a_batch(rng):
    """Logits `[batch, vocab]` of any dtype and layout."""
    batch, vocab, dtype = rng.choice([0, 1, 3, 32]), rng.choice(VOCABS), rng.choice(DTYPES)
    rows = [a_row(rng, vocab) for _ in range(batch)]
    logits = torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, vocab).double()
    logits = logits.to(dtype)
    layout = rng.choice(["rows", "columns", "strided"])
    if layout == "columns":
        logits = logits.t().contiguous().t()
    elif layout == "strided" and batch:
        wide = torch.full((batch, 2 * vocab + 1), torch.nan, dtype=dtype)
        wide[:, 1::2] = logits
        logits = wide[:, 1::2]
    return logits


def some_rules(rng):
    rules = []
    for _ in range(rng.randrange(3)):
        rule = rng.choice([*RULES, PLess])
        ties = "all" if rule is Typical else rng.choice(["lowest_id", "all"])
        options = {"ties": ties, "min_tokens_to_keep": rng.choice([1, 1, 1, 3, 1000])}
        if rule is PLess:
            rules.append(PLess(rng.random() < 0.5, **options))
            continue
        rules.append(rule(rng.choice(RULES[rule][: ACCEPTED[rule]]), **options))
    return rules


def status_of(row):
    """As `warpdraft.kernels.support` numbers them: 0 OK, NaN, +inf and empty by their own."""
    return bool(torch.isfinite(row.double().amax())) and not bool(row.isnan().any())


def right_slices(row, rules, temperature):
    """The right supports of a row, as slices of its order."""
    ordered = in_order(row)[0]
    if temperature == 0:
        return {(0, 1)}
    slices = {(0, len(ordered))}
    for rule in rules:
        slices = set().union(*(supports(rule, ordered, *own, temperature) for own in slices))
    return slices


def indistinct(row, rules, temperature):
    """Whether `Typical` orders tokens whose surprises differ by rounding alone; greedy rows ignore it."""
    if temperature == 0:
        return False
    finite = row[row.isfinite()].double()
    spread = float(finite.max() - finite.min()) / temperature
    return 0 < spread < 1e-4 and any(isinstance(rule, Typical) for rule in rules)


def is_typical(row, kept, rule, temperature):
    """Whether a support is one of `Typical`, where rounding may have ordered equal surprises."""
    logprobs = torch.log_softmax(row.double() / temperature, -1)
    probs = logprobs.exp()
    shift = (-logprobs - torch.special.entr(probs).sum()).abs()
    left = shift[~kept & row.isfinite()]
    nearest = len(left) == 0 or float(shift[kept].max()) <= float(left.min()) + 1e-4
    # all that equal a kept token are kept
    whole = not bool(torch.isin(row[~kept], row[kept]).any())
    return nearest and whole and float(probs[kept].sum()) >= rule.typical_p - 1e-9


def check_rows(rng):
    """One call of truncate, resolve and sample; the number of rows that were looked at."""
    logits, rules, temperature = a_batch(rng), some_rules(rng), rng.choice(TEMPERATURES)
    before = logits.clone()
    story = f"{logits!r} {rules} temperature {temperature}"
    resolved = resolve(logits, rules, temperature=temperature)
    assert torch.equal(before.nan_to_num(7e4), logits.nan_to_num(7e4)), story
    sound = torch.tensor([status_of(row) for row in logits], dtype=torch.bool)
    assert torch.equal(resolved.status == 0, sound), story
    if not bool(sound.all()):
        bad = int((~sound).nonzero()[0])
        for call in (truncate, sample):
            with pytest.raises(ValueError, match=f"row {bad} "):
                call(logits, rules, temperature=temperature)
    logits, sent = logits[sound], len(logits)
    truncated = truncate(logits, rules, temperature=temperature)
    drawn = sample(logits, rules, temperature=temperature, seed=rng.getrandbits(60))
    assert truncated.dtype == logits.dtype
    for number, row in enumerate(logits):
        kept = truncated[number] > -torch.inf
        assert torch.equal(truncated[number][kept], row[kept]), story
        ids = in_order(row)[1]
        assert bool(kept[drawn.token_ids[number]]), story
        if indistinct(row, rules, temperature):
            lone = len(rules) == 1 and rules[0].min_tokens_to_keep == 1
            assert not lone or is_typical(row, kept, rules[0], temperature), story
            continue
        right = right_slices(row, rules, temperature)
        found = set(kept.nonzero().flatten().tolist())
        assert any(found == set(ids[a:b].tolist()) for a, b in right), f"row {number} of {story}"
    assert bool((drawn.logprobs <= 1e-6).all()) and bool((drawn.logprobs.isfinite()).all()), story
    assert bool(((drawn.kept_mass >= 0) & (drawn.kept_mass <= 1)).all()), story
    return sent


@FEW
@given(st.randoms(use_true_random=False))
def test_rows_are_truncated_and_sampled_as_promised(rng):
    check_rows(rng)


def test_as_many_rows_as_asked_for():
    rng, rows, calls = random.Random(SEED), 0, 0
    while rows < max(ROWS, 500):
        rows += check_rows(rng)
        calls += 1
    print(f"{rows} rows in {calls} calls, seed {SEED}: no difference")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_refused_parameter_is_named(rule):
    for value in RULES[rule][ACCEPTED[rule] :]:
        name = rule.__dataclass_fields__[rule.parameter].name
        with pytest.raises((ValueError, TypeError), match=f"{name} must be .*got {value!r}"):
            rule(value)


@FEW
@given(st.randoms(use_true_random=False))
def test_blocks_are_verified_or_refused(rng):
    """Any verifier, shape, dtype and row: a status, and tokens of the target's law."""
    batch, num_drafts, length = rng.choice([0, 1, 3]), rng.choice([1, 2, 4]), rng.choice([0, 1, 3])
    vocab, dtype = rng.choice([1, 2, 5, 40]), rng.choice(DTYPES)
    name = rng.choice(sorted(VERIFIERS))
    if get_verifier(name).most_drafts == 1:
        num_drafts = 1
    nodes = 1 + num_drafts * length
    laws = np.stack([a_row(rng, vocab) for _ in range(2 * max(batch, 1) * nodes)])
    target, draft = torch.from_numpy(laws).to(dtype).reshape(2, -1, nodes, vocab)[:, :batch]
    tokens = torch.tensor(
        [rng.randrange(vocab) for _ in range(batch * num_drafts * length)], dtype=torch.int64
    ).reshape(batch, num_drafts, length)
    index = torch.zeros(batch, num_drafts, length + 1, dtype=torch.int64)
    index[:, :, 1:] = 1 + torch.arange(num_drafts * length).reshape(num_drafts, length)
    temperature = rng.choice([0, 0.5, 1, 2])
    rules = rng.choice([(), MinP(0.1), TopK(2), TopH(0.4)])
    story = f"{name} {target!r} {draft!r} {tokens!r} {rules} {temperature}"
    out = verify_block(
        target, draft, tokens, index, verifier=name, rules=rules, temperature=temperature, seed=3
    )
    for row in range(batch):
        emitted, count = out.output_token_ids[row].tolist(), int(out.num_accepted[row])
        if int(out.status[row]) != 0:
            assert set(emitted) == {-1} and count == 0, story
            continue
        assert emitted[count + 1 :] == [-1] * (length - count), story
        assert all(0 <= token < vocab for token in emitted[: count + 1]), story
        path = int(out.survivor_path[row])
        assert emitted[:count] == tokens[row, path, :count].tolist(), story
        for depth, token in enumerate(emitted[: count + 1]):
            logits = target[row, index[row, path, depth]][None]
            kept = truncate(logits, rules, temperature=temperature)
            assert float(kept[0, token]) > -math.inf, story


@FEW
@given(st.randoms(use_true_random=False))
def test_the_bound_is_a_chance_or_a_documented_error(rng):
    rows, vocab = rng.choice([0, 1, 4]), rng.choice([1, 2, 9])
    laws = torch.rand(2, rows, vocab, dtype=torch.float64) ** rng.choice([1, 8, 40])
    laws[1] *= torch.rand(rows, vocab) < 0.7
    laws = laws.clamp(min=1e-300) / laws.clamp(min=1e-300).sum(-1, keepdim=True)
    kind = rng.choice(["fine", "nan", "negative", "unnormalised", "infinite"])
    number = rng.choice([1, 2, 7, 1000])
    if kind != "fine" and rows:
        worst = {"nan": math.nan, "negative": -0.1, "unnormalised": 3.0, "infinite": math.inf}[kind]
        laws[0, 0, 0] = worst
        with pytest.raises(ValueError, match="target_probs must"):
            optimal_acceptance(laws[0], laws[1], number)
        return
    bound = optimal_acceptance(laws[0], laws[1], number)
    assert bound.shape == (rows,) and bool(((bound >= 0) & (bound <= 1)).all())
    more = optimal_acceptance(laws[0], laws[1], number + 1)
    assert bool((more >= bound - 1e-12).all())


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "2", None])
def test_the_bound_refuses_a_number_of_drafts(number):
    laws = torch.full((1, 2), 0.5)
    with pytest.raises((ValueError, TypeError), match=r"num_drafts must be .*got"):
        optimal_acceptance(laws, laws, number)


def change_requests(rng, requests, held, slots):
    """One change of the batch, made in a `PerRequestRules` and in a dict of slots."""
    first, second = rng.randrange(slots), rng.randrange(slots)
    kind = rng.choice(["add", "add", "add", "remove", "move", "swap", "reorder"])
    if kind == "add":
        rules, temperature = some_rules(rng), rng.choice(TEMPERATURES)
        truncated = requests.add(first, rules, temperature)
        assert truncated == (bool(rules) and temperature > 0)
        held[first] = (rules, temperature)
    elif kind == "remove":
        requests.remove(first)
        held.pop(first, None)
    elif kind == "move":
        requests.move(first, second)
        held[second] = held.get(first, ((), 1))
        if first != second:
            held.pop(first, None)
    elif kind == "swap":
        requests.swap(first, second)
        held[first], held[second] = held.get(second, ((), 1)), held.get(first, ((), 1))
    else:
        order = rng.sample(range(slots), rng.randrange(slots + 1))
        requests.reorder(order)
        moved = {new: held[old] for new, old in enumerate(order) if old in held}
        held.clear()
        held.update(moved)
    return kind, first, second


def check_batch_changes(rng):
    """Requests that come, go and move between steps; the number of rows that were looked at."""
    slots = rng.choice([1, 3, 6])
    requests, held, rows, story = PerRequestRules("cpu"), {}, 0, []
    for _ in range(rng.randrange(1, 9)):
        story += [change_requests(rng, requests, held, slots) for _ in range(rng.randrange(4))]
        logits = a_batch(rng)
        # a request may have several rows, or none
        by_row = [rng.randrange(slots + 1) for _ in logits]
        if rng.random() < 0.3:
            by_row = list(range(len(logits)))
        before = logits.clone()
        tale = f"{story} {held} slots {by_row} {before!r}"
        given = None if by_row == list(range(len(logits))) else by_row
        if logits.stride(-1) != 1 and logits.shape[1] > 1:
            logits = logits.contiguous()
        after = requests.apply_inplace(logits, given)
        assert after is logits, tale
        for row, old, slot in zip(after, before, by_row, strict=True):
            rules, temperature = held.get(slot, ((), 1))
            if not rules or temperature == 0 or not status_of(old):
                assert torch.equal(row.nan_to_num(7e4), old.nan_to_num(7e4)), tale
                continue
            kept = row > -torch.inf
            assert torch.equal(row[kept], old[kept]), tale
            if indistinct(old, rules, temperature):
                continue
            ids = in_order(old)[1]
            right = right_slices(old, rules, temperature)
            found = set(kept.nonzero().flatten().tolist())
            assert any(found == set(ids[a:b].tolist()) for a, b in right), tale
        rows += len(logits)
    return rows


@FEW
@given(st.randoms(use_true_random=False))
def test_requests_keep_their_rules_while_the_batch_changes(rng):
    check_batch_changes(rng)


def test_as_many_rows_of_changing_batches_as_asked_for():
    rng, rows = random.Random(SEED), 0
    while rows < max(ROWS // 10, 500):
        rows += check_batch_changes(rng)
    print(f"{rows} rows of changing batches, seed {SEED}: no difference")


class Streamer:
    """Takes everything and ends once."""

    def __init__(self):
        self.tokens, self.ends = [], 0

    def put(self, tokens):
        self.tokens += tokens.flatten().tolist()

    def end(self):
        self.ends += 1


VOCAB = 24
TARGET = tiny_model(vocab=VOCAB, context=64)
DRAFT = tiny_model(seed=1, vocab=VOCAB, layers=1, context=64)
SOUND = {
    "num_drafts": (1, 2, 4),
    "draft_length": (1, 2, 5, 255),
    "verifier": (None, *sorted(VERIFIERS)),
    "selector": (None, "clip", "lex"),
    "num_top": (None, 0, 1, 9),
    "structure": ("paths", "paths", "rollover"),
    "node_budget": (None, None, 1, 6, 4096),
    "layout": ("auto", "paths", "tree"),
    "adaptive": (None, None, AdaptiveShape((1, 3), draft_cost=0.1, node_cost=0.0)),
    "seed": (0, -(1 << 63), (1 << 63) - 1, None),
    "trusted": ((), [type]),
    "cache_implementation": ("static", None),
}
SAMPLING = {
    "temperature": (0.3, 1.0, 1.5),
    "top_k": (0, 3),
    "top_p": (1.0, 0.7),
    "do_sample": (True, True, False),
    "max_new_tokens": (1, 2, 9),
}
HOSTILE = {
    "num_drafts": (0, -1, True, 1.5, "4", None, 4097, 10**400, math.nan),
    "draft_length": (0, 256, False, 2.0, [4], math.inf),
    "verifier": ("spectr", 3, ["k_seq"], "", object),
    "selector": ("first", 3, ["clip"]),
    "num_top": (-1, True, 1.5, "1"),
    "structure": ("tree", 3, None, ["paths"]),
    "node_budget": (0, -1, True, 2.5, "6", 10**30),
    "layout": ("rows", 3, None, {}),
    "adaptive": (True, (1, 2), "auto"),
    "seed": (1.5, "7", True, 1 << 63, -(1 << 63) - 1, [1]),
    "sequence": (
        [0],
        torch.tensor(0),
        torch.zeros(2),
        torch.tensor([-1, 0]),
        torch.zeros(5).long(),
    ),
    "generator": (3, torch.Generator, "cpu"),
    "trusted": (3, ["a"], None, torch.nn.Linear),
    "streamer": (3, print, object()),
    "stop_strings": (3, [""], "", [], [3], "end"),
    "compile": (1, "yes", None),
    "rules": (0.4, "top_h", [TopH], [None], {"top_h": 0.4}),
    "num_beams": (2,),
    "max_new_tokens": (64, 10**9),
}


# what else a refusal may say of an argument
RENAMED = {"max_new_tokens": ("context holds",), "stop_strings": ("tokenizer",)}


def hold_to_their_rules(text, prompt, mask, rules, options):
    """The new tokens of a text against what a plain pass of the target leaves."""
    length = prompt.shape[1]
    assert text.dtype == torch.int64 and len(text) == len(prompt)
    assert length < text.shape[1] <= length + options["max_new_tokens"]
    assert torch.equal(text[:, :length], prompt)
    seen = torch.cat([mask, mask.new_ones(len(text), text.shape[1] - length)], 1)
    places = (seen.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = TARGET(text, attention_mask=seen, position_ids=places).logits
    warpers = [TopK(options["top_k"], ties="all")] if options["top_k"] else []
    warpers += [TopP(options["top_p"])] if options["top_p"] < 1 else []
    heat = options["temperature"] if options["do_sample"] else 0
    for place in range(length, text.shape[1]):
        rows = logits[:, place - 1]
        kept = truncate(rows, [*warpers, *rules], temperature=heat)
        drawn = rows.gather(1, text[:, place : place + 1])
        # another call of the target rounds otherwise: a token may stand on the other side of a cut
        near = (kept > -torch.inf) & ((rows - drawn).abs() < 1e-4)
        assert bool(near.any(1).all()), f"token {place}"


def check_generation(rng):
    """One generation with options of any kind: the argument is named, or the text is lawful."""
    options = {name: rng.choice(values) for name, values in SAMPLING.items()}
    wrong = rng.choice([None] * 20 + sorted(HOSTILE))
    if wrong is None:
        # most combinations of many are refused
        few = rng.sample(sorted(SOUND), rng.choice([1, 2, 3, 5]))
        options |= {name: rng.choice(SOUND[name]) for name in few}
    else:
        options[wrong] = rng.choice(HOSTILE[wrong])
    rules = some_rules(rng)
    draft = rng.choice([DRAFT, DRAFT, DRAFT, TARGET, FirstLayers(1), PromptLookup(2)])
    batch, width = rng.choice([1, 1, 2]), rng.choice([1, 2, 6])
    prompt = torch.tensor([[rng.randrange(2, VOCAB) for _ in range(width)] for _ in range(batch)])
    mask = torch.ones_like(prompt)
    if batch > 1 and width > 1 and rng.random() < 0.5:
        mask[0, : width - 1] = 0
    streamer = Streamer()
    call = {"rules": rules, "streamer": streamer if batch == 1 else None, **options}
    story = f"{draft if draft not in (DRAFT, TARGET) else 'a model'} {call} {prompt} {mask}"
    try:
        text = generate(TARGET, draft, prompt, attention_mask=mask, pad_token_id=0, **call)
    except (ValueError, TypeError) as error:
        said = str(error)
        names = [wrong] if wrong is not None else [*options, "context holds"]
        assert any(name in said for name in [*names, *RENAMED.get(wrong, ())]), f"{story}: {said}"
        return False
    finally:
        assert wrong == "streamer" or streamer.ends == (batch == 1), story
    assert wrong is None, f"not refused: {story}"
    hold_to_their_rules(text, prompt, mask, rules, options)
    return True


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.randoms(use_true_random=False))
def test_a_generation_is_lawful_or_names_the_argument(rng):
    check_generation(rng)


def test_as_many_generations_as_asked_for():
    rng, lawful, number = random.Random(SEED), 0, max(ROWS // 5000, 40)
    for _ in range(number):
        lawful += check_generation(rng)
    assert lawful > number // 5
    print(f"{number} generations, {lawful} of them lawful, the others refused by name")
