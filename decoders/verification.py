"""Verification of one draft block: which drafted tokens are emitted, and what follows them.

The words: a *block* holds K draft paths of L tokens that continue the same text. A *node* is a prefix of a path; at
every node the target and the draft have a law. The *candidates* at a node are the next tokens of the *survivors*, the
paths that agree with everything accepted so far. A verifier emits the accepted tokens and one more: the *recovered*
token where the candidates were rejected, or the *bonus* token where a whole path was accepted.

A verifier is lossless: the emitted text, continued by plain sampling, has exactly the law of plain sampling from the
target, whatever the draft's law is.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from warpdraft.kernels.noise import MAX_DEPTH, MAX_PATH, Noise, Role

from .arguments import TEMPERATURES, validity
from .backend import KERNEL_DTYPES, Backend, operations_of, takes_triton
from .checks import check_tensor
from .laws import Law, NodeLaws, law_of
from .parameters import check_parameter
from .rules import Rule
from .temperature_rules import change_temperature
from .truncation import check_logits_dtype, check_rules

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


Selector = Literal["clip", "lex"]
Drafts = Literal["iid", "without_replacement", "beam"]
"""How the candidates of a node are drawn: i.i.d. from the draft's law; from it without replacement, tried in the order
in which they were drawn, for their number depends on them; or as its most likely tokens."""


class DraftBlock(Protocol):
    """The laws of one draft block, fetched row by row as a verifier reaches their nodes.

    Attributes:
        draft_token_ids: `[batch, K, L]` int64; -1 behind the end of a path that is shorter.
        drawn: `[batch, K, L]` bool, whether the path's token at a depth is a draw of its own: one of the candidates
            there. A path that branches off another one repeats its tokens up to there, and those are no draws.
        status: `[batch]` int8, set by `target` and `draft` where a row has no law; such a law is all zeros.
    """

    draft_token_ids: Tensor
    drawn: Tensor
    status: Tensor

    def target(self, rows: Tensor, path: Tensor, depth: int) -> Law:
        """Target law of `[len(rows)]` nodes: after the first `depth` tokens of each row's path."""

    def draft(self, rows: Tensor, path: Tensor, depth: int) -> Law:
        """Draft law at the same nodes: the law that the next tokens were drawn from."""


class Verifier(ABC):
    """A lossless verification rule with a closed law."""

    name: ClassVar[str]
    drafts: ClassVar[Drafts] = "iid"
    most_drafts: ClassVar[int | None] = None

    def num_top(self, num_drafts: int) -> int:
        """How many of the root's K candidates are the draft's most likely tokens, paths 0 .. m - 1.

        The others are drawn i.i.d. from the draft's law without those tokens; below the root all are i.i.d.
        """
        return 0

    def check_paths(self, num_drafts: int, *, rollover: bool) -> None:
        """ValueError if the verifier cannot take so many paths, or a rollover tree."""
        if self.most_drafts is not None and (num_drafts > self.most_drafts or rollover):
            tree = ' with structure="rollover"' if rollover else ""
            raise ValueError(
                f'verifier "{self.name}" takes num_drafts={self.most_drafts}, got {num_drafts}{tree}: '
                'use "optimal_block"'
            )

    @abstractmethod
    def verify(self, block: DraftBlock, noise: Noise) -> VerifiedBlock:
        """Walk the block; `noise` holds one stream per row of the batch, at the block's step."""

    @abstractmethod
    def survival(self, block: DraftBlock) -> Tensor:
        """P(at least i drafted tokens are accepted | the drafts), i = 1 .. L: `[batch, L]` float64.

        Exact, over all the verifier's own random numbers: a block yields 1 + their sum tokens on average.
        """


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
        token_ids: Tensor | None = None,
    ) -> Tensor:
        """Emit one token a row from the target's law, as often as possible one of the candidates.

        Args:
            target_probs: `[rows, width]`.
            draft_probs: `[rows, width]`, the law that the candidates were drawn from.
            candidates: `[rows, K]` int64, columns of the laws: the next token of every path.
            alive: `[rows, K]` bool, which of them are candidates; at least one a row.
            noise: one stream a row.
            depth: of the node, 0 at the root.
            token_ids: `[rows, width]` int64, the tokens that the columns stand for; None where they are the
                vocabulary.

        Returns:
            `[rows]` int64 columns.
        """

    @abstractmethod
    def law(
        self, target_probs: Tensor, draft_probs: Tensor, candidates: Tensor, depth: int = 0
    ) -> Tensor:
        """Closed law of `select` given the candidates.

        Args:
            target_probs: `[vocab]`.
            draft_probs: `[vocab]`.
            candidates: `[n]` int64, in the order in which they are tried.
            depth: of the node.

        Returns:
            `[vocab]` probabilities of the emitted token.
        """

    @abstractmethod
    def expected_acceptance(
        self, target_probs: Tensor, draft_probs: Tensor, num_candidates: int
    ) -> Tensor:
        """Chance that the emitted token is one of the root's candidates, `[rows]`, for laws `[rows, vocab]`."""

    def verify(self, block: DraftBlock, noise: Noise) -> VerifiedBlock:
        """Walk down the survivors' common prefix until a token is recovered, or a leaf gives the bonus."""
        paths = block.draft_token_ids
        batch, num_drafts, length = paths.shape
        output = paths.new_full((batch, length + 1), -1)
        num_accepted = paths.new_zeros(batch)
        survivor_path = paths.new_zeros(batch)
        survivors = torch.ones(batch, num_drafts, dtype=torch.bool, device=paths.device)
        rows = torch.arange(batch, device=paths.device)
        for depth in range(length):
            alive = survivors[rows] & block.drawn[rows, :, depth]
            leaves = rows[~alive.any(1)]
            draw_bonus(block, noise, leaves, survivor_path, depth, output)
            alive, rows = alive[alive.any(1)], rows[alive.any(1)]
            if len(rows) == 0:
                break
            path = survivor_path[rows]
            node = NodeLaws.of(block.target(rows, path, depth), block.draft(rows, path, depth))
            column = self.select(
                node.target,
                node.draft,
                node.columns(paths[rows, :, depth]),
                alive,
                noise.select(rows),
                depth,
                node.token_ids,
            )
            tokens = node.tokens(column)
            output[rows, depth] = tokens
            # a recovered token that happens to be drafted counts as accepted: the survivors' later tokens are
            # still draws from their laws given the text so far, for all decisions looked only at earlier tokens
            survivors[rows] &= paths[rows, :, depth] == tokens[:, None]
            accepted = (alive & survivors[rows]).any(1)
            rows = rows[accepted]
            num_accepted[rows] += 1
            survivor_path[rows] = survivors[rows].to(torch.int8).argmax(1)
            if len(rows) == 0:
                break
        draw_bonus(block, noise, rows, survivor_path, length, output)
        return without_bad_rows(output, num_accepted, survivor_path, block.status)

    def survival(self, block: DraftBlock) -> Tensor:
        """Walk the tree of the drafted tokens, each node's closed law in hand."""
        batch, _, length = block.draft_token_ids.shape
        survival = torch.zeros(batch, length, dtype=torch.float64, device=block.drawn.device)
        for row in range(batch):
            paths, drawn = block.draft_token_ids[row], block.drawn[row]
            every = torch.ones_like(drawn[:, 0])
            nodes = [(1.0, 0, every)]
            while nodes:
                reached, depth, survivors = nodes.pop()
                alive = survivors & drawn[:, depth] if depth < length else survivors & False
                if reached == 0 or not bool(alive.any()):
                    continue
                law = self._law_at(block, row, survivors, alive, depth)
                for token in paths[alive, depth].unique().tolist():
                    chance = reached * law(token)
                    survival[row, depth] += chance
                    nodes.append((chance, depth + 1, survivors & (paths[:, depth] == token)))
        return survival

    def _law_at(
        self, block: DraftBlock, row: int, survivors: Tensor, alive: Tensor, depth: int
    ) -> Callable[[int], float]:
        """The chance of a token to be emitted at one node, given its candidates."""
        rows = block.draft_token_ids.new_tensor([row])
        path = survivors.to(torch.int8).argmax()[None]
        node = NodeLaws.of(block.target(rows, path, depth), block.draft(rows, path, depth))
        candidates = node.columns(block.draft_token_ids[rows, :, depth])[0]
        law = self.law(node.target[0], node.draft[0], candidates[alive], depth)
        column_of = dict(
            zip(
                block.draft_token_ids[row, alive, depth].tolist(),
                candidates[alive].tolist(),
                strict=True,
            )
        )
        return lambda token: float(law[column_of[token]])


def draw_bonus(
    block: DraftBlock,
    noise: Noise,
    rows: Tensor,
    path: Tensor,
    depth: int,
    output_token_ids: Tensor,
) -> None:
    """Write the token that follows a leaf, drawn from the target's law, behind the accepted ones of these rows."""
    if len(rows) > 0:
        leaf = block.target(rows, path[rows], depth)
        output_token_ids[rows, depth] = leaf.draw(noise.select(rows), Role.BONUS, depth=depth)


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
