"""Laws: compact and dense ones are the same law, drawn and verified alike, whatever the batch around a row."""

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

import warpdraft
import warpdraft.laws as laws_module
from warpdraft import MinP, TopH, TopK, TopP, Typical
from warpdraft.kernels.noise import Noise, Role
from warpdraft.laws import Law, LawPipeline, NodeLaws, law_of
from warpdraft.processors import ProcessorStack

VOCAB = 20_000
RULES = {
    "top-H": [TopH(0.4)],
    "min-p": [MinP(0.1)],
    "two rules": [TopK(300), TopP(0.8)],
    "an interval": [Typical(0.2)],
    "one token": [TopK(1)],
    "1,024 tokens": [TopK(1024)],
}
on_rules = pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
on_dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["float32", "float64", "bfloat16"]
)


def rows_of_logits(rows, seed, dtype=torch.float32, vocab=VOCAB):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocab, generator=generator) * 3).to(dtype)


def by_truncation(logits, rules, temperature=1.0):
    """The law in float64, from the masked logits."""
    masked = warpdraft.truncate(logits, rules, temperature=temperature).double()
    return (masked / temperature).softmax(1)


# ---- compact laws


@on_dtypes
@on_rules
def test_compact_law_is_the_softmax_over_the_support(rules, dtype):
    logits = rows_of_logits(5, 0, dtype)
    for temperature in (0.7, 1.0):
        law = law_of(logits, rules, temperature)
        expected = by_truncation(logits, rules, temperature)
        assert law.token_ids is not None
        assert law.scores is None
        assert law.probs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(law.dense().probs.double(), expected, rtol=2e-7, atol=1e-12)
        support = (expected > 0).sum(1)
        assert law.probs.shape[1] == int(support.max())
        assert torch.equal((law.probs > 0).sum(1), support)
        assert bool((law.token_ids.diff() >= 0).all())
        padding = torch.arange(law.probs.shape[1]) >= support[:, None]
        assert bool((law.token_ids[padding] == VOCAB - 1).all())


def test_support_of_more_tokens_is_dense():
    logits = rows_of_logits(2, 0)
    law = law_of(logits, TopK(1025), 1.0)
    assert law.token_ids is None
    torch.testing.assert_close(
        law.probs.double(), by_truncation(logits, TopK(1025)), rtol=1e-6, atol=1e-12
    )
    assert law_of(logits, (), 1.0).token_ids is None


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@on_dtypes
def test_law_without_rules_is_the_softmax(dtype, temperature):
    logits = rows_of_logits(3, 1, dtype, vocab=9_001)
    logits[1, ::2] = -torch.inf
    law = law_of(logits, (), temperature)
    expected = (logits.double() / temperature).softmax(1)
    torch.testing.assert_close(law.probs.double(), expected, rtol=3e-6, atol=1e-12)


def test_extreme_temperatures_have_laws():
    logits = rows_of_logits(1, 1)
    cold = law_of(logits, (), 1e-50).probs[0]
    assert float(cold.max()) == 1
    assert int(cold.argmax()) == int(logits.argmax())
    hot = law_of(logits, (), 1e50).probs[0]
    torch.testing.assert_close(hot, torch.full_like(hot, 1 / VOCAB))


def test_greedy_law_is_the_argmax_of_lowest_id():
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0]])
    law = law_of(logits, (), 0.0)
    assert law.token_ids.tolist() == [[1]]
    assert law.probs.tolist() == [[1.0]]
    some = law_of(logits.expand(2, -1), (), torch.tensor([0.0, 1.0]))
    assert some.dense().probs[0].tolist() == [0.0, 1.0, 0.0, 0.0]
    torch.testing.assert_close(some.dense().probs[1], logits[0].softmax(0))


@pytest.mark.parametrize("rules", [(), [TopK(3)]], ids=["dense", "compact"])
def test_rows_without_a_law_are_zeros(rules):
    logits = rows_of_logits(4, 2)
    logits[0, 5], logits[1, 5], logits[3] = torch.nan, torch.inf, -torch.inf
    for rows in ([0, 1, 2, 3], [0, 1, 3]):
        law = law_of(logits[rows], rules, 1.0)
        assert law.status.tolist() == [{0: 1, 1: 2, 2: 0, 3: 3}[row] for row in rows]
        bad = law.status != 0
        assert not law.probs[bad].any()
        assert law.dense().probs.shape == (len(rows), VOCAB)
        torch.testing.assert_close(law.probs[~bad].sum(1), torch.ones(int((~bad).sum())))


def test_scores_are_the_masked_logits_and_come_when_asked_for():
    logits = rows_of_logits(3, 3)
    for rules in ([TopK(5)], [TopK(3000)], ()):
        law = law_of(logits, rules, 0.5, with_scores=True)
        expected = warpdraft.truncate(logits, rules, temperature=0.5) / 0.5
        assert torch.equal(law.scores, expected)
        assert torch.equal(law.probs, law_of(logits, rules, 0.5).probs)


def test_law_of_a_row_does_not_depend_on_the_batch():
    """Supports of 3 and of many tokens: alone the first row is compact, beside the second it is dense."""
    logits = rows_of_logits(4, 4)
    logits[0, [7, 8, VOCAB - 1]] = 40.0
    for rules in ([MinP(1e-6)], [MinP(0.1)], ()):
        whole = law_of(logits, rules, 0.8)
        for row in range(4):
            alone = law_of(logits[[row]], rules, 0.8)
            assert torch.equal(alone.dense().probs[0], whole.dense().probs[row])
    assert law_of(logits[:1], [MinP(1e-6)], 0.8).token_ids is not None
    assert law_of(logits, [MinP(1e-6)], 0.8).token_ids is None


# ---- draws


@on_rules
def test_tokens_drawn_from_a_compact_law_are_those_of_the_dense_one(rules):
    logits = rows_of_logits(200, 5, vocab=3000)
    law = law_of(logits, rules, 1.3)
    noise = Noise.create(200, seed=1, device="cpu")
    depth, path = torch.arange(200) % 7, torch.arange(200) % 3
    for role in (Role.DRAFT, Role.RESIDUAL, Role.BONUS):
        compact = law.draw(noise, role, depth=depth, path=path)
        assert torch.equal(compact, law.dense().draw(noise, role, depth=depth, path=path))
    if rules != [TopK(1)]:
        assert not torch.equal(compact, law.draw(noise, Role.BONUS, depth=depth + 1, path=path))


def test_padding_is_never_drawn_nor_found():
    token_ids = torch.tensor([[1, 4, 4], [4, 4, 4]])
    probs = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    law = replace(Law.of_probs(probs), token_ids=token_ids, vocab=5)
    assert law.dense().probs.tolist() == [[0, 0.5, 0, 0, 0.5], [0, 0, 0, 0, 1]]
    rows = torch.arange(2).repeat(50)
    noise = Noise.create(100, seed=1, device="cpu")
    drawn = law.only(rows).draw(noise, Role.PLAIN)
    assert set(drawn[0::2].tolist()) == {1, 4}
    assert set(drawn[1::2].tolist()) == {4}
    node = NodeLaws.of(law, law)
    assert node.columns(torch.tensor([[1, 4], [4, 4]])).tolist() == [[0, 1], [0, 0]]


# ---- both laws of a node


def given(token_ids, probs, vocab=VOCAB):
    law = Law.of_probs(torch.tensor(probs, dtype=torch.float64))
    return replace(law, token_ids=torch.tensor(token_ids), vocab=vocab)


def test_laws_meet_over_the_union_of_their_tokens():
    target = given([[2, 5, 9], [3, 9, 9]], [[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], vocab=10)
    draft = given([[5, 6], [9, 9]], [[0.4, 0.6], [1.0, 0.0]], vocab=10)
    node = NodeLaws.of(target, draft)
    columns = node.columns(torch.tensor([[2, 5, 6, 9, 7], [3, 9, -1, 4, 0]]))
    assert columns.tolist()[0] == [0, 1, 2, 3, 4]
    assert columns[1, :2].tolist() == [0, 1]
    assert node.target.gather(1, columns).tolist() == [[0.2, 0.3, 0, 0.5, 0], [1, 0, 0, 0, 0]]
    assert node.draft.gather(1, columns).tolist() == [[0, 0.4, 0.6, 0, 0], [0, 1, 0, 0, 0]]
    assert node.tokens(torch.tensor([2, 0])).tolist() == [6, 3]
    assert node.tokens(torch.tensor([-1, 1])).tolist() == [-1, 9]
    for law, dense in ((node.target, target.dense()), (node.draft, draft.dense())):
        spread = replace(Law.of_probs(law), token_ids=node.token_ids, vocab=10)
        assert torch.equal(spread.dense().probs, dense.probs)
    one = node.only(torch.tensor([1]))
    assert torch.equal(one.target, node.target[[1]])
    assert torch.equal(one.columns(torch.tensor([[9]])), torch.tensor([[1]]))


def test_laws_that_do_not_fit_together_meet_over_the_vocabulary():
    many, few = law_of(rows_of_logits(2, 6), (), 1.0), law_of(rows_of_logits(2, 7), TopK(9), 1.0)
    for pair in ((many, few), (few, many)):
        node = NodeLaws.of(*pair)
        assert node.token_ids is None
        assert torch.equal(node.target, pair[0].dense().probs)
        assert torch.equal(node.draft, pair[1].dense().probs)
    one, other = (law_of(rows_of_logits(2, seed), TopK(600), 1.0) for seed in (8, 9))
    node = NodeLaws.of(one, other)
    assert node.token_ids is None
    assert torch.equal(node.draft, other.dense().probs)


def block_of(rules, vocab, seed, *, batch=40, num_drafts=3, length=3):
    """Logits of a block whose paths are drawn from the draft's own law, the same after every prefix."""
    target = rows_of_logits(batch, seed, vocab=vocab)
    draft = target + 0.7 * rows_of_logits(batch, seed + 1, vocab=vocab)
    noise = Noise.create(batch, seed=seed, device="cpu")
    law = law_of(draft, rules, 1.0)
    tokens = [
        [law.draw(noise, Role.DRAFT, depth=depth, path=path) for depth in range(length)]
        for path in range(num_drafts)
    ]
    token_ids = torch.stack([torch.stack(path, 1) for path in tokens], 1)
    nodes = torch.zeros(batch, num_drafts, length + 1, dtype=torch.int64)
    return target[:, None], draft[:, None], token_ids, nodes


@pytest.mark.parametrize("verifier", ["k_seq", "optimal", "optimal_block"])
@pytest.mark.parametrize("rules", [TopH(0.4), MinP(0.2), TopK(4)], ids=repr)
def test_compact_laws_are_verified_like_dense_ones(rules, verifier):
    block = block_of(rules, 2000, 11)
    arguments = {"rules": rules, "verifier": verifier, "seed": 4}
    compact = warpdraft.verify_block(*block, **arguments)
    assert law_of(block[0][:, 0], rules, 1.0).token_ids is not None
    with patch("warpdraft.logits_block.law_of", lambda *given: law_of(*given).dense()):
        dense = warpdraft.verify_block(*block, **arguments)
    assert torch.equal(compact.output_token_ids, dense.output_token_ids)
    assert torch.equal(compact.num_accepted, dense.num_accepted)
    assert len(compact.num_accepted.unique()) > 2


@pytest.mark.parametrize("verifier", ["k_seq", "optimal", "optimal_block"])
def test_tokens_outside_the_target_s_support_are_never_emitted(verifier):
    rules = TopK(3)
    block = block_of(rules, 500, 12)
    target = law_of(block[0][:, 0], rules, 1.0).dense().probs
    first = block[2][:, :, 0]
    assert bool((target.gather(1, first) == 0).any())
    output = warpdraft.verify_block(*block, rules=rules, verifier=verifier, seed=4).output_token_ids
    emitted = target.gather(1, output.clamp_min(0))
    assert bool((emitted[output >= 0] > 0).all())


# ---- the pipeline


class Stops:
    """Texts of which some have ended."""

    def __init__(self, ended):
        self._ended = torch.tensor(ended)

    def may_end(self, depth):
        return True

    def ended(self, rows, drafted):
        return self._ended[rows]

    def prefixes(self, rows, drafted):
        assert not bool(self._ended[rows].any())
        return SimpleNamespace(rows=rows)


@pytest.mark.parametrize("with_scores", [False, True], ids=["", "scores"])
@pytest.mark.parametrize("rules", [(), [TopK(5)], [TopK(5000)]], ids=["none", "compact", "dense"])
def test_rows_behind_their_end_are_certain_of_token_zero(rules, with_scores):
    logits = rows_of_logits(4, 13)
    pipeline = LawPipeline(rules=rules)
    rows, drafted = torch.arange(4), torch.zeros(4, 0, dtype=torch.int64)
    for ended in ([False, True, False, True], [True] * 4, [False] * 4):
        law = pipeline.after(Stops(ended), rows, drafted, logits, with_scores=with_scores)
        plain = law_of(logits, rules, 1.0, with_scores=True)
        dense = law.dense().probs
        for row in range(4):
            if ended[row]:
                assert float(dense[row, 0]) == float(dense[row].sum()) == 1
            else:
                assert torch.equal(dense[row], plain.dense().probs[row])
            if with_scores and ended[row]:
                assert law.scores[row].exp().tolist() == dense[row].tolist()
            elif with_scores:
                assert torch.equal(law.scores[row], plain.scores[row])
        if not with_scores:
            assert law.scores is None
        if rules == [TopK(5)]:
            assert law.token_ids is not None
        assert not law.status.any()


def test_greedy_pipeline_runs_no_rule_and_names_none():
    pipeline = LawPipeline(rules=[TopK(5)], greedy=True)
    assert (pipeline.rules, pipeline.names, pipeline.temperature) == ((), (), 0.0)
    logits = rows_of_logits(2, 14)
    law = pipeline(logits, None, with_scores=True)
    assert torch.equal(law.scores, logits)
    assert torch.equal(law.token_ids[:, 0], logits.argmax(1))
    assert pipeline(logits, None).scores is None
    assert LawPipeline(ProcessorStack([]), [TopK(5)]).names == (repr(TopK(5)),)


def test_whole_rows_are_not_softmaxed_for_a_small_support():
    logits = rows_of_logits(3, 15)
    with patch.object(laws_module, "_softmax", side_effect=AssertionError):
        assert law_of(logits, TopH(0.4), 1.0).probs.shape[1] < 1024
