"""The loop: draft K paths, score them with one target call, verify, commit.

    while some text is unfinished:
        paths   ~  draft model, a tree of L levels a text                 (drafting.py, structures.py, draft_sources.py)
        logits  =  target(text + paths), one call for all of them         (layouts.py)
        tokens  =  verify(laws of both models, noise)                     (verification.py)
        text    += tokens up to the first stop; both caches roll back     (texts.py, cached_model.py)

Without a draft model a block is one target call and one drawn token: plain sampling through the same door.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from warpdraft.kernels.noise import Noise, Role
from warpdraft.kernels.support import OK

from .adaptive_shape import AdaptiveShape, Shape, ShapeChooser
from .cached_model import CachedModel
from .compiled_blocks import CompiledBlocks, CompiledPaths, compiled_blocks
from .draft_sources import DraftSource, ModelSource, TextSource, read_off
from .draft_tree import DraftTree
from .drafting import DraftPaths, draft_paths
from .laws import Law, LawPipeline
from .layouts import Branches, PathRows, TreeRow
from .same_text import same_text
from .slot_model import SlotModel, capacity_for, check_slots
from .slot_tree import SlotTree
from .statistics import GenerationStats
from .structures import MOST_NODES, Drafter, Structure, get_drafter
from .texts import StoppingCriterion, Texts
from .tree_mask import LAYOUTS, Layout, choose_layout
from .verification import DEFAULT_VERIFIER, VerifiedBlock, Verifier, get_verifier

if TYPE_CHECKING:
    from transformers import Cache, CompileConfig, PreTrainedModel
    from transformers.generation.streamers import BaseStreamer

    from .draft_sources import Draft

CacheImplementation = Literal["dynamic", "static"]
CACHE_IMPLEMENTATIONS: tuple[CacheImplementation, ...] = ("dynamic", "static")

Column = tuple[Tensor, Tensor | None, Tensor | None]
"""Rows `[n]` and their scores and logits `[n, vocab]` at one depth of a block."""


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """What one generation is asked to do.

    Attributes:
        max_length: tokens of the longest row, prompt included.
        pad_token_id: fills the rows that finish early.
        num_drafts: K in [1, 4096]; greedy decoding drafts one path, for all would be equal.
        draft_length: L in [1, 255].
        verifier: a name in `warpdraft.verification.VERIFIERS`, or a verifier.
        structure: of i.i.d. drafts: "paths", K paths of L tokens; "rollover", a tree that gives the draws which
            duplicates save to deeper levels.
        node_budget: the most nodes of a rollover tree; None for K L.
        adaptive: chooses K and L of every block from the outcomes of earlier ones, in place of `num_drafts` (unless it
            has its own) and `draft_length`.
        layout: how the models hold the tree: "paths", a row a path; "tree", one row a text; "auto" takes the tree where
            a model is known to take it.
        cache_implementation: "dynamic", caches that grow; "static", of fixed shape, for K i.i.d. paths of L tokens.
        compile_config: compiles the calls of the static caches; None runs them as they are.
        eos_token_ids: tokens that end a row.
        stopping: further criteria, asked after every emitted token with the rows of each length, scores None.
        seed: of the noise; None takes one number from torch's default generator.
        sequence: `[batch]` int64 names of the rows, by default their numbers.
        generator: takes the seed's place.
        streamer: gets the prompt, then the new tokens of every block (one text only).
        collect_scores: keep the processed scores of every emitted token.
        collect_logits: keep the target's logits there.
        past_key_values: the target's cache of an earlier turn.
        return_cache: hand the target's cache back, aligned with the returned token ids.
    """

    max_length: int
    pad_token_id: int
    num_drafts: int = 1
    draft_length: int = 4
    verifier: str | Verifier = DEFAULT_VERIFIER
    structure: Structure = "paths"
    node_budget: int | None = None
    adaptive: AdaptiveShape | None = None
    layout: Layout = "auto"
    cache_implementation: CacheImplementation = "dynamic"
    compile_config: CompileConfig | None = None
    eos_token_ids: Sequence[int] = ()
    stopping: Sequence[StoppingCriterion] = ()
    seed: int | None = None
    sequence: Tensor | None = None
    generator: torch.Generator | None = None
    streamer: BaseStreamer | None = None
    collect_scores: bool = False
    collect_logits: bool = False
    past_key_values: Cache | None = None
    return_cache: bool = False

    def __post_init__(self) -> None:
        limits = {"num_drafts": 4096, "draft_length": 255, "node_budget": MOST_NODES}
        for name, largest in limits.items():
            value = getattr(self, name)
            if name == "node_budget" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if not 1 <= value <= largest:
                raise ValueError(f"{name} must be in [1, {largest}], got {value}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        self._check_caches()
        if self.adaptive is not None and self.structure != "paths":
            raise ValueError(f'adaptive= needs structure="paths", got {self.structure!r}')
        for shape in self.extreme_shapes(self.num_drafts):
            self.drafter(get_verifier(self.verifier), shape)

    def _check_caches(self) -> None:
        name = self.cache_implementation
        if name not in CACHE_IMPLEMENTATIONS:
            choices = ", ".join(CACHE_IMPLEMENTATIONS)
            raise ValueError(f"cache_implementation must be one of {choices}, got {name!r}")
        if name == "dynamic":
            if self.compile_config is not None:
                raise ValueError(
                    f'compile_config= needs cache_implementation="static", got {name!r}'
                )
            return
        verifier = get_verifier(self.verifier)
        several = self.adaptive is not None and len(self.adaptive.num_drafts or ()) > 1
        if self.structure != "paths" or verifier.drafts != "iid" or several:
            raise ValueError(
                'cache_implementation="static" needs the same number of i.i.d. paths in every block: '
                'structure="paths", one num_drafts, and a verifier of i.i.d. drafts, '
                f"got structure={self.structure!r} and verifier {verifier.name!r}"
            )

    def extreme_shapes(self, num_drafts: int) -> tuple[Shape, Shape]:
        """The block with the fewest paths and the one with the most, both of the largest L."""
        if self.adaptive is None:
            return (Shape(num_drafts, self.draft_length),) * 2
        paths = self.adaptive.num_drafts or (num_drafts,)
        longest = max(self.adaptive.draft_lengths)
        return Shape(min(paths), longest), Shape(max(paths), longest)

    def drafter(self, verifier: Verifier, shape: Shape) -> Drafter:
        """What draws one block's candidates for the verifier; ValueError where the two do not fit."""
        num_drafts, draft_length = shape
        verifier.check_paths(num_drafts, rollover=self.structure == "rollover")
        return get_drafter(
            verifier.drafts,
            structure=self.structure,
            num_drafts=num_drafts,
            draft_length=draft_length,
            num_top=verifier.num_top(num_drafts),
            node_budget=self.node_budget,
        )


@dataclass(frozen=True, slots=True)
class Generated:
    """What a generation wrote.

    Attributes:
        token_ids: `[batch, longest]` int64, prompt, new tokens, padding.
        stats: counts and times.
        scores: processed scores `[batch, vocab]` of each new position, if collected; a row that had finished holds
            the law of its padding.
        logits: the target's logits likewise, zeros for finished rows.
        past_key_values: the target's cache, if asked for: every slot but the last of `token_ids`.
    """

    token_ids: Tensor
    stats: GenerationStats
    scores: tuple[Tensor, ...] | None
    logits: tuple[Tensor, ...] | None
    past_key_values: Cache | None


class ScoredBlock:
    """Draft paths with the target's logits: laws are made for the nodes that the verifier reaches."""

    def __init__(
        self,
        paths: DraftPaths,
        target_logits: Tensor,
        node: Tensor,
        texts: Texts,
        pipeline: LawPipeline,
    ) -> None:
        self.draft_token_ids = paths.tree.token_ids
        self.drawn = paths.tree.drawn
        self.status = torch.zeros(len(texts.lengths), dtype=torch.int8, device=texts.lengths.device)
        self._paths = paths
        self._target_logits = target_logits
        self._node = node
        self._texts = texts
        self._pipeline = pipeline

    def target(self, rows: Tensor, path: Tensor, depth: int) -> Law:
        """Target law of `[len(rows)]` nodes, processed on the text and the path's first `depth` tokens."""
        law = self._law(rows, path, depth, with_scores=False)
        self.status[rows] = torch.where(law.status != 0, law.status, self.status[rows])
        return law

    def draft(self, rows: Tensor, path: Tensor, depth: int) -> Law:
        """Draft law of `[len(rows)]` nodes, as it was sampled."""
        return self._paths.law(rows, path, depth)

    def logits(self, rows: Tensor, path: Tensor, depth: int) -> Tensor:
        """The target's logits there, `[len(rows), vocab]`."""
        node = self._node[rows, path, depth]
        if len(rows) == 1:
            # a view: a copy of one row would cost as much as a pass over it
            return self._target_logits[int(rows), int(node)][None]
        return self._target_logits[rows, node]

    def scores(self, rows: Tensor, path: Tensor, depth: int) -> Tensor:
        """The processed scores there, `[len(rows), vocab]`."""
        scores = self._law(rows, path, depth, with_scores=True).scores
        assert scores is not None
        return scores

    def _law(self, rows: Tensor, path: Tensor, depth: int, *, with_scores: bool) -> Law:
        drafted = self.draft_token_ids[rows, path, :depth]
        logits = self.logits(rows, path, depth)
        return self._pipeline.after(self._texts, rows, drafted, logits, with_scores=with_scores)


class PlainSampling(Verifier):
    """No drafts: one token from the target's law."""

    name = "plain"

    def verify(self, block: Any, noise: Noise) -> VerifiedBlock:
        """Draw the next token of every row."""
        rows = torch.arange(len(noise), device=noise.seed.device)
        zeros = torch.zeros_like(rows)
        tokens = block.target(rows, zeros, 0).draw(noise, Role.PLAIN)
        return VerifiedBlock(tokens[:, None], zeros, zeros, block.status)

    def survival(self, block: Any) -> Tensor:
        """Nothing is drafted."""
        return torch.zeros(len(block.status), 0, dtype=torch.float64, device=block.status.device)


def generate_tokens(
    target_model: PreTrainedModel,
    draft: Draft | None,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    pipeline: LawPipeline,
    options: LoopOptions,
) -> Generated:
    """Continue every row of `input_ids`.

    Args:
        target_model: whose processed law the text follows.
        draft: a model that drafts, or a draft source; None for plain sampling.
        input_ids: `[batch, width]` int64.
        attention_mask: `[batch, width]`, 0 for padding, which may stand anywhere but at the end; None for none.
        pipeline: processors and rules, applied once to each model.
        options: the rest.

    Raises:
        ValueError: for inputs or logits that have no law, and for more tokens than a model's context holds.
    """
    run = _Run(target_model, draft, input_ids, attention_mask, pipeline, options)
    streamer = options.streamer
    if streamer is not None:
        streamer.put(input_ids.cpu())
    with torch.no_grad():
        run.prefill(attention_mask)
        while run.texts.writing:
            emitted = run.block()
            if streamer is not None:
                streamer.put(run.texts.last_tokens(emitted[0])[0].cpu())
        return run.result()


class _Run:
    """One generation: the two cached models, the texts, the noise and the counts."""

    def __init__(
        self,
        target_model: PreTrainedModel,
        draft: Draft | None,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        pipeline: LawPipeline,
        options: LoopOptions,
    ) -> None:
        _check_inputs(input_ids, attention_mask, options)
        # who drafts: a model, or a source that reads the text, or nobody
        self.reader = draft if isinstance(draft, TextSource) else None
        draft_model = _draft_model(draft, target_model)
        self.context = _context(target_model, draft_model, options.max_length)
        batch, device = len(input_ids), input_ids.device
        greedy = pipeline.temperature == 0
        self.verifier = PlainSampling() if draft is None else get_verifier(options.verifier)
        one_path = greedy and self.verifier.drafts == "iid" and self.verifier.num_top(2) == 0
        if one_path and options.adaptive is not None:
            adaptive = replace(options.adaptive, num_drafts=None)
            options = replace(options, adaptive=adaptive)
        largest = options.extreme_shapes(1 if one_path else options.num_drafts)[1]
        self.shape = Shape(1, 0) if draft is None else largest
        if options.cache_implementation == "static":
            _check_static(target_model, draft_model, draft, device)
        if self.reader is not None:
            self.reader.check_drafts(self.verifier, self.shape.num_drafts, options.structure)
        self.chooser: ShapeChooser | None = None
        if draft is not None and options.adaptive is not None:
            self.chooser = ShapeChooser(options.adaptive, self.shape.num_drafts)
        self.options, self.pipeline = options, pipeline
        self.target = self._branches(target_model, batch, device)
        _check_token_ids(input_ids, self.target.model.vocabulary)
        self.ranks = same_text((target_model, draft_model), device)
        self.draft = None if draft_model is None else self._branches(draft_model, batch, device)
        self.texts = Texts(
            input_ids,
            max_length=options.max_length,
            pad_token_id=options.pad_token_id,
            eos_token_ids=options.eos_token_ids,
            stopping=[self.ranks.criterion(criterion) for criterion in options.stopping],
        )
        self.compiled: CompiledBlocks | None = None
        if options.compile_config is not None and pipeline.is_plain and self.ranks.is_alone:
            self.compiled = compiled_blocks(
                self.target,
                self.draft,
                self._vocabulary,
                pipeline.temperature,
                self.verifier,
                self.shape.num_drafts,
            )
        noise = Noise.create(
            batch,
            seed=options.seed,
            sequence=options.sequence,
            generator=options.generator,
            device=device,
        )
        self.noise = self.ranks.noise(noise)
        self.step = 0
        self.unread = 1
        self.scores: list[list[Tensor]] = [[] for _ in range(batch)]
        self.logits: list[list[Tensor]] = [[] for _ in range(batch)]
        self.prompt_width = input_ids.shape[1]
        self.stats = GenerationStats(
            rules=pipeline.names,
            verifier=None if draft is None else self.verifier.name,
            num_drafts=0 if draft is None else self.shape.num_drafts,
            draft_length=self.shape.draft_length,
            seed=int(self.noise.seed[0]),
        )

    def prefill(self, attention_mask: Tensor | None) -> None:
        """Both models read every prompt but its last token."""
        prompt = self.texts.token_ids[:, : self.prompt_width]
        tokens, lengths = _left_padded(prompt, attention_mask)
        with self.stats.timed("prefill"):
            cached = self._adopt(attention_mask)
            rest = tokens[:, cached:-1]
            self.target.model.prefill(rest, lengths - 1 - self.target.model.lengths)
            if self.draft is not None:
                self.draft.model.prefill(tokens[:, :-1], lengths - 1)
                if isinstance(self.draft, SlotTree):
                    self.unread = 2
                    self.draft.model.lengths = lengths - 2
        self.real = tokens.new_ones(prompt.shape) if attention_mask is None else attention_mask != 0

    def block(self) -> list[int]:
        """One round; returns how many tokens each row got."""
        # a block may reach past max_length, which cuts it afterwards: were L clipped to the room of the batch's longest
        # row, a row's tokens would depend on the rows around it, as they do where a model's context ends
        start = time.perf_counter()
        shape = self.shape if self.chooser is None else self.chooser.next_shape()
        length = shape.draft_length
        if self.options.max_length + length > self.context:
            length = min(length, self.context - int(self.texts.lengths.max()))
        noise = self.noise.at(self.step)
        with self.stats.timed("draft"):
            paths = self._draft(shape._replace(draft_length=length), noise)
        with self.stats.timed("target"):
            logits, node = self.target.score(self.texts.last_tokens(1), paths.tree)
            logits = self.ranks.tensor(logits)
        with self.stats.timed("verify"):
            block = ScoredBlock(paths, logits, node, self.texts, self.pipeline)
            verified = self._verify(block, paths, (logits, node), noise)
            columns = self._columns(block, verified)
            rows, tokens = self.texts.writing, self.texts.append(verified.output_token_ids)
            # the one time in a block that the host waits for the device
            drafts = torch.zeros_like(tokens) if paths.status is None else paths.status
            accepted, emitted, *status = self.texts.look(
                verified.num_accepted, tokens, drafts, verified.status
            )
            _check_laws(*status)
            self._collect(columns, emitted)
        with self.stats.timed("commit"):
            self._roll_back(paths.tree, verified, tokens, max(emitted))
        accepted = [accepted[row] for row in rows]
        self.stats.record_block(
            self._drafted(paths.tree, rows), rows, accepted, [emitted[row] for row in rows]
        )
        if self.chooser is not None and length == shape.draft_length:
            seconds = self.ranks.seconds(time.perf_counter() - start)
            self.chooser.record(shape, accepted, seconds)
            counts = self.stats.blocks_by_shape
            counts[shape] = counts.get(shape, 0) + 1
        self.step += 1
        return emitted

    def result(self) -> Generated:
        """Token ids, scores and cache, cut to the longest row."""
        longest = int(self.texts.lengths.max())
        options = self.options
        return Generated(
            self.texts.token_ids[:, :longest].clone(),
            self.stats,
            self._stack(self.scores, pad=True) if options.collect_scores else None,
            self._stack(self.logits, pad=False) if options.collect_logits else None,
            self._export(longest) if options.return_cache else None,
        )

    def _adopt(self, attention_mask: Tensor | None) -> int:
        """Take over the cache of an earlier turn; how many of the prompt's slots it holds."""
        cache = self.options.past_key_values
        cached = 0 if cache is None else cache.get_seq_length()
        if cache is None or cached == 0:
            return 0
        if cached >= self.prompt_width:
            raise ValueError(
                f"past_key_values holds {cached} tokens, but input_ids only {self.prompt_width}: "
                "pass the whole text, earlier turns included"
            )
        mask = attention_mask
        # padding inside the text would have to be cut out of the cache: the text is read again instead
        if mask is not None and bool((mask[:, 1:] < mask[:, :-1]).any()):
            return 0
        whole = torch.full_like(self.texts.lengths, cached)
        lengths = whole if mask is None else mask[:, :cached].sum(1).to(whole)
        return cached if self.target.model.adopt(cache, lengths) else 0

    def _branches(self, model: PreTrainedModel, batch: int, device: torch.device) -> Branches:
        one_path = self.shape.num_drafts == 1 and self.options.structure == "paths"
        layout = choose_layout(model, self.options.layout, one_path=one_path)
        if self.options.cache_implementation == "static":
            return self._slots(model, batch, device)
        cached = CachedModel(model, batch, device)
        return TreeRow(cached) if layout == "tree" else PathRows(cached)

    def _slots(self, model: PreTrainedModel, batch: int, device: torch.device) -> SlotTree:
        options, adaptive = self.options, self.options.adaptive
        num_drafts, longest = self.shape
        lengths = (longest,) if adaptive is None else adaptive.draft_lengths
        capacity = capacity_for(options.max_length, num_drafts * longest)
        compiled = options.compile_config
        slots = SlotModel(model, batch, device, capacity=capacity, compile_config=compiled)
        return SlotTree(slots, num_drafts, lengths)

    def _draft(self, shape: Shape, noise: Noise) -> DraftPaths:
        num_drafts, length = shape
        if self.reader is not None:
            return read_off(
                self.reader,
                self.texts,
                self.real,
                num_drafts=num_drafts,
                length=length,
                vocabulary=self._vocabulary,
            )
        if self.draft is None or length == 0:
            return DraftPaths(DraftTree(len(self.texts.lengths), self.texts.lengths.device), [])
        if self.compiled is not None:
            return self.compiled.draft_paths(self.texts, length, noise)
        return draft_paths(
            self.draft,
            self.texts,
            self.unread,
            self.options.drafter(self.verifier, shape),
            length=length,
            vocabulary=self._vocabulary,
            pipeline=self.pipeline,
            noise=noise,
            ranks=self.ranks,
        )

    def _drafted(self, tree: DraftTree, rows: list[int]) -> list[int]:
        """How many tokens the longest path of each row has: less than L only where a text is read off."""
        if self.reader is None:
            return [tree.depth] * len(rows)
        depths: list[int] = (tree.column >= 0).any(1).sum(1).sub(1).tolist()
        return [depths[row] for row in rows]

    def _verify(
        self,
        block: ScoredBlock,
        paths: DraftPaths,
        scored: tuple[Tensor, Tensor],
        noise: Noise,
    ) -> VerifiedBlock:
        """By the verifier, or by calls that do the same without waiting for the device."""
        if isinstance(paths, CompiledPaths) and self.compiled and self.compiled.verifies:
            return self.compiled.verify(paths, *scored, noise)
        return self.ranks.verified(self.verifier.verify(block, noise))

    def _roll_back(
        self, tree: DraftTree, verified: VerifiedBlock, emitted: Tensor, most: int
    ) -> None:
        """Keep the winning path of each row, and of it the tokens that were emitted, in both caches."""
        self.target.commit(tree, verified.survivor_path, emitted)
        if self.draft is None or tree.depth == 0:
            return
        # the draft has not read the last level: where a token of it was accepted two tokens are unread, and the next
        # call reads two everywhere, so that one shape serves all rows
        if not isinstance(self.draft, SlotTree):
            self.unread = 2 if most == tree.depth + 1 else 1
        self.draft.commit(tree, verified.survivor_path, emitted - self.unread)

    def _columns(self, block: ScoredBlock, verified: VerifiedBlock) -> list[Column]:
        """The processed scores and logits at each depth that has output; made before the texts grow."""
        options = self.options
        if not (options.collect_scores or options.collect_logits):
            return []
        columns = []
        for depth in range(int(verified.num_accepted.max()) + 1):
            rows = (verified.num_accepted >= depth).nonzero().squeeze(1)
            place = rows, verified.survivor_path[rows], depth
            scores = block.scores(*place) if options.collect_scores else None
            logits = block.logits(*place).to(torch.float32) if options.collect_logits else None
            columns.append((rows, scores, logits))
        return columns

    def _collect(self, columns: list[Column], emitted: list[int]) -> None:
        """Keep scores and logits of the positions that were emitted."""
        for depth, (rows, *kinds) in enumerate(columns):
            for kept, values in zip((self.scores, self.logits), kinds, strict=True):
                if values is None:
                    continue
                for value, row in zip(values, rows.tolist(), strict=True):
                    if depth < emitted[row]:
                        # a copy: a view would keep the rows around it alive until the end
                        kept[row].append(value.clone())

    def _stack(self, columns: list[list[Tensor]], pad: bool) -> tuple[Tensor, ...]:
        steps = max(len(column) for column in columns)
        blank = torch.zeros_like(columns[0][0])
        if pad:
            blank = blank.fill_(float("-inf"))
            blank[self.options.pad_token_id] = 0
        filled = [column + [blank] * (steps - len(column)) for column in columns]
        return tuple(torch.stack([column[step] for column in filled]) for step in range(steps))

    def _export(self, longest: int) -> Cache:
        """The target's cache, slot i holding position i of the returned token ids."""
        if bool((self.texts.lengths < longest).any()):
            # a row that stopped early is not read to its end yet, but stands inside the returned text
            self.target.model.forward(self.texts.last_tokens(1))
        # padding may stand between tokens, and keeps its slots
        real = torch.ones_like(self.texts.token_ids[:, : longest - 1])
        real[:, : self.prompt_width] = self.real
        return self.target.model.hand_out(real.cumsum(1) - 1)

    @property
    def _vocabulary(self) -> int:
        return int(self.target.model.model.config.get_text_config().vocab_size)


def _left_padded(token_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Every row's real tokens moved to the right end, and how many there are."""
    if attention_mask is None:
        width = token_ids.new_full((len(token_ids),), token_ids.shape[1])
        return token_ids, width
    real = attention_mask != 0
    order = real.to(torch.int8).argsort(dim=1, stable=True)
    return token_ids.gather(1, order), real.sum(1)


def _draft_model(draft: Draft | None, target: PreTrainedModel) -> PreTrainedModel | None:
    """The model that drafts, if one does."""
    if isinstance(draft, ModelSource):
        return draft.model_for(target)
    return None if isinstance(draft, DraftSource) else draft


def _check_static(
    target_model: PreTrainedModel,
    draft_model: PreTrainedModel | None,
    draft: Draft | None,
    device: torch.device,
) -> None:
    """ValueError where caches of fixed shape do not suit."""
    if isinstance(draft, TextSource):
        raise ValueError(
            'cache_implementation="static" needs drafts of a model: '
            f"those of {type(draft).__name__} have no fixed length"
        )
    check_slots(target_model, "target", device)
    if draft_model is not None:
        check_slots(draft_model, "draft", device)


def _check_laws(drafts: list[int], targets: list[int]) -> None:
    """ValueError for a row, the draft's codes first, that a block found no law for."""
    for role, codes in (("draft", drafts), ("target", targets)):
        for row, code in enumerate(codes):
            if code != OK:
                raise ValueError(
                    f"the {role} model's logits hold NaN, +inf or nothing finite after the "
                    f"processors (row {row})"
                )


def _check_inputs(input_ids: Tensor, attention_mask: Tensor | None, options: LoopOptions) -> None:
    if input_ids.ndim != 2 or input_ids.shape[0] == 0 or input_ids.shape[1] == 0:
        raise ValueError(
            f"input_ids must be [batch, width], both >= 1, got {list(input_ids.shape)}"
        )
    if input_ids.dtype != torch.int64:
        raise TypeError(f"input_ids must be int64, got {input_ids.dtype}")
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids {list(input_ids.shape)}, "
            f"got {list(attention_mask.shape)}"
        )
    if attention_mask is not None and not bool(attention_mask[:, -1].all()):
        row = int((attention_mask[:, -1] == 0).nonzero()[0])
        raise ValueError(
            f"pad prompts on the left: the last column of attention_mask must be 1, row {row} has 0"
        )
    if options.max_length <= input_ids.shape[1]:
        raise ValueError(
            f"max_length must exceed the prompt's width {input_ids.shape[1]}, got {options.max_length}"
        )
    if options.streamer is not None and len(input_ids) > 1:
        raise ValueError(f"a streamer takes one text, got a batch of {len(input_ids)}")


def _check_token_ids(input_ids: Tensor, vocabulary: int) -> None:
    least, most = (int(bound) for bound in input_ids.aminmax())
    if least < 0 or most >= vocabulary:
        raise ValueError(f"input_ids must be in [0, {vocabulary - 1}], got {least} to {most}")


def _context(
    target_model: PreTrainedModel, draft_model: PreTrainedModel | None, max_length: int
) -> int:
    """Positions that both models have; ValueError if the text would need more."""
    smallest = sys.maxsize
    for role, model in (("target", target_model), ("draft", draft_model)):
        config = None if model is None else model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None)
        if context is None:
            continue
        if max_length > context:
            raise ValueError(
                f"prompt and new tokens need {max_length} positions, "
                f"the {role} model's context holds {context}"
            )
        smallest = min(smallest, context)
    return smallest
