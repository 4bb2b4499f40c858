"""The rows and blocks that are timed: calibrated, the same in every batch, and recorded ones."""

from __future__ import annotations

import pytest
import torch

from warpdraft import TopH
from warpdraft.bench import recorded_rows
from warpdraft.bench.rows import GENERATORS, llm, rows_hash
from warpdraft.bench.throughput.inputs import DISTINCT_ROWS, Block, make_inputs
from warpdraft.bench.throughput.kernels import KERNELS, Cell
from warpdraft.bench.throughput.reference import kept_counts

CPU = torch.device("cpu")


def cell_of(name, vocab=500, batch=3, rows=None):
    kernel = KERNELS[name]
    return Cell(kernel, rows or kernel.rows, vocab, batch, "float32")


# the vocabularies of the published tables
@pytest.mark.parametrize("vocab", [128_256, 262_144])
def test_rows_are_calibrated(vocab):
    confident = kept_counts(GENERATORS["llm"](12, vocab), (TopH(0.4),), 1.0)
    assert 3 <= float(confident.least.double().median()) <= 6
    hot = kept_counts(GENERATORS["flat"](4, vocab), (TopH(0.4),), 2.0)
    assert int(hot.least.min()) >= 2000


def test_rows_do_not_depend_on_the_batch():
    small, large = (make_inputs(cell_of("top-h", batch=batch), CPU) for batch in (2, 150))
    assert torch.equal(small.logits, large.logits[:2])
    assert small.digest == large.digest == rows_hash(llm(DISTINCT_ROWS, 500))
    again = large.logits[DISTINCT_ROWS : 2 * DISTINCT_ROWS]
    assert not torch.equal(again, large.logits[:DISTINCT_ROWS])
    assert torch.equal(again.sort().values, large.logits[:DISTINCT_ROWS].sort().values)


def test_compact_rows_keep_what_matters():
    rows = llm(3, 20_000, seed=5)
    rebuilt = recorded_rows.rebuild(recorded_rows.compact(rows))
    top = rows.topk(recorded_rows.TOP_TOKENS)
    assert (rebuilt.gather(1, top.indices) - top.values).abs().max() < 1e-3
    for temperature in (1.0, 2.0):
        true, made = (kept_counts(x, (TopH(0.4),), temperature) for x in (rows, rebuilt))
        assert torch.equal(true.least, made.least)
        laws = [torch.softmax(x.double() / temperature, -1) for x in (rows, rebuilt)]
        entropies = [torch.special.entr(law).sum(-1) for law in laws]
        torch.testing.assert_close(entropies[0], entropies[1], atol=2e-3, rtol=0)


def test_the_recorded_rows_are_those_of_a_model():
    rows = recorded_rows.load()
    assert rows.shape == (64, 262_144)
    assert recorded_rows.FILE.stat().st_size < 1_500_000
    kept = kept_counts(rows[:16], (TopH(0.4),), 1.0)
    assert 3 <= float(kept.least.double().median()) <= 6
    with pytest.raises(ValueError, match="262144 tokens, got --vocab 500"):
        make_inputs(cell_of("top-h", rows="recorded"), CPU)


def test_blocks_share_the_nodes_of_equal_prefixes():
    block = make_inputs(cell_of("k-seq", vocab=40, batch=4), CPU)
    assert isinstance(block, Block)
    paths = block.draft_token_ids
    for row in range(4):
        for depth in range(1, 9):
            nodes = {}
            for path in range(8):
                text = tuple(paths[row, path, :depth].tolist())
                nodes.setdefault(text, set()).add(int(block.node_index[row, path, depth]))
            assert all(len(found) == 1 for found in nodes.values())
            assert len(set.union(*nodes.values())) == len(nodes)
