"""Arguments for the operators of torch, which plain torch and the kernels are checked with."""

from __future__ import annotations

from typing import Any

import torch

import warpdraft.library  # noqa: F401  (registers the operators)
from warpdraft import DynamicTemperature, HapoTemperature, MinP, TopH, TopK, rule_codes

CHAIN = (TopK(30), TopH(0.6), MinP(0.05))


def arguments_of(name: str, backend: str) -> list[tuple[Any, ...]]:
    """Calls of one operator: numbers and tensors as parameters, with all options and with none."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 40, generator=generator)
    words = torch.full((3, 2), -1, dtype=torch.int32)
    rows, numbers = torch.tensor([2, 0]), torch.arange(3)
    plain = rule_codes.encode(CHAIN, 1.0)
    mixed = rule_codes.encode((TopH(torch.tensor([0.2, 0.5, 0.9])), MinP(0.1)), torch.tensor(0.8))
    heat = HapoTemperature(torch.tensor([-1.0, 0.0, 1.0]), 1.0, 1.0, 0.5, strength=0.3)
    heated = rule_codes.encode((TopK(30), DynamicTemperature(0.5, 1.5), MinP(0.1), heat), 1.3)
    narrow = rule_codes.encode((TopH(torch.tensor([0.2, 0.9])),), 1.0)
    seed, step = torch.tensor(7), torch.tensor(3)
    if name == "truncate":
        return [
            (logits, *plain, None, None, backend),
            (logits, *heated, None, None, backend),
            (logits, *mixed, words, None, backend),
            (logits.t().contiguous().t(), *narrow, None, rows, backend),
        ]
    if name == "truncate_out":
        return [
            (logits, *mixed, None, None, backend, torch.zeros(3, 40)),
            (logits, *narrow, words[:2], rows, backend, torch.zeros(3, 64)[:, :40]),
        ]
    if name == "sample":
        return [
            (logits, *plain, seed, None, step, False, None, backend),
            (logits, *heated, seed, None, step, True, None, backend),
            (logits, *mixed, numbers, numbers, numbers, True, words, backend),
        ]
    paths = torch.randint(40, (3, 2, 2), generator=generator)
    nodes = torch.tensor([[0, 1, 2], [0, 3, 4]]).expand(3, 2, 3)
    trees = [torch.randn(3, 5, 40, generator=generator) for _ in range(2)]
    return [
        (*trees, paths, nodes, None, verifier, *plain, seed, numbers, step, backend)
        for verifier in ("k_seq", "optimal_block")
    ]


def check_operator(name: str, backend: str, *, quick: bool = False) -> None:
    """Schema, fake tensors, autograd and AOT dispatch of an operator, by torch's own checks.

    Args:
        name: of the operator.
        backend: what runs its calls.
        quick: only the last call, which has every option, of verification its fake tensors.
    """
    operator = getattr(torch.ops.warpdraft, name).default
    calls = arguments_of(name, backend)
    checks = ["test_faketensor"]
    if not (quick and name == "verify_block"):
        checks += ["test_schema", "test_autograd_registration", "test_aot_dispatch_dynamic"]
    for arguments in calls[-1:] if quick else calls:
        torch.library.opcheck(operator, arguments, test_utils=checks)
