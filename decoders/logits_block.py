"""A draft block given as logits over nodes, as engines have it: checked at the door, its laws made on demand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from warpdraft.kernels.noise import MAX_DEPTH, MAX_PATH, Noise

from .abstract_verifiers import VerifiedBlock, Verifier
from .arguments import TEMPERATURES, validity
from .backend import operations_of
from .checks import check_tensor
from .laws import Law, law_of
from .parameters import check_parameter
from .rules import Rule
from .temperature_rules import change_temperature
from .truncation import check_logits_dtype, check_rules


class LogitsBlock:
    """A draft block given as logits over nodes: the laws are made when a verifier asks for them.

    Args:
        target_logits: as in `verify_block`, like everything that follows.
        draft_logits: see there.
        draft_token_ids: see there.
        node_index: see there.
        rules: see there.
        temperature: see there.
        drawn: see there.

    Raises:
        ValueError: shapes, devices, parameters or (on the CPU) numbers that do not fit.
        TypeError: something else than a tensor, dtypes, or a rule that is none.
    """

    def __init__(
        self,
        target_logits: Tensor,
        draft_logits: Tensor,
        draft_token_ids: Tensor,
        node_index: Tensor,
        rules: Rule | Sequence[Rule],
        temperature: float | Tensor,
        drawn: Tensor | None = None,
    ) -> None:
        _check_shapes(target_logits, draft_logits, draft_token_ids, node_index)
        if drawn is None:
            drawn = torch.ones_like(draft_token_ids, dtype=torch.bool)
        else:
            _check_drawn(drawn, draft_token_ids)
        # -1 stands behind the end of a path
        inside = torch.where(drawn, draft_token_ids, draft_token_ids.clamp_min(0))
        _check_numbers("draft_token_ids", inside, target_logits.shape[2])
        _check_numbers("node_index", node_index, target_logits.shape[1])
        _check_numbers("node_index of inner nodes", node_index[:, :, :-1], draft_logits.shape[1])
        listed = check_rules(rules)
        check_parameter("temperature", temperature, TEMPERATURES)
        for name, value in (
            ("temperature", temperature),
            *((name, value) for rule in listed for name, value, *_ in rule.parameters),
        ):
            if isinstance(value, Tensor) and value.shape not in ((), (len(draft_token_ids),)):
                raise ValueError(
                    f"{name} must be a number or [{len(draft_token_ids)}], got {list(value.shape)}"
                )
        self.draft_token_ids = draft_token_ids
        self.drawn = drawn
        self.status = torch.zeros(len(draft_token_ids), dtype=torch.int8, device=node_index.device)
        self._target_logits = target_logits
        self._draft_logits = draft_logits
        self._node_index = node_index
        self.rules = listed
        self._temperature = temperature

    def verify_triton(self, verifier: Verifier, noise: Noise) -> VerifiedBlock:
        """Walk the block by the kernels."""
        # imports Triton, so only when a kernel is launched
        from warpdraft.kernels.verification_triton import verify_block_triton

        batch, device = len(self.draft_token_ids), self.draft_token_ids.device
        target, draft, rules = self._target_logits, self._draft_logits, self.rules
        if change_temperature(rules):
            from .heated_rules import nodes_heated

            target, draft = (
                nodes_heated(logits, rules, self._temperature) for logits in (target, draft)
            )
            rules = ()
        verified = verify_block_triton(
            target.detach(),
            draft.detach(),
            self.draft_token_ids,
            self._node_index,
            self.drawn,
            operations_of(rules),
            self._temperature,
            noise,
            verifier.name,
            lex=getattr(verifier, "selector", "clip") == "lex",
            valid=validity(self.rules, self._temperature, batch, device),
        )
        return VerifiedBlock(
            verified.output_token_ids,
            verified.num_accepted,
            verified.survivor_path,
            verified.status,
        )

    def target(self, rows: Tensor, path: Tensor, depth: int) -> Law:
        """Target law at the rows' nodes."""
        return self._law(self._target_logits, rows, path, depth)

    def draft(self, rows: Tensor, path: Tensor, depth: int) -> Law:
        """Draft law at the rows' nodes."""
        return self._law(self._draft_logits, rows, path, depth)

    def _law(self, logits: Tensor, rows: Tensor, path: Tensor, depth: int) -> Law:
        temperature = self._temperature
        if isinstance(temperature, Tensor) and temperature.ndim == 1:
            temperature = temperature[rows]
        rules = [_of_rows(rule, rows) for rule in self.rules]
        law = law_of(logits[rows, self._node_index[rows, path, depth]], rules, temperature)
        self.status[rows] = torch.where(law.status != 0, law.status, self.status[rows])
        return law


def _check_shapes(
    target_logits: Tensor, draft_logits: Tensor, draft_token_ids: Tensor, node_index: Tensor
) -> None:
    for name, logits in (("target_logits", target_logits), ("draft_logits", draft_logits)):
        check_logits_dtype(name, logits)
    for name, tensor in (("draft_token_ids", draft_token_ids), ("node_index", node_index)):
        check_tensor(name, tensor)
        if tensor.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {tensor.dtype}")
    if draft_token_ids.ndim != 3:
        raise ValueError(
            f"draft_token_ids must be [batch, K, L], got shape {tuple(draft_token_ids.shape)}"
        )
    batch, num_drafts, length = draft_token_ids.shape
    if not 1 <= num_drafts <= MAX_PATH + 1 or length > MAX_DEPTH:
        raise ValueError(
            f"draft_token_ids must hold 1 to {MAX_PATH + 1} paths of at most {MAX_DEPTH} tokens, "
            f"got K = {num_drafts}, L = {length}"
        )
    if node_index.shape != (batch, num_drafts, length + 1):
        raise ValueError(
            f"node_index must be [batch, K, L + 1] = {(batch, num_drafts, length + 1)}, "
            f"got shape {tuple(node_index.shape)}"
        )
    for name, logits in (("target_logits", target_logits), ("draft_logits", draft_logits)):
        if logits.ndim != 3 or logits.shape[0] != batch:
            raise ValueError(
                f"{name} must be [batch, nodes, vocab] with batch {batch}, "
                f"got shape {tuple(logits.shape)}"
            )
    if 0 in target_logits.shape[1:]:
        raise ValueError(
            "target_logits have no nodes or an empty vocabulary: they must be [batch, nodes, vocab] "
            f"with nodes and vocab >= 1, got shape {tuple(target_logits.shape)}"
        )
    if target_logits.shape[2] != draft_logits.shape[2]:
        raise ValueError(
            f"target_logits and draft_logits must have one vocabulary width, "
            f"got {target_logits.shape[2]} and {draft_logits.shape[2]}"
        )
    for name, tensor in (("draft_logits", draft_logits), ("node_index", node_index)):
        _check_same_device(name, tensor, draft_token_ids)
    _check_same_device("target_logits", target_logits, draft_token_ids)


def _check_drawn(drawn: Tensor, draft_token_ids: Tensor) -> None:
    check_tensor("drawn", drawn)
    if drawn.dtype != torch.bool or drawn.shape != draft_token_ids.shape:
        raise ValueError(
            f"drawn must be bool {list(draft_token_ids.shape)}, "
            f"got {drawn.dtype} {list(drawn.shape)}"
        )
    _check_same_device("drawn", drawn, draft_token_ids)


def _check_same_device(name: str, tensor: Tensor, draft_token_ids: Tensor) -> None:
    if tensor.device != draft_token_ids.device:
        raise ValueError(
            f"{name} must be on the device of draft_token_ids, {draft_token_ids.device}, "
            f"got {tensor.device}"
        )


def _check_numbers(name: str, numbers: Tensor, size: int) -> None:
    """ValueError for token ids or nodes outside [0, size); other devices than the CPU are not waited for."""
    if numbers.device.type != "cpu" or numbers.numel() == 0:
        return
    least, most = (int(bound) for bound in numbers.aminmax())
    if least < 0 or most >= size:
        raise ValueError(f"{name} must be in [0, {size - 1}], got {least} to {most}")


def _of_rows(rule: Rule, rows: Tensor) -> Rule:
    """The rule for these rows of the batch."""
    if not rule.has_tensors:
        return rule
    return rule.with_parameters(
        [
            value[rows] if isinstance(value, Tensor) and value.ndim else value
            for _, value, *_ in rule.parameters
        ]
    )
