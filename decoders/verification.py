"""Verification of a drafted block: the verifiers by name, and the door for engines that run their own models."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor

from warpdraft.kernels.noise import Noise

from .abstract_verifiers import DraftBlock, Drafts, NodeVerifier, VerifiedBlock, Verifier
from .backend import KERNEL_DTYPES, Backend, takes_triton
from .logits_block import LogitsBlock
from .rules import Rule
from .truncation import check_rules

__all__ = [
    "DEFAULT_VERIFIER",
    "VERIFIERS",
    "DraftBlock",
    "Drafts",
    "NodeVerifier",
    "Selector",
    "VerifiedBlock",
    "Verifier",
    "get_verifier",
    "verify_block",
    "why_not_verification",
]

# name -> module and class: adding a verifier is one file and one line here
VERIFIERS: dict[str, tuple[str, str]] = {
    "k_seq": ("warpdraft.verifiers.k_seq", "KSeq"),
    "recursive": ("warpdraft.verifiers.recursive", "Recursive"),
    "recursive_without_replacement": (
        "warpdraft.verifiers.recursive_without_replacement",
        "RecursiveWithoutReplacement",
    ),
    "greedy_drafts": ("warpdraft.verifiers.greedy_drafts", "GreedyDrafts"),
    "target_only": ("warpdraft.verifiers.target_only", "TargetOnly"),
    "traversal": ("warpdraft.verifiers.traversal", "Traversal"),
    "block": ("warpdraft.verifiers.block", "Block"),
    "optimal": ("warpdraft.verifiers.optimal", "Optimal"),
    "optimal_block": ("warpdraft.verifiers.optimal_block", "OptimalBlock"),
}


# what the kernels walk by, and the paths of a block that a program keeps in registers
KERNEL_VERIFIERS = ("k_seq", "optimal", "optimal_block")
KERNEL_PATHS = 64

DEFAULT_VERIFIER = "optimal_block"
"""Above SpecTr's `k_seq` by 7 to 18 % of block efficiency with 2 and 4 paths of 4 and 8 tokens (Gemma 3 270M, the draft
without one of its layers, temperature 0.7 and 1), and above every other verifier of i.i.d. drafts or level with it."""

Selector = Literal["clip", "lex"]


def get_verifier(verifier: str | Verifier, **options: Any) -> Verifier:
    """The verifier of that name, or the one that is given.

    Args:
        verifier: a name in `VERIFIERS`, or a verifier.
        options: of the verifier's class; None for its own default.

    Returns:
        a new verifier, or the given one.

    Raises:
        ValueError: an unknown name, which lists those there are; an option that the verifier does not have, or one
            outside its range.
        TypeError: an option of another type.
    """
    chosen = {name: value for name, value in options.items() if value is not None}
    if isinstance(verifier, Verifier):
        if chosen:
            raise ValueError(
                f"give {', '.join(chosen)} to {type(verifier).__name__}(...) itself: "
                "they are options of verifiers that are given by name"
            )
        return verifier
    if not isinstance(verifier, str) or verifier not in VERIFIERS:
        raise ValueError(f"verifier must be one of {sorted(VERIFIERS)}, got {verifier!r}")
    module, class_name = VERIFIERS[verifier]
    made = getattr(import_module(module), class_name)
    unknown = chosen.keys() - inspect.signature(made).parameters.keys()
    if unknown:
        known = ", ".join(inspect.signature(made).parameters) or "none"
        raise ValueError(
            f'verifier "{verifier}" has no {", ".join(sorted(unknown))}; its options: {known}'
        )
    instance = made(**chosen)
    assert isinstance(instance, Verifier)
    return instance


def verify_block(
    target_logits: Tensor,
    draft_logits: Tensor,
    draft_token_ids: Tensor,
    node_index: Tensor,
    *,
    drawn: Tensor | None = None,
    verifier: str | Verifier = DEFAULT_VERIFIER,
    rules: Rule | Sequence[Rule] = (),
    temperature: float | Tensor = 1.0,
    seed: int | Tensor | None = None,
    sequence: Tensor | None = None,
    step: int | Tensor = 0,
    generator: torch.Generator | None = None,
    backend: Backend = "auto",
) -> VerifiedBlock:
    """Verify a drafted block from logits: the door for engines that run their own models.

    Args:
        target_logits: `[batch, nodes, vocab]` float, the target's logits at every node of the draft paths.
        draft_logits: `[batch, nodes, vocab]` float, the draft's; rows of leaf nodes are not read.
        draft_token_ids: `[batch, K, L]` int64, drawn from the draft's law under the same rules and temperature; -1 only
            where `drawn` is False.
        node_index: `[batch, K, L + 1]` int64, the node after the first i tokens of path k.
        drawn: `[batch, K, L]` bool, False where a path only repeats the tokens of the one that it branches off, or has
            ended (then its tokens are -1); None where every token of every path is a draw of its own.
        verifier: a name in `warpdraft.verification.VERIFIERS`, or a verifier.
        rules: truncation rules, applied in order to both models' laws.
        temperature: float or `[batch]`, of both laws; 0 is greedy. A rule's parameter may be `[batch]` too.
        seed: int, `[batch]` int64, or None: one number of torch's default generator.
        sequence: `[batch]` int64 names of the rows, by default their numbers.
        step: int or `[batch]` int64: counts a sequence's target calls; must never repeat.
        generator: takes the seed's place.
        backend: "torch" walks in plain torch, which synchronises once a depth; "triton" runs the kernels for "k_seq",
            "optimal" and "optimal_block", which no chip has run yet, on a GPU or in Triton's interpreter; "auto" the
            kernels for calls on a GPU that they can run. Their selection is planned on 32 ratios, so another candidate
            may be taken than in plain torch, and a recovered token ends the walk; the emitted law is the same.

    Returns:
        the emitted tokens of every row and what was accepted, on the device of `draft_token_ids`; a row whose logits
        have no law gets a status and no tokens.

    Raises:
        ValueError: shapes, verifier, parameters, a backend that cannot run the call, or (on the CPU) token ids and
            nodes out of range.
        TypeError: something else than a tensor, dtypes, or a rule that is none.
    """
    if torch.compiler.is_compiling():
        # registers the operators, so only when one is compiled
        from .library import verify_block_in_graph

        return verify_block_in_graph(
            target_logits,
            draft_logits,
            draft_token_ids,
            node_index,
            drawn=drawn,
            verifier=verifier,
            rules=check_rules(rules),
            temperature=temperature,
            seed=seed,
            sequence=sequence,
            step=step,
            generator=generator,
            backend=backend,
        )
    rule = get_verifier(verifier)
    block = LogitsBlock(
        target_logits, draft_logits, draft_token_ids, node_index, rules, temperature, drawn
    )
    noise = Noise.create(
        len(draft_token_ids),
        seed=seed,
        sequence=sequence,
        step=step,
        generator=generator,
        device=draft_token_ids.device,
    )
    refusal = why_not_verification(rule, draft_logits, draft_token_ids)
    if takes_triton(backend, target_logits, block.rules, refusal=refusal):
        return block.verify_triton(rule, noise)
    return rule.verify(block, noise)


def why_not_verification(
    verifier: Verifier, draft_logits: Tensor, draft_token_ids: Tensor
) -> str | None:
    """Why the kernels cannot run `verify_block`, whatever the target's logits are; None if they can."""
    name, num_paths = verifier.name, draft_token_ids.shape[1]
    if name not in KERNEL_VERIFIERS or type(verifier) is not type(get_verifier(name)):
        return f'"{name}" is none of their verifiers, {", ".join(KERNEL_VERIFIERS)}'
    options = {"num_bins": getattr(get_verifier(name), "num_bins", None), "most_top": 0}
    for option, value in options.items():
        if getattr(verifier, option, value) != value:
            return f'they take "{name}" with {option}={value}, got {getattr(verifier, option)}'
    if draft_logits.dtype not in KERNEL_DTYPES:
        return f"the draft's logits are {draft_logits.dtype}, the kernels take float32, bfloat16 and float16"
    if num_paths > KERNEL_PATHS:
        return f"there are {num_paths} draft paths, the kernels take {KERNEL_PATHS}"
    return None
