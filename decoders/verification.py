"""Verification of one draft block: which drafted tokens are emitted, and what follows them.

The words: a *block* holds K draft paths of L tokens that continue the same text. A *node* is a prefix of a path; at
every node the target and the draft have a law. The *candidates* at a node are the next tokens of the *survivors*, the
paths that agree with everything accepted so far. A verifier emits the accepted tokens and one more: the *recovered*
token where the candidates were rejected, or the *bonus* token where a whole path was accepted.

A verifier is lossless: the emitted text, continued by plain sampling, has exactly the law of plain sampling from the
target, whatever the draft's law is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from warpdraft.kernels.draw import draw
from warpdraft.kernels.noise import MAX_DEPTH, MAX_PATH, Noise, Role

from .backend import Backend, check_backend
from .laws import law_of
from .rules import Rule
from .truncation import check_rules

# name -> module and class: adding a verifier is one file and one line here
VERIFIERS: dict[str, tuple[str, str]] = {
    "k_seq": ("warpdraft.verifiers.k_seq", "KSeq"),
    "block": ("warpdraft.verifiers.block", "Block"),
    "optimal": ("warpdraft.verifiers.optimal", "Optimal"),
    "optimal_block": ("warpdraft.verifiers.optimal_block", "OptimalBlock"),
}


@dataclass(frozen=True, slots=True)
class VerifiedBlock:
    """What one draft block yields.

    Attributes:
        output_token_ids: `[batch, L + 1]` int64, the accepted tokens, then the recovered or bonus token, then -1.
        num_accepted: `[batch]` int64 in [0, L].
        survivor_path: `[batch]` int64, a path that agrees with all accepted tokens.
        status: `[batch]` int8, 0 for a sound row (the codes are those of `warpdraft.sample`).
    """

    output_token_ids: Tensor
    num_accepted: Tensor
    survivor_path: Tensor
    status: Tensor


class DraftBlock(Protocol):
    """The laws of one draft block, fetched row by row as a verifier reaches their nodes.

    Attributes:
        draft_token_ids: `[batch, K, L]` int64.
        status: `[batch]` int8, set by `target` and `draft` where a row has no law; such a law is all zeros.
    """

    draft_token_ids: Tensor
    status: Tensor

    def target(self, rows: Tensor, path: Tensor, depth: int) -> Tensor:
        """Target law `[len(rows), vocab]` after the first `depth` tokens of each row's path."""

    def draft(self, rows: Tensor, path: Tensor, depth: int) -> Tensor:
        """Draft law `[len(rows), vocab]` at the same nodes: the law that the next tokens were drawn from."""


class Verifier(ABC):
    """A lossless verification rule with a closed law."""

    name: ClassVar[str]
    drafts: ClassVar[Literal["iid"]] = "iid"

    @abstractmethod
    def verify(self, block: DraftBlock, noise: Noise) -> VerifiedBlock:
        """Walk the block; `noise` holds one stream per row of the batch, at the block's step."""


class NodeVerifier(Verifier):
    """Token-level verification: every node is settled before the next one is looked at."""

    @abstractmethod
    def select(
        self,
        target_probs: Tensor,
        draft_probs: Tensor,
        candidates: Tensor,
        alive: Tensor,
        noise: Noise,
        depth: int,
    ) -> Tensor:
        """Emit one token a row from the target's law, as often as possible one of the candidates.

        Args:
            target_probs: `[rows, vocab]`.
            draft_probs: `[rows, vocab]`, the law that the candidates were drawn from, i.i.d.
            candidates: `[rows, K]` int64, the next token of every path.
            alive: `[rows, K]` bool, the survivors; at least one a row.
            noise: one stream a row.
            depth: of the node, 0 at the root.

        Returns:
            `[rows]` int64 token ids.
        """

    @abstractmethod
    def law(self, target_probs: Tensor, draft_probs: Tensor, candidates: Tensor) -> Tensor:
        """Closed law of `select` given the candidates.

        Args:
            target_probs: `[vocab]`.
            draft_probs: `[vocab]`.
            candidates: `[n]` int64, in the order in which they are tried.

        Returns:
            `[vocab]` probabilities of the emitted token.
        """

    @abstractmethod
    def expected_acceptance(
        self, target_probs: Tensor, draft_probs: Tensor, num_candidates: int
    ) -> Tensor:
        """Chance that the emitted token is one of the candidates, `[rows]`, for laws `[rows, vocab]`."""

    def verify(self, block: DraftBlock, noise: Noise) -> VerifiedBlock:
        """Walk down the survivors' common prefix until a token is recovered, or the leaf gives the bonus."""
        paths = block.draft_token_ids
        batch, num_drafts, length = paths.shape
        output = paths.new_full((batch, length + 1), -1)
        num_accepted = paths.new_zeros(batch)
        survivor_path = paths.new_zeros(batch)
        alive = torch.ones(batch, num_drafts, dtype=torch.bool, device=paths.device)
        rows = torch.arange(batch, device=paths.device)
        for depth in range(length):
            path = survivor_path[rows]
            tokens = self.select(
                block.target(rows, path, depth),
                block.draft(rows, path, depth),
                paths[rows, :, depth],
                alive[rows],
                noise.select(rows),
                depth,
            )
            output[rows, depth] = tokens
            # a recovered token that happens to be drafted counts as accepted: the survivors' later tokens are
            # still i.i.d. given the text so far, for all decisions looked only at earlier tokens
            alive[rows] &= paths[rows, :, depth] == tokens[:, None]
            rows = rows[alive[rows].any(1)]
            num_accepted[rows] += 1
            survivor_path[rows] = alive[rows].to(torch.int8).argmax(1)
            if len(rows) == 0:
                break
        if len(rows) > 0:
            leaf = block.target(rows, survivor_path[rows], length)
            output[rows, length] = draw(leaf, noise.select(rows), Role.BONUS, depth=length)
        return without_bad_rows(output, num_accepted, survivor_path, block.status)


def get_verifier(name: str) -> Verifier:
    """The verifier of that name; ValueError lists the names there are."""
    if not isinstance(name, str) or name not in VERIFIERS:
        raise ValueError(f"verifier must be one of {sorted(VERIFIERS)}, got {name!r}")
    module, class_name = VERIFIERS[name]
    verifier = getattr(import_module(module), class_name)()
    assert isinstance(verifier, Verifier)
    return verifier


def verify_block(
    target_logits: Tensor,
    draft_logits: Tensor,
    draft_token_ids: Tensor,
    node_index: Tensor,
    *,
    verifier: str = "k_seq",
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
        draft_token_ids: `[batch, K, L]` int64, drawn from the draft's law under the same rules and temperature.
        node_index: `[batch, K, L + 1]` int64, the node after the first i tokens of path k.
        verifier: a name in `warpdraft.verification.VERIFIERS`.
        rules: truncation rules, applied in order to both models' laws.
        temperature: float or `[batch]`, of both laws; 0 is greedy. A rule's parameter may be `[batch]` too.
        seed: int, `[batch]` int64, or None: one number of torch's default generator.
        sequence: `[batch]` int64 names of the rows, by default their numbers.
        step: int or `[batch]` int64: counts a sequence's target calls; must never repeat.
        generator: takes the seed's place.
        backend: "auto" or "torch"; the plain-torch walk synchronises once a depth.

    Raises:
        ValueError: shapes, verifier, parameters or (on the CPU) token ids and nodes out of range.
        TypeError: dtypes, or a rule that is none.
    """
    check_backend(backend)
    rule = get_verifier(verifier)
    block = LogitsBlock(
        target_logits, draft_logits, draft_token_ids, node_index, rules, temperature
    )
    noise = Noise.create(
        len(draft_token_ids),
        seed=seed,
        sequence=sequence,
        step=step,
        generator=generator,
        device=draft_token_ids.device,
    )
    return rule.verify(block, noise)


class LogitsBlock:
    """A draft block given as logits over nodes: the laws are made when a verifier asks for them."""

    def __init__(
        self,
        target_logits: Tensor,
        draft_logits: Tensor,
        draft_token_ids: Tensor,
        node_index: Tensor,
        rules: Rule | Sequence[Rule],
        temperature: float | Tensor,
    ) -> None:
        _check_shapes(target_logits, draft_logits, draft_token_ids, node_index)
        _check_numbers("draft_token_ids", draft_token_ids, target_logits.shape[2])
        _check_numbers("node_index", node_index, target_logits.shape[1])
        _check_numbers("node_index of inner nodes", node_index[:, :, :-1], draft_logits.shape[1])
        listed = check_rules(rules)
        for name, value in (
            ("temperature", temperature),
            *((rule.parameter, rule.value) for rule in listed),
        ):
            if isinstance(value, Tensor) and value.shape not in ((), (len(draft_token_ids),)):
                raise ValueError(
                    f"{name} must be a number or [{len(draft_token_ids)}], got {list(value.shape)}"
                )
        self.draft_token_ids = draft_token_ids
        self.status = torch.zeros(len(draft_token_ids), dtype=torch.int8, device=node_index.device)
        self._target_logits = target_logits
        self._draft_logits = draft_logits
        self._node_index = node_index
        self._rules = listed
        self._temperature = temperature

    def target(self, rows: Tensor, path: Tensor, depth: int) -> Tensor:
        """Target law at the rows' nodes."""
        return self._law(self._target_logits, rows, path, depth)

    def draft(self, rows: Tensor, path: Tensor, depth: int) -> Tensor:
        """Draft law at the rows' nodes."""
        return self._law(self._draft_logits, rows, path, depth)

    def _law(self, logits: Tensor, rows: Tensor, path: Tensor, depth: int) -> Tensor:
        temperature = self._temperature
        if isinstance(temperature, Tensor) and temperature.ndim == 1:
            temperature = temperature[rows]
        rules = [_of_rows(rule, rows) for rule in self._rules]
        law = law_of(logits[rows, self._node_index[rows, path, depth]], rules, temperature)
        self.status[rows] = torch.where(law.status != 0, law.status, self.status[rows])
        return law.probs


def _check_shapes(
    target_logits: Tensor, draft_logits: Tensor, draft_token_ids: Tensor, node_index: Tensor
) -> None:
    for name, tensor in (("draft_token_ids", draft_token_ids), ("node_index", node_index)):
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
    if target_logits.shape[2] == 0:
        raise ValueError(
            "target_logits have an empty vocabulary: [batch, nodes, vocab] with vocab >= 1"
        )
    if target_logits.shape[2] != draft_logits.shape[2]:
        raise ValueError(
            f"target and draft logits must have one vocabulary width, "
            f"got {target_logits.shape[2]} and {draft_logits.shape[2]}"
        )


def _check_numbers(name: str, numbers: Tensor, size: int) -> None:
    """Token ids or nodes must be in [0, size); on other devices than the CPU a look would synchronise."""
    if numbers.device.type != "cpu" or numbers.numel() == 0:
        return
    least, most = (int(bound) for bound in numbers.aminmax())
    if least < 0 or most >= size:
        raise ValueError(f"{name} must be in [0, {size - 1}], got {least} to {most}")


def _of_rows(rule: Rule, rows: Tensor) -> Rule:
    """The rule for these rows of the batch."""
    if rule.parameter is None or not isinstance(rule.value, Tensor) or rule.value.ndim == 0:
        return rule
    return replace(rule, **{rule.parameter: rule.value[rows]})  # type: ignore[type-var]


def without_bad_rows(
    output: Tensor, num_accepted: Tensor, survivor_path: Tensor, status: Tensor
) -> VerifiedBlock:
    """Rows without a law emit nothing."""
    bad = status != 0
    return VerifiedBlock(
        output.masked_fill(bad[:, None], -1),
        num_accepted.masked_fill(bad, 0),
        survivor_path.masked_fill(bad, 0),
        status,
    )
