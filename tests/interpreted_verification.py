"""The Triton kernels of verification in Triton's interpreter, against the walk in float64.

Run by test_verification_triton.py in a process of its own, because Triton decides at its import whether it
interprets; `TRITON_INTERPRET=1 python -m pytest -n 0 tests/interpreted_verification.py` runs it alone.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from spline_walk import Laws, SplineWalk, laws_of

from warpdraft import MinP, TopH, TopK, TopP, Typical, verify_block
from warpdraft.backend import operations_of
from warpdraft.kernels.noise import Noise
from warpdraft.kernels.ratio_splines import knots
from warpdraft.kernels.support import BAD_PARAMETER, EMPTY, NAN, OK, POSITIVE_INFINITY
from warpdraft.kernels.verification_triton import sum_nodes, walk

# NumPy interprets: -inf - -inf and 0 / 0 in lanes that are not taken are meant
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

CHOICES = [("k_seq", "clip"), ("optimal", "clip"), ("optimal_block", "lex")]

MISMATCHES = 1 / 1000
"""Walks that may part from those in float64: where a number lies within rounding of a decision."""


def gaussian(nodes, vocab, generator, closeness=0.7):
    """Two models that agree in part."""
    target, other = (torch.randn(nodes, vocab, generator=generator) * 2 for _ in range(2))
    return target, closeness * target + (1 - closeness) * other


def equal(nodes, vocab, generator):
    """One model twice."""
    target, _ = gaussian(nodes, vocab, generator)
    return target, target.clone()


def disjoint(nodes, vocab, generator):
    """Two models without a common token."""
    target, draft = gaussian(nodes, vocab, generator)
    target[:, ::2], draft[:, 1::2] = -math.inf, -math.inf
    return target, draft


def one_hot(nodes, vocab, generator):
    """Rows of one token, the same one in half of the nodes."""
    target, draft = (torch.full((nodes, vocab), -math.inf) for _ in range(2))
    number = torch.arange(nodes)
    target[number, number % vocab] = 1.0
    draft[number, (number + number % 2) % vocab] = -2.0
    return target, draft


def tied(nodes, vocab, generator):
    """Few different logits."""
    target, draft = gaussian(nodes, vocab, generator)
    return (target / 2).round(), (draft / 2).round()


class Case(NamedTuple):
    """Blocks of one pair of models."""

    vocab: int
    num_paths: int
    length: int
    rules: tuple[Any, ...] = ()
    temperature: float = 1.0
    rows: Any = gaussian
    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32)
    repeats: int = 2


class Blocks:
    """A batch of blocks over fixed logits, whose tokens are drawn again for every step."""

    def __init__(self, case: Case, seed: int, batch: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        count = 1 + case.num_paths * case.length
        target, draft = case.rows(batch * count, case.vocab, generator)
        self.case, self.batch = case, batch
        self.target = target.view(batch, count, -1).to(case.dtypes[0])
        self.draft = draft.view(batch, count, -1).to(case.dtypes[1])
        self.set_laws([case.rules] * batch, [case.temperature] * batch)
        if case.length:
            # no verifier may rely on the draft's rows of leaves
            self.draft[:, case.length :: case.length] = math.nan
        self.generator = generator

    def set_laws(self, rules, temperature) -> None:
        """The laws under the rules and the temperature of each row."""
        columns = [
            [laws_of(*row) for row in zip(logits, rules, temperature, strict=True)]
            for logits in (self.target, self.draft)
        ]
        self.laws = Laws(
            *(torch.stack(part) for side in columns for part in zip(*side, strict=True))
        )

    def sum_nodes(self, verifier):
        """What the kernels need to walk."""
        rules, temperature = operations_of(self.case.rules), self.case.temperature
        paths = self.case.num_paths
        return sum_nodes(self.target, self.draft, paths, rules, temperature, verifier)

    def walk(self, tokens, node_index, drawn, noise, verifier, selector):
        """In float64."""
        knot = knots(self.case.num_paths, verifier=verifier).float()
        laws = self.laws
        return SplineWalk(laws, tokens, node_index, drawn, noise, knot, verifier, selector).run()

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and nodes of all paths; equal prefixes share a node."""
        paths, length = self.case.num_paths, self.case.length
        tokens = torch.zeros(self.batch, paths, length, dtype=torch.int64)
        nodes = torch.zeros(self.batch, paths, length + 1, dtype=torch.int64)
        for row in range(self.batch):
            seen: dict[tuple[int, ...], int] = {}
            for depth in range(length):
                for path in range(paths):
                    law = self.laws.draft[row, nodes[row, path, depth]]
                    tokens[row, path, depth] = torch.multinomial(law, 1, generator=self.generator)
                    prefix = tuple(tokens[row, path, : depth + 1].tolist())
                    own = 1 + path * length + depth
                    nodes[row, path, depth + 1] = seen.setdefault(prefix, own)
        return tokens, nodes


def parted(found, expected) -> int:
    """How many rows emit something else."""
    assert found.num_accepted.dtype == found.survivor_path.dtype == torch.int64
    assert found.status.dtype == torch.int8
    same = (found.output_token_ids == expected.output_token_ids).all(1)
    for name in ("num_accepted", "survivor_path", "status"):
        same &= getattr(found, name) == getattr(expected, name)
    return int((~same).sum())


def compare(blocks: Blocks, seed: int, choices=CHOICES) -> tuple[int, int]:
    """How many walks part from those in float64, of how many."""
    case = blocks.case
    nodes = {verifier: blocks.sum_nodes(verifier) for verifier, _ in choices}
    apart = walks = 0
    for step in range(case.repeats):
        tokens, node_index = blocks.draw()
        drawn = torch.ones_like(tokens, dtype=torch.bool)
        noise = Noise.create(blocks.batch, seed=seed, step=step, device="cpu")
        for verifier, selector in choices:
            block = tokens, node_index, drawn, noise
            found = walk(nodes[verifier], *block, lex=selector == "lex")
            apart += parted(found, blocks.walk(*block, verifier, selector))
            walks += blocks.batch
    return apart, walks


CASES = [
    Case(33, 4, 3, repeats=3),
    Case(1, 2, 1),
    Case(500, 2, 0),
    Case(40, 3, 2, rows=equal),
    Case(40, 3, 1, rows=disjoint),
    Case(7, 3, 2, rows=one_hot),
    Case(64, 3, 1, temperature=0.0),
    Case(1000, 2, 3, (TopH(0.6),), 0.7),
    Case(300, 3, 1, (Typical(0.9),), 1.5),
    Case(300, 4, 1, (MinP(0.05),), rows=tied, dtypes=(torch.bfloat16,) * 2),
    Case(300, 2, 1, (TopK(20), TopP(0.9)), 1.3, dtypes=(torch.float32, torch.float16)),
    # supports beyond the candidates: their sums are read again; races in stages
    Case(9000, 3, 1, (MinP(0.001),), 1.5),
    Case(9000, 2, 1, (TopH(0.95),), 1.5),
    Case(9000, 4, 1, (TopK(20), TopP(0.9))),
    Case(9000, 2, 1, temperature=1.5),
    # one path; more than a power of two
    Case(30, 1, 3),
    Case(30, 5, 2, rows=tied),
]


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{n}-V{CASES[n].vocab}")
def test_every_walk_is_that_in_float64(number):
    apart, walks = compare(Blocks(CASES[number], number), number)
    assert walks > 0
    assert apart <= walks * MISMATCHES


def test_the_other_selectors():
    case = Case(50, 4, 2)
    choices = [("optimal", "lex"), ("optimal_block", "clip")]
    apart, _ = compare(Blocks(case, 5), 5, choices)
    assert apart == 0


def test_rows_with_parameters_of_their_own():
    temperature = [0.0, 0.7, 1.3]
    min_p = [0.3, 0.01, 0.1]
    blocks = Blocks(Case(60, 3, 1), 3, batch=3)
    blocks.set_laws([(MinP(value),) for value in min_p], temperature)
    tokens, node_index = blocks.draw()
    for verifier, selector in CHOICES:
        verified = verify_block(
            blocks.target,
            blocks.draft,
            tokens,
            node_index,
            verifier=verifier,
            rules=MinP(torch.tensor(min_p)),
            temperature=torch.tensor(temperature),
            seed=7,
            step=2,
            backend="triton",
        )
        drawn = torch.ones_like(tokens, dtype=torch.bool)
        noise = Noise.create(3, seed=7, step=2, device="cpu")
        expected = blocks.walk(tokens, node_index, drawn, noise, verifier, selector)
        assert parted(verified, expected) == 0


def test_a_bad_law_stops_the_rows_that_reach_it():
    blocks = Blocks(Case(20, 2, 1, rows=equal), 1, batch=7)
    tokens, node_index = blocks.draw()
    root = node_index[:, 0, 0]
    assert not root.any()
    target, draft = blocks.target.clone(), blocks.draft.clone()
    target[0, 0, 3] = math.nan
    draft[1, 0, 4] = math.inf
    draft[2, 0] = -math.inf
    # equal models accept every token: a leaf is reached
    target[3, 1:, 1] = math.inf
    # two paths of one token leave a node that is no prefix
    tokens[4, 1], node_index[4, 1] = tokens[4, 0], node_index[4, 0]
    target[4, 2] = math.nan
    valid = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 1.5, 0.1])
    for verifier in ("k_seq", "optimal_block"):
        verified = verify_block(
            target,
            draft,
            tokens,
            node_index,
            verifier=verifier,
            rules=MinP(valid * 0.01 + (valid > 1) * 2),
            seed=3,
            backend="triton",
        )
        status = verified.status.tolist()
        assert status[:4] == [NAN, POSITIVE_INFINITY, EMPTY, POSITIVE_INFINITY]
        assert status[4:] == [OK, BAD_PARAMETER, OK]
        bad = verified.status != OK
        assert verified.output_token_ids[bad].eq(-1).all()
        assert not verified.num_accepted[bad].any()
        assert not verified.survivor_path[bad].any()
        assert verified.num_accepted[[4, 6]].eq(1).all()


def test_paths_that_branch_off_and_end():
    # path 1 repeats path 0 and branches off at depth 1; path 2 ends there
    blocks = Blocks(Case(12, 3, 3), 9)
    tokens, node_index = blocks.draw()
    drawn = torch.ones(1, 3, 3, dtype=torch.bool)
    tokens[0, 1, 0] = tokens[0, 0, 0]
    node_index[0, 1, :2] = node_index[0, 0, :2]
    drawn[0, 1, 0] = False
    tokens[0, 2, 1:], drawn[0, 2, 1:] = -1, False
    node_index[0, 2, 2:] = node_index[0, 2, 1]
    for verifier, selector in CHOICES:
        nodes = blocks.sum_nodes(verifier)
        for step in range(4):
            block = tokens, node_index, drawn, Noise.create(1, seed=1, step=step, device="cpu")
            verified = walk(nodes, *block, lex=selector == "lex")
            assert parted(verified, blocks.walk(*block, verifier, selector)) == 0


def test_a_large_vocabulary():
    # no multiple of 8,192: the last slice is not full
    blocks = Blocks(Case(128_256, 2, 1, repeats=1), 8)
    apart, walks = compare(blocks, 8, [("k_seq", "clip"), ("optimal_block", "lex")])
    assert (apart, walks) == (0, 2)


def test_every_path_may_be_taken_of_the_most_that_there_are():
    blocks = Blocks(Case(20, 64, 1, repeats=1), 4)
    apart, _ = compare(blocks, 4, [("optimal_block", "lex")])
    assert apart == 0


def test_logits_in_any_strides():
    blocks = Blocks(Case(33, 2, 1), 2, batch=2)
    tokens, node_index = blocks.draw()
    # rows of a wider tensor, nodes before the batch, and leaves that are cut off
    wide = torch.zeros(3, 2, 40)
    wide[:, :, :33] = blocks.target.transpose(0, 1)
    target, draft = wide[:, :, :33].transpose(0, 1), blocks.draft[:, :1]
    for verifier, _ in CHOICES:
        arguments = {"verifier": verifier, "seed": 5, "backend": "triton"}
        whole = verify_block(blocks.target, blocks.draft, tokens, node_index, **arguments)
        strided = verify_block(target, draft, tokens, node_index, **arguments)
        assert parted(strided, whole) == 0


def test_the_inputs_stay_as_they_are_and_leaves_need_no_draft():
    blocks = Blocks(Case(30, 2, 1), 2)
    tokens, node_index = blocks.draw()
    target, root = blocks.target.clone(), blocks.draft[:, :1].clone()
    for verifier, _ in CHOICES:
        arguments = {"verifier": verifier, "seed": 5, "backend": "triton"}
        whole = verify_block(blocks.target, blocks.draft, tokens, node_index, **arguments)
        # a wider tensor, of which every second column is the vocabulary
        wide = blocks.target.repeat_interleave(2, dim=2)[:, :, ::2]
        alone = verify_block(wide, root, tokens, node_index, **arguments)
        assert torch.equal(whole.output_token_ids, alone.output_token_ids)
    assert torch.equal(blocks.target, target)


def test_an_empty_batch():
    empty = torch.zeros(0, 3, 9)
    paths = torch.zeros(0, 2, 1, dtype=torch.int64)
    index = torch.zeros(0, 2, 2, dtype=torch.int64)
    verified = verify_block(empty, empty, paths, index, seed=1, backend="triton")
    assert verified.output_token_ids.shape == (0, 2)
