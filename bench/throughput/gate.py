"""The correctness gate: every row that is timed, against a float64 sort-and-scan, before it is timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import warpdraft
from warpdraft.backend import Backend
from warpdraft.kernels._triton import interpreted
from warpdraft.rules import Rule
from warpdraft.sampling import Sampled
from warpdraft.verification import VerifiedBlock

from .inputs import Block, Inputs, Rows
from .kernels import Kernel
from .reference import BAND, Kept, kept_counts

if TYPE_CHECKING:
    from warpdraft.bench.baselines.provider import Call

LOGPROB_ERROR = 1e-3
"""Nats between float32 and float64 sums over a row, and the share of a kept mass."""

COMPARED_STEPS = 8
"""Blocks a text whose accepted tokens are counted against the plain-torch verifier's."""

COMPARED_ROWS = 8
"""Texts of that comparison: the plain-torch verifier walks them one by one."""

STANDARD_ERRORS = 5.0
"""Of the mean difference: sound code fails at a rate below 1e-6 a cell."""


class GateFailure(Exception):
    """A provider that does not compute what it is timed for."""


def check(kernel: Kernel, call: Call, inputs: Inputs) -> None:
    """Run the call once on a copy of the inputs and look at every row of what it returns.

    Raises:
        GateFailure: a row is wrong; says which and why.
    """
    found = call.run(inputs.copy())
    if isinstance(inputs, Block):
        _require(isinstance(found, VerifiedBlock), "returns no verified block")
        assert isinstance(found, VerifiedBlock)
        check_block(kernel, inputs, found)
        # in Triton's interpreter a block takes minutes
        if call.canonical and not interpreted():
            check_acceptance(kernel, inputs)
        return
    kept = kept_counts(inputs.logits, call.rules, kernel.temperature, band=call.band)
    if kernel.output == "logits":
        assert isinstance(found, Tensor), found
        check_masked(inputs.logits, found, kept, any_ties=call.any_ties)
        return
    if isinstance(found, Sampled):
        check_canonical(inputs, found, kept, call.rules, kernel.temperature)
        found = found.token_ids
    assert isinstance(found, Tensor), found
    check_tokens(inputs.logits, found.long(), kept)


def check_masked(logits: Tensor, masked: Tensor, kept: Kept, *, any_ties: bool) -> None:
    """Masked rows hold the logits of a right prefix and -inf elsewhere.

    Args:
        logits: `[rows, vocab]`.
        masked: `[rows, vocab]`, of any float type.
        kept: the right prefixes.
        any_ties: accept any tokens of the last group of equal logits.
    """
    _require(masked.shape == logits.shape, f"returns {list(masked.shape)}")
    inside = masked > -torch.inf
    same = masked.to(logits.dtype) == logits
    _all_rows((same | ~inside).all(1), "a kept logit has another value")
    count = inside.sum(1)
    least, most = kept.least, kept.most
    if any_ties:
        least, most = _tie_groups(logits, kept)
    _all_rows((count >= least) & (count <= most), "keeps too few or too many tokens", count)
    if any_ties:
        least_kept = torch.where(inside, logits, torch.inf).amin(1)
        most_dropped = torch.where(inside, -torch.inf, logits).amax(1)
        right = least_kept >= most_dropped
    else:
        right = (inside.gather(1, kept.token_ids) == kept.prefix(count)).all(1)
    _all_rows(right, "keeps other tokens than the most likely ones", count)


def check_tokens(logits: Tensor, token_ids: Tensor, kept: Kept) -> None:
    """Every token lies in the longest right support of its row, ties with the last one included.

    Args:
        logits: `[rows, vocab]`.
        token_ids: int64 `[rows]`.
        kept: the right prefixes.
    """
    _require(token_ids.shape == kept.most.shape, f"returns {list(token_ids.shape)}")
    inside = (token_ids >= 0) & (token_ids < logits.shape[1])
    _all_rows(inside, "draws no token", token_ids)
    last = kept.token_ids.gather(1, kept.most[:, None] - 1)
    right = logits.gather(1, token_ids[:, None]) >= logits.gather(1, last)
    _all_rows(right[:, 0], "draws a token outside the support", token_ids)


def check_canonical(
    inputs: Rows, found: Sampled, kept: Kept, rules: Sequence[Rule], temperature: float
) -> None:
    """The library's draws are those of its plain-torch form in float64, on rows whose support is certain.

    Where a support is known up to the band only, the token need only lie in it.
    """
    from warpdraft.bench.baselines.library import SEED

    _all_rows(found.status == 0, "has a status other than 0")
    certain = kept.least == kept.most
    right = warpdraft.sample(
        inputs.logits.double(), rules, temperature=temperature, seed=SEED, backend="torch"
    )
    same = found.token_ids == right.token_ids
    _all_rows(same | ~certain, "draws another token than the float64 form", found.token_ids)
    logprob = (found.logprobs - right.logprobs).abs() <= LOGPROB_ERROR
    _all_rows(logprob | ~certain, "has another log-probability", found.logprobs)
    mass = (found.kept_mass - right.kept_mass).abs() <= LOGPROB_ERROR
    _all_rows(mass | ~certain, "has another kept mass", found.kept_mass)


def check_block(kernel: Kernel, block: Block, found: VerifiedBlock) -> None:
    """What holds for every verified block, whatever its random numbers."""
    batch, _, length = block.draft_token_ids.shape
    _require(found.output_token_ids.shape == (batch, length + 1), "returns another shape")
    _all_rows(found.status == 0, "has a status other than 0")
    accepted, path = found.num_accepted, found.survivor_path
    _all_rows((accepted >= 0) & (accepted <= length), "accepts an impossible number", accepted)
    rows = torch.arange(batch, device=path.device)
    output = found.output_token_ids
    drafted = block.draft_token_ids[rows, path]
    ranks = torch.arange(length + 1, device=path.device)
    along = (drafted == output[:, :-1]) | (ranks[:-1] >= accepted[:, None])
    _all_rows(along.all(1), "emits tokens that its path does not hold")
    rest = (output == -1) == (ranks > accepted[:, None])
    _all_rows(rest.all(1), "emits another number of tokens than it accepts and one")
    node = block.node_index[rows, path, accepted]
    law = block.target_logits[rows, node]
    kept = kept_counts(law, kernel.rules, kernel.temperature)
    check_tokens(law, output[rows, accepted], kept)


def check_acceptance(kernel: Kernel, block: Block) -> None:
    """About as many tokens accepted as by the plain-torch verifier, in the mean over several steps and texts.

    The two need not agree block by block, since the kernels plan their selection on a grid of ratios; this finds a
    verifier that accepts too much or too little, its exact law is the subject of the tests.
    """
    from warpdraft.bench.baselines.library import backend_of

    texts = slice(0, COMPARED_ROWS)
    backends: tuple[Backend, Backend] = (backend_of(block.target_logits), "torch")
    differences = []
    for step in range(1, COMPARED_STEPS + 1):
        counts = [
            warpdraft.verify_block(
                block.target_logits[texts],
                block.draft_logits[texts],
                block.draft_token_ids[texts],
                block.node_index[texts],
                verifier=kernel.verifier,
                rules=kernel.rules,
                temperature=kernel.temperature,
                seed=step,
                backend=backend,
            ).num_accepted
            for backend in backends
        ]
        differences.append((counts[0] - counts[1]).double())
    difference = torch.cat(differences)
    error = float(difference.std() / len(difference) ** 0.5) if len(difference) > 1 else 0.0
    mean = float(difference.mean())
    if abs(mean) > STANDARD_ERRORS * error + BAND:
        raise GateFailure(
            f"accepts {mean:+.2f} tokens a block beside the plain-torch verifier, {error:.2f} expected"
        )


def _tie_groups(logits: Tensor, kept: Kept) -> tuple[Tensor, Tensor]:
    """The least and the most tokens with the whole last group of ties left out, or in."""
    last_of_least = logits.gather(1, kept.token_ids.gather(1, kept.least[:, None] - 1))
    last_of_most = logits.gather(1, kept.token_ids.gather(1, kept.most[:, None] - 1))
    least = (logits > last_of_least).sum(1).clamp(min=1)
    return least, (logits >= last_of_most).sum(1)


def _all_rows(right: Tensor, wrong: str, values: Tensor | None = None) -> None:
    if not bool(right.all()):
        row = int((~right).to(torch.int8).argmax())
        value = "" if values is None else f" ({values[row].item():g})"
        number = int((~right).sum())
        raise GateFailure(f"row {row} {wrong}{value}; {number} of {len(right)} rows")


def _require(holds: bool, wrong: str) -> None:
    if not holds:
        raise GateFailure(wrong)
