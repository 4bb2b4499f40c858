"""Block verification in a fixed number of operations: the same decisions as the walk whose law is enumerated."""

import pytest
import torch
from scipy.stats import chisquare

from warpdraft.kernels.block_verification import _recovered, verify_path
from warpdraft.kernels.noise import Noise
from warpdraft.laws import Law
from warpdraft.verifiers.block import Block

ROWS = 4000
# false-alarm rate of each chi-square
ALARM = 1e-6


class GivenLaws:
    """A draft block of known laws."""

    def __init__(self, target, draft, token_ids):
        self.draft_token_ids = token_ids[:, None]
        self.drawn = torch.ones_like(self.draft_token_ids, dtype=torch.bool)
        self.status = torch.zeros(len(token_ids), dtype=torch.int8)
        self._target, self._draft = target, draft

    def target(self, rows, path, depth):
        return Law.of_probs(self._target[rows, depth])

    def draft(self, rows, path, depth):
        return Law.of_probs(self._draft[rows, depth])


def random_block(vocab, length, seed, *, zeros):
    """Laws and a path, some of whose tokens the target never emits."""
    generator = torch.Generator().manual_seed(seed)
    laws = torch.rand(2, ROWS, length + 1, vocab, generator=generator, dtype=torch.float64)
    if zeros:
        laws *= torch.rand(laws.shape, generator=generator) < 0.7
        laws[..., 0] += 0.1
    laws /= laws.sum(-1, keepdim=True)
    target, draft = laws[0], laws[1, :, :length]
    paths = torch.multinomial(draft.flatten(0, 1), 1, generator=generator).view(ROWS, length)
    return target, draft, paths


@pytest.mark.parametrize("zeros", [False, True], ids=["dense", "zeros"])
@pytest.mark.parametrize(("vocab", "length"), [(2, 1), (3, 4), (40, 3), (1500, 2)])
def test_the_same_tokens_as_the_walk(vocab, length, zeros):
    target, draft, paths = random_block(vocab, length, vocab + length, zeros=zeros)
    noise = Noise.create(ROWS, seed=3, device="cpu")
    output, accepted = verify_path(target, draft, paths, noise)
    walked = Block().verify(GivenLaws(target, draft, paths), noise)
    assert torch.equal(accepted, walked.num_accepted)
    assert torch.equal(output, walked.output_token_ids)
    assert len(accepted.unique()) == length + 1, "not every outcome was seen"


def test_a_path_of_the_targets_own_law_is_accepted_whole():
    target, _, _ = random_block(20, 3, 0, zeros=True)
    draft = target[:, :3].contiguous()
    paths = torch.multinomial(draft.flatten(0, 1), 1).view(ROWS, 3)
    _, accepted = verify_path(target, draft, paths, Noise.create(ROWS, seed=1, device="cpu"))
    assert bool((accepted == 3).all())


def test_the_first_token_has_the_targets_law():
    target, draft, _ = random_block(6, 2, 5, zeros=False)
    target, draft = target[:1].expand(40_000, -1, -1), draft[:1].expand(40_000, -1, -1)
    paths = torch.multinomial(draft.flatten(0, 1), 1).view(-1, 2)
    output, _ = verify_path(target, draft, paths, Noise.create(40_000, seed=2, device="cpu"))
    counts = output[:, 0].bincount(minlength=6).numpy()
    assert chisquare(counts, target[0, 0].numpy() * 40_000).pvalue > ALARM


def test_a_row_alone_is_verified_as_in_its_batch():
    # fewer rows than depths
    target, draft, paths = random_block(5, 4, 9, zeros=False)
    noise = Noise.create(ROWS, seed=6, device="cpu")
    output, accepted = verify_path(target, draft, paths, noise)
    for row in range(20):
        one = torch.tensor([row])
        alone = verify_path(target[one], draft[one], paths[one], noise.select(one))
        assert torch.equal(alone[0], output[one])
        assert torch.equal(alone[1], accepted[one])


def test_where_rounding_leaves_no_residual_the_target_is_drawn_from():
    target = torch.tensor([[[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]], dtype=torch.float64)
    nothing = torch.zeros(1, 1, 3, dtype=torch.float64)
    noise = Noise.create(1, seed=0, device="cpu")
    total, stop = nothing.sum(2), torch.tensor([0])
    assert _recovered(nothing, total, target, stop, noise).tolist() == [1]
