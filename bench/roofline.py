"""A cost model of plain and speculative sampling: what a call must move and multiply, and how long that takes.

A stage moves so many bytes and does so many operations, and takes the longer of the two times:

    seconds(stage) = max(bytes / bandwidth, operations / rate)          on a processor, which waits: their sum

A call of a model has two stages, with B texts of c cached tokens and n new ones each, and b bytes a number:

    matrices:   bytes = b (weights + B n activations)          operations = 2 B n (numbers in all matrices)
    attention:  bytes = b B (cached + n) kv_width a layer      operations = 4 B n (cached + n) heads width a layer

and, besides, so many launches a layer. A block of K draft paths of L tokens is

    draft:   one call of 1 token a text, then L - 1 calls of K tokens
    target:  one call of 1 + K L tokens a text, the nodes of the tree; or, a row a path, K B rows of 1 + L tokens
    truncate and draw:  every row of logits once, the draft's 1 + K (L - 1) and the target's 1 + K L
    verify:  the rows of both models twice more (the project's own floor, `throughput/run.py`)

and emits block efficiency x B tokens; a plain step is a target call of 1 token, one row of logits, and B tokens.
Rows of logits run on the vector units. What is left out: prefill, the scheduler, communication, the duplicates among
drafted tokens (fewer nodes), and the second token that the draft reads where a whole path was accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from .machines import THIN, Machine
from .model_shape import ModelShape


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What a data sheet does not say.

    Attributes:
        bandwidth_share: of the memory's data rate that a call reaches.
        matrix_share: of the matrix units' rate.
        vector_share: of the vector units' rate.
        memory_share: of the memory that models, caches and logits may take.
        launch_seconds: between two kernels, in a CUDA graph.
        launches_per_layer: kernels of a layer: norms, projections, rotation, cache, attention, feed-forward.
        launches_per_row_stage: kernels of truncation or verification.
        call_seconds: of the host, once a call of a model.
        bytes_per_number: of weights, cache, activations and logits.
        truncation_operations: on the vector units, a logit (about 20 instructions, an instruction counting twice).
        verification_operations: on the vector units, a pair of logits (about 38 instructions).
    """

    bandwidth_share: float = 0.8
    matrix_share: float = 0.6
    vector_share: float = 0.5
    memory_share: float = 0.9
    launch_seconds: float = 2e-6
    launches_per_layer: float = 10
    launches_per_row_stage: float = 4
    call_seconds: float = 0.0
    bytes_per_number: float = 2
    truncation_operations: float = 40
    verification_operations: float = 76

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            is_share = field.name.endswith("_share")
            least = 0 if field.name.endswith("_seconds") or "launches" in field.name else 1e-12
            if not least <= value <= (1 if is_share else float("inf")):
                wanted = "in (0, 1]" if is_share else "at least 0" if least == 0 else "positive"
                raise ValueError(f"{field.name} must be {wanted}, got {value}")


def assumptions_for(machine: Machine, changes: dict[str, float]) -> Assumptions:
    """The defaults, changed: rates that were measured are reached in full.

    Raises:
        ValueError: an unknown name or a value out of range.
    """
    names = [field.name for field in fields(Assumptions)]
    for name in changes:
        if name not in names:
            raise ValueError(f"--assume takes {', '.join(names)}, got {name!r}")
    measured = {"bandwidth_share": 1.0, "matrix_share": 1.0, "vector_share": 1.0}
    start = Assumptions(**measured) if machine.is_measured else Assumptions()
    return replace(start, **changes)


@dataclass(frozen=True, slots=True)
class Stage:
    """Bytes that move, operations, and whether these are matrix products."""

    moved: float
    operations: float
    is_matrix: bool
    launches: float = 0.0


@dataclass(frozen=True, slots=True)
class Block:
    """Seconds of a step or a block by stage, and the tokens that it emits.

    Attributes:
        draft: of all calls of the draft model.
        target: of the target call.
        truncate: of all rows of logits, drawing included.
        verify: of the verification.
        tokens: of all texts.
    """

    draft: float
    target: float
    truncate: float
    verify: float
    tokens: float

    @property
    def seconds(self) -> float:
        """Of all stages, one after the other."""
        return self.draft + self.target + self.truncate + self.verify

    @property
    def tokens_per_second(self) -> float:
        """Of all texts together."""
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class CostModel:
    """A machine and what is assumed of it."""

    machine: Machine
    assumptions: Assumptions

    def seconds(self, *stages: Stage) -> float:
        """Of stages one after the other."""
        given, machine = self.assumptions, self.machine
        total = 0.0
        for stage in stages:
            rate = (
                machine.matrix_flops * given.matrix_share
                if stage.is_matrix
                else machine.vector_flops * given.vector_share
            )
            moving = stage.moved / (machine.bandwidth * given.bandwidth_share)
            computing = stage.operations / rate
            total += max(moving, computing) + (1 - machine.overlap) * min(moving, computing)
            total += stage.launches * given.launch_seconds
        return total

    def call(self, shape: ModelShape, rows: int, tokens: int, context: int) -> tuple[Stage, Stage]:
        """The matrices and the attention of one call.

        Args:
            shape: of the model.
            rows: texts.
            tokens: new tokens of each.
            context: cached tokens of each.
        """
        width = self.assumptions.bytes_per_number
        new = rows * tokens
        passes = self.machine.matrix_passes if new > THIN else 1.0
        matrices = Stage(
            moved=width * (passes * shape.read_weights + new * shape.activations),
            operations=2.0 * new * shape.matrix_weights,
            is_matrix=True,
            launches=len(shape.layers) * self.assumptions.launches_per_layer,
        )
        attention = Stage(
            moved=width * rows * shape.kv_numbers(context, tokens),
            operations=4.0 * new * shape.attention_numbers(context, tokens),
            is_matrix=True,
        )
        return matrices, attention

    def call_seconds(self, shape: ModelShape, rows: int, tokens: int, context: int) -> float:
        """Of one call, the host's share included."""
        stages = self.call(shape, rows, tokens, context)
        return self.seconds(*stages) + self.assumptions.call_seconds

    def truncation(self, shape: ModelShape, rows: int) -> Stage:
        """Truncate rows of logits and draw of each: one read."""
        given = self.assumptions
        numbers = float(rows * shape.vocab)
        return Stage(
            moved=given.bytes_per_number * numbers,
            operations=given.truncation_operations * numbers,
            is_matrix=False,
            launches=given.launches_per_row_stage,
        )

    def verification(self, shape: ModelShape, batch: int, num_drafts: int, length: int) -> Stage:
        """Decide on a block: two reads of both models' rows at all nodes."""
        given = self.assumptions
        pairs = float(batch * (num_drafts * length + 1) * shape.vocab)
        return Stage(
            moved=given.bytes_per_number * 2 * 2 * pairs,
            operations=given.verification_operations * pairs,
            is_matrix=False,
            launches=given.launches_per_row_stage,
        )

    def plain(self, target: ModelShape, batch: int, context: int) -> Block:
        """One step of plain sampling."""
        call = self.call_seconds(target, batch, 1, context)
        return Block(0.0, call, self.seconds(self.truncation(target, batch)), 0.0, float(batch))

    def speculative(
        self,
        target: ModelShape,
        draft: ModelShape,
        batch: int,
        context: int,
        num_drafts: int,
        length: int,
        efficiency: float,
        *,
        is_tree: bool = True,
    ) -> Block:
        """One block of speculative sampling.

        Args:
            target: scores the nodes.
            draft: proposes them.
            batch: texts.
            context: cached tokens of each.
            num_drafts: K.
            length: L.
            efficiency: tokens that a text emits a block, in [1, L + 1].
            is_tree: the nodes of a text are one row; else every path is.
        """
        drafting = self.call_seconds(draft, batch, 1, context)
        for depth in range(1, length):
            rows, tokens, drafted = (
                (batch, num_drafts, 1 + num_drafts * (depth - 1))
                if is_tree
                else (batch * num_drafts, 1, depth)
            )
            drafting += self.call_seconds(draft, rows, tokens, context + drafted)
        scoring = (
            self.call_seconds(target, batch, 1 + num_drafts * length, context)
            if is_tree
            else self.call_seconds(target, batch * num_drafts, 1 + length, context)
        )
        rows = batch * ((1 + num_drafts * (length - 1)) + (1 + num_drafts * length))
        return Block(
            draft=drafting,
            target=scoring,
            truncate=self.seconds(self.truncation(target, rows))
            # a draft step's rows come one step after the other
            + length * self.assumptions.launches_per_row_stage * self.assumptions.launch_seconds,
            verify=self.seconds(self.verification(target, batch, num_drafts, length)),
            tokens=efficiency * batch,
        )

    def plain_bytes(self, target: ModelShape, batch: int, context: int) -> float:
        """Memory of plain sampling: weights, cache, and rows of logits in float32."""
        width = self.assumptions.bytes_per_number
        cache = width * batch * target.kv_numbers(context, 1)
        return width * target.parameters + cache + 4.0 * batch * target.vocab

    def speculative_bytes(
        self,
        target: ModelShape,
        draft: ModelShape,
        batch: int,
        context: int,
        num_drafts: int,
        length: int,
        *,
        is_tree: bool = True,
    ) -> float:
        """Memory of speculative sampling: weights and caches of both, and all rows of logits in float32."""
        width = self.assumptions.bytes_per_number
        nodes = 1 + num_drafts * length
        rows, tokens = (batch, nodes) if is_tree else (batch * num_drafts, 1 + length)
        weights = target.parameters + (draft.parameters if draft.has_own_weights else 0)
        cached = target.kv_numbers(context, tokens) + draft.kv_numbers(context, tokens)
        logits = 4.0 * batch * (2 * nodes - 1) * target.vocab
        return width * (weights + rows * cached) + logits

    def fits(self, needed: float) -> bool:
        """Whether so many bytes may be taken."""
        return needed <= self.machine.memory * self.assumptions.memory_share
