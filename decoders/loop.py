"""The loop: draft K paths, score them with one target call, verify, commit.

    while some text is unfinished:
        paths   ~  draft model, a tree of L levels a text                 (drafting.py, structures.py, draft_sources.py)
        logits  =  target(text + paths), one call for all of them         (layouts.py)
        tokens  =  verify(laws of both models, noise)                     (verification.py)
        text    += tokens up to the first stop; both caches roll back     (texts.py, cached_model.py)

Without a draft model a block is one target call and one drawn token: plain sampling through the same door.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from warpdraft.kernels.noise import Noise, Role

from .abstract_verifiers import VerifiedBlock, Verifier
from .adaptive_shape import Shape, ShapeChooser
from .cached_model import CachedModel
from .compiled_blocks import CompiledBlocks, CompiledPaths, compiled_blocks
from .draft_sources import DraftSource, ModelSource, TextSource, read_off
from .draft_tree import DraftTree
from .drafting import DraftPaths, draft_paths
from .laws import LawPipeline
from .layouts import Branches, PathRows, TreeRow
from .loop_inputs import (
    check_inputs,
    check_laws,
    check_static,
    check_token_ids,
    check_windows,
    context_of,
)
from .loop_options import LoopOptions
from .same_text import same_text
from .scored_block import ScoredBlock
from .slot_model import SlotModel, capacity_for
from .slot_tree import SlotTree
from .statistics import GenerationStats
from .texts import Texts
from .tree_mask import choose_layout
from .verification import get_verifier

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

    from .draft_sources import Draft

__all__ = ["Generated", "LoopOptions", "PlainSampling", "generate_tokens"]

Column = tuple[Tensor, Tensor | None, Tensor | None]
"""Rows `[n]` and their scores and logits `[n, vocab]` at one depth of a block."""


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

    Returns:
        the whole texts, and what the options ask for beside them.

    Raises:
        ValueError: for inputs or logits that have no law, and for more tokens than a model's context holds.
        TypeError: for prompts or a mask that are no tensors, and token ids that are not int64.
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
        check_inputs(input_ids, attention_mask, options)
        # who drafts: a model, or a source that reads the text, or nobody
        self.reader = draft if isinstance(draft, TextSource) else None
        draft_model = _draft_model(draft, target_model)
        self.context = context_of(target_model, draft_model, options.max_length)
        check_windows(target_model, attention_mask, options.max_length)
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
            check_static(target_model, draft_model, draft, device)
        if self.reader is not None:
            self.reader.check_drafts(self.verifier, self.shape.num_drafts, options.structure)
        self.chooser: ShapeChooser | None = None
        if draft is not None and options.adaptive is not None:
            self.chooser = ShapeChooser(options.adaptive, self.shape.num_drafts)
        self.options, self.pipeline = options, pipeline
        self.target = self._branches(target_model, batch, device)
        check_token_ids(input_ids, self.target.model.vocabulary)
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
            check_laws(*status)
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
        behind = longest - self.texts.lengths
        width = int(behind.max())
        if width > 0:
            # a row that stopped early goes on with its padding, which stands in the returned text
            self.target.model.take_back(width - behind)
            self.target.model.forward(self.texts.token_ids[:, longest - 1 - width : longest - 1])
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
