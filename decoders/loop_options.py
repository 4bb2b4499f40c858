"""What one generation is asked to do, checked before a model runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from .abstract_verifiers import Verifier
from .adaptive_shape import AdaptiveShape, Shape
from .checks import LARGEST, check_integer, check_streamer, check_tensor
from .structures import MOST_NODES, Drafter, Structure, get_drafter
from .texts import StoppingCriterion
from .tree_mask import LAYOUTS, Layout
from .verification import DEFAULT_VERIFIER, get_verifier

if TYPE_CHECKING:
    from transformers import Cache, CompileConfig
    from transformers.generation.streamers import BaseStreamer

CacheImplementation = Literal["dynamic", "static"]
CACHE_IMPLEMENTATIONS: tuple[CacheImplementation, ...] = ("dynamic", "static")


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

    Raises:
        ValueError: a number outside its range, an unknown name, or choices that do not go together: verifier and
            structure, adaptive shapes and trees, static caches and what has no fixed shape, a seed and a generator.
        TypeError: a count that is no int, or an object of another kind than the field's.
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
        self._check_noise()
        if self.adaptive is not None and not isinstance(self.adaptive, AdaptiveShape):
            raise TypeError(f"adaptive must be an AdaptiveShape, got {self.adaptive!r}")
        check_streamer(self.streamer)
        limits = {"num_drafts": 4096, "draft_length": 255, "node_budget": MOST_NODES}
        for name, largest in limits.items():
            value = getattr(self, name)
            if name == "node_budget" and value is None:
                continue
            check_integer(name, value, 1, largest)
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        self._check_caches()
        if self.adaptive is not None and self.structure != "paths":
            raise ValueError(f'adaptive= needs structure="paths", got {self.structure!r}')
        for shape in self.extreme_shapes(self.num_drafts):
            self.drafter(get_verifier(self.verifier), shape)

    def _check_noise(self) -> None:
        if self.seed is not None and not isinstance(self.seed, Tensor):
            check_integer("seed", self.seed, -LARGEST - 1)
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {self.generator!r}")
        if self.seed is not None and self.generator is not None:
            raise ValueError("pass seed or generator, not both")
        if self.sequence is not None:
            check_tensor("sequence", self.sequence)
            if self.sequence.dtype != torch.int64 or self.sequence.ndim != 1:
                raise ValueError(
                    f"sequence must be int64 [batch], "
                    f"got {self.sequence.dtype} {list(self.sequence.shape)}"
                )

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
                'cache_implementation="static" and compile=True need the same number of i.i.d. paths in every block: '
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
