"""The calls as operators of torch: `torch.ops.warpdraft.*`, for `torch.compile` and for engines.

Importing this module registers them. Compiled code does so by itself: inside `torch.compile` the
public functions go through the operators, elsewhere they call their kernels directly.

Rules and temperature are the lists of decoders/rule_codes.py; seed, sequence and step are int64
tensors, `[]` or `[batch]`. Everything else is as in the public functions, and so are the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from warpdraft.kernels.noise import MAX_SEQUENCE, MAX_STEP

from .abstract_verifiers import VerifiedBlock
from .checks import LARGEST, check_integer
from .rule_codes import decode, encode
from .rules import Parameter, Rule
from .sampling import Sampled, sample
from .truncation import truncate
from .verification import VERIFIERS, verify_block


def truncate_in_graph(
    logits: Tensor,
    rules: Sequence[Rule],
    *,
    temperature: Parameter,
    token_bitmask: Tensor | None,
    row_indices: Tensor | None,
    out: Tensor | None,
    backend: str,
) -> Tensor:
    """`warpdraft.truncate` as a node of a graph, with its arguments and errors."""
    program = encode(rules, temperature)
    options = (token_bitmask, row_indices, backend)
    if out is None:
        truncated: Tensor = torch.ops.warpdraft.truncate(logits.detach(), *program, *options)
        return truncated
    torch.ops.warpdraft.truncate_out(logits.detach(), *program, *options, out)
    return out


def sample_in_graph(
    logits: Tensor,
    rules: Sequence[Rule],
    *,
    temperature: Parameter,
    seed: int | Tensor | None,
    sequence: int | Tensor | None,
    step: int | Tensor,
    generator: torch.Generator | None,
    raw: bool,
    token_bitmask: Tensor | None,
    backend: str,
) -> Sampled:
    """`warpdraft.sample` as a node of a graph.

    Raises:
        ValueError: there is a generator, which a graph does not keep.
        TypeError: seed, sequence or step is neither an int nor a tensor.
    """
    drawn = torch.ops.warpdraft.sample(
        logits.detach(),
        *encode(rules, temperature),
        *_streams(seed, sequence, step, generator, logits.device),
        raw,
        token_bitmask,
        backend,
    )
    return Sampled(*drawn)


def verify_block_in_graph(
    target_logits: Tensor,
    draft_logits: Tensor,
    draft_token_ids: Tensor,
    node_index: Tensor,
    *,
    drawn: Tensor | None,
    verifier: object,
    rules: Sequence[Rule],
    temperature: Parameter,
    seed: int | Tensor | None,
    sequence: Tensor | None,
    step: int | Tensor,
    generator: torch.Generator | None,
    backend: str,
) -> VerifiedBlock:
    """`warpdraft.verify_block` as a node of a graph.

    Raises:
        ValueError: the verifier is given as an object, or there is a generator: a graph keeps neither.
        TypeError: seed, sequence or step is neither an int nor a tensor.
    """
    if not isinstance(verifier, str):
        raise ValueError(
            f"torch.compile takes a verifier by its name, one of {sorted(VERIFIERS)}, got {verifier!r}"
        )
    block = torch.ops.warpdraft.verify_block(
        target_logits.detach(),
        draft_logits.detach(),
        draft_token_ids,
        node_index,
        drawn,
        verifier,
        *encode(rules, temperature),
        *_streams(seed, sequence, step, generator, draft_token_ids.device),
        backend,
    )
    return VerifiedBlock(*block)


def _streams(
    seed: int | Tensor | None,
    sequence: int | Tensor | None,
    step: int | Tensor,
    generator: torch.Generator | None,
    device: torch.device,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Seed, sequence and step as tensors; numbers that change from call to call stay symbols."""
    if generator is not None:
        raise ValueError("torch.compile takes no generator: pass seed")
    for name, value, low, high in (
        ("seed", seed, -LARGEST - 1, LARGEST),
        ("sequence", sequence, 0, MAX_SEQUENCE),
        ("step", step, 0, MAX_STEP),
    ):
        if value is not None and not isinstance(value, Tensor):
            check_integer(name, value, low, high)

    def tensor(value: int | Tensor) -> Tensor:
        if isinstance(value, Tensor):
            return value
        return torch.full((), value, dtype=torch.int64, device=device)

    return (
        None if seed is None else tensor(seed),
        None if sequence is None else tensor(sequence),
        tensor(step),
    )


_RULES = "int[] operations, int[] min_tokens_to_keep, float[] numbers, Tensor?[] parameters"
_ROWS = "Tensor? token_bitmask, Tensor? row_indices, str backend"
_STREAMS = "Tensor? seed, Tensor? sequence, Tensor step"


def _truncate(
    logits: Tensor,
    operations: Sequence[int],
    min_tokens_to_keep: Sequence[int],
    numbers: Sequence[float],
    parameters: Sequence[Tensor | None],
    token_bitmask: Tensor | None,
    row_indices: Tensor | None,
    backend: Any,
) -> Tensor:
    rules, temperature = decode(operations, min_tokens_to_keep, numbers, parameters)
    truncated = truncate(
        logits,
        rules,
        temperature=temperature,
        token_bitmask=token_bitmask,
        row_indices=row_indices,
        backend=backend,
    )
    return truncated.contiguous()


def _truncate_out(
    logits: Tensor,
    operations: Sequence[int],
    min_tokens_to_keep: Sequence[int],
    numbers: Sequence[float],
    parameters: Sequence[Tensor | None],
    token_bitmask: Tensor | None,
    row_indices: Tensor | None,
    backend: Any,
    out: Tensor,
) -> None:
    rules, temperature = decode(operations, min_tokens_to_keep, numbers, parameters)
    truncate(
        logits,
        rules,
        temperature=temperature,
        token_bitmask=token_bitmask,
        row_indices=row_indices,
        out=out,
        backend=backend,
    )


def _sample(
    logits: Tensor,
    operations: Sequence[int],
    min_tokens_to_keep: Sequence[int],
    numbers: Sequence[float],
    parameters: Sequence[Tensor | None],
    seed: Tensor | None,
    sequence: Tensor | None,
    step: Tensor,
    raw: bool,
    token_bitmask: Tensor | None,
    backend: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rules, temperature = decode(operations, min_tokens_to_keep, numbers, parameters)
    drawn = sample(
        logits,
        rules,
        temperature=temperature,
        seed=seed,
        sequence=sequence,
        step=step,
        logprobs_mode="raw" if raw else "processed",
        token_bitmask=token_bitmask,
        backend=backend,
    )
    return drawn.token_ids, drawn.logprobs, drawn.kept_mass, drawn.status


def _verify_block(
    target_logits: Tensor,
    draft_logits: Tensor,
    draft_token_ids: Tensor,
    node_index: Tensor,
    drawn: Tensor | None,
    verifier: str,
    operations: Sequence[int],
    min_tokens_to_keep: Sequence[int],
    numbers: Sequence[float],
    parameters: Sequence[Tensor | None],
    seed: Tensor | None,
    sequence: Tensor | None,
    step: Tensor,
    backend: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rules, temperature = decode(operations, min_tokens_to_keep, numbers, parameters)
    block = verify_block(
        target_logits,
        draft_logits,
        draft_token_ids,
        node_index,
        drawn=drawn,
        verifier=verifier,
        rules=rules,
        temperature=temperature,
        seed=seed,
        sequence=sequence,
        step=step,
        backend=backend,
    )
    return block.output_token_ids, block.num_accepted, block.survivor_path, block.status


def _fake_truncate(logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _fake_truncate_out(*_: Any) -> None:
    return None


def _fake_sample(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = logits.shape[0]
    return (
        logits.new_empty(rows, dtype=torch.int64),
        logits.new_empty(rows, dtype=torch.float32),
        logits.new_empty(rows, dtype=torch.float32),
        logits.new_empty(rows, dtype=torch.int8),
    )


def _fake_verify_block(
    target_logits: Tensor, draft_logits: Tensor, draft_token_ids: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, length = draft_token_ids.shape[0], draft_token_ids.shape[2]
    return (
        draft_token_ids.new_empty(batch, length + 1),
        draft_token_ids.new_empty(batch),
        draft_token_ids.new_empty(batch),
        draft_token_ids.new_empty(batch, dtype=torch.int8),
    )


def _define(
    name: str, arguments: str, result: str, call: Callable[..., Any], fake: Callable[..., Any]
) -> None:
    tags = [torch.Tag.pt2_compliant_tag]
    if "seed" in arguments:
        # a draw without a seed takes one from torch's generator: two nodes alike are two draws
        tags.append(torch.Tag.nondeterministic_seeded)
    _LIBRARY.define(f"{name}({arguments}) -> {result}", tags=tags)
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, call, device)
    torch.library.register_fake(f"warpdraft::{name}", fake, lib=_LIBRARY)


_LIBRARY = torch.library.Library("warpdraft", "DEF")
_define("truncate", f"Tensor logits, {_RULES}, {_ROWS}", "Tensor", _truncate, _fake_truncate)
_define(
    "truncate_out",
    f"Tensor logits, {_RULES}, {_ROWS}, Tensor(a!) out",
    "()",
    _truncate_out,
    _fake_truncate_out,
)
_define(
    "sample",
    f"Tensor logits, {_RULES}, {_STREAMS}, bool raw, Tensor? token_bitmask, str backend",
    "(Tensor token_ids, Tensor logprobs, Tensor kept_mass, Tensor status)",
    _sample,
    _fake_sample,
)
_define(
    "verify_block",
    "Tensor target_logits, Tensor draft_logits, Tensor draft_token_ids, Tensor node_index, "
    f"Tensor? drawn, str verifier, {_RULES}, {_STREAMS}, str backend",
    "(Tensor output_token_ids, Tensor num_accepted, Tensor survivor_path, Tensor status)",
    _verify_block,
    _fake_verify_block,
)
