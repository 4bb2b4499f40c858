"""Draft sources: where the tokens come from that the target then accepts or rejects, and what law they have.

    a model         K paths, each token drawn from the model's processed law                         any causal model
    `FirstLayers`   the same, the model being some of the target's own layers                        first_layers.py
    `WithoutAdapter`  the same, the model being the one under the target's adapter                   without_adapter.py
    `PromptLookup`  what followed the text's last tokens where they stood before: a point mass       prompt_lookup.py

A verifier is lossless if it is told the law that its candidates were drawn from, whatever that is. A model's law is
known at every node. A continuation that is read off the text is a function of what was accepted before: given the text,
its law is a point mass. One such path is a draw from that law, and every verifier of one path takes it. Several that
differ are not draws from one law, and only a verifier that never reads the draft's law, `"target_only"`, takes them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .abstract_verifiers import Verifier
from .draft_tree import DraftTree, Draws, SeparatePaths
from .drafting import DraftPaths
from .laws import Law
from .structures import LevelLaws, Structure
from .texts import Texts
from .verification import DEFAULT_VERIFIER

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Draft: TypeAlias = PreTrainedModel | "DraftSource"
    """What may draft."""


class DraftSource:
    """What drafts in place of a second model: a `ModelSource` or a `TextSource`."""

    default_verifier = DEFAULT_VERIFIER

    def check_drafts(self, verifier: Verifier, num_drafts: int, structure: Structure) -> None:
        """ValueError if the verifier or the structure needs candidates of another law than the source's."""


class ModelSource(DraftSource, ABC):
    """A model made for the target; its law is known at every node, as that of any draft model."""

    @abstractmethod
    def model_for(self, target: PreTrainedModel) -> PreTrainedModel:
        """The model that drafts for this target, which is not touched.

        Raises:
            ValueError: the source has none for such a target.
        """


class TextSource(DraftSource, ABC):
    """Continuations that are read off the text: no model, no cache, and the law of a point mass."""

    default_verifier = "target_only"

    @abstractmethod
    def continuations(
        self, token_ids: NDArray[np.int64], num_drafts: int, draft_length: int
    ) -> list[list[int]]:
        """Different continuations of a text, which depend on nothing but the text.

        Args:
            token_ids: `[n]`, n >= 1: prompt and new tokens of one row, without padding.
            num_drafts: the most continuations.
            draft_length: the most tokens of each.

        Returns:
            none where there is nothing to draft: the row's next token is then sampled plainly.
        """

    def check_drafts(self, verifier: Verifier, num_drafts: int, structure: Structure) -> None:
        """Several continuations are no draws from one law.

        Raises:
            ValueError: a rollover tree; several continuations for a verifier that reads the draft's law.
        """
        if structure != "paths":
            raise ValueError(f'{self} drafts structure="paths", got {structure!r}')
        if num_drafts > 1 and verifier.drafts != "beam":
            raise ValueError(
                f"{self} drafts continuations that are certain, and {num_drafts} that differ are no "
                f'draws from one law: verifier "{verifier.name}" takes num_drafts=1 of them, '
                '"target_only" any number'
            )


def read_off(
    source: TextSource,
    texts: Texts,
    real: Tensor,
    *,
    num_drafts: int,
    length: int,
    vocabulary: int,
) -> DraftPaths:
    """One block's continuations of every text.

    Args:
        source: whose they are.
        texts: what has been written; rows that have finished get no drafts.
        real: `[batch, width]`, 0 for the prompts' padding.
        num_drafts: K.
        length: the most tokens of a path.
        vocabulary: of the laws.

    Returns:
        the tree of the continuations, each token's law a point mass.
    """
    device = texts.lengths.device
    written = texts.token_ids.cpu().numpy()
    kept = (real != 0).cpu().numpy()
    width = kept.shape[1]
    rows: list[list[list[int]]] = []
    for row, (used, finished) in enumerate(
        zip(texts.lengths.tolist(), texts.finished.tolist(), strict=True)
    ):
        prompt = written[row, :width][kept[row]]
        text = np.concatenate([prompt, written[row, width:used]])
        rows.append([] if finished else source.continuations(text, num_drafts, length))
    tree = _tree_of(rows, device)
    laws = [_point_masses(tree, depth, vocabulary) for depth in range(tree.depth)]
    return DraftPaths(tree, laws)


def _tree_of(rows: list[list[list[int]]], device: torch.device) -> DraftTree:
    """The tree of every text's paths, which may be shorter than the longest, or none."""
    num_paths = max(1, *(len(paths) for paths in rows))
    # one path meets nobody: nothing has to be compared
    kind = SeparatePaths if num_paths == 1 else DraftTree
    tree = kind(len(rows), device)
    depth = max((len(path) for paths in rows for path in paths), default=0)
    tokens = torch.full((len(rows), num_paths, depth), -1)
    for row, paths in enumerate(rows):
        for number, path in enumerate(paths):
            tokens[row, number, : len(path)] = torch.tensor(path, dtype=torch.int64)
    tokens = tokens.to(device)
    itself = torch.arange(num_paths, device=device).expand(len(rows), -1)
    for level in range(depth):
        source = torch.zeros_like(itself) if level == 0 else itself
        tree.grow(Draws(source, tokens[:, :, level]))
    return tree


def _point_masses(tree: DraftTree, depth: int, vocabulary: int) -> LevelLaws:
    """The laws at the nodes of one level: all on what the first path that goes on from there goes on with.

    That is the law of one path; verifiers of several do not read it.
    """
    column, drafted = tree.column[:, :, depth], tree.token_ids[:, :, depth]
    width = 1 if depth == 0 else tree.levels[depth - 1].token_ids.shape[1]
    token_ids = drafted.new_zeros(len(drafted), width)
    for path in reversed(range(tree.num_paths)):
        text = (drafted[:, path] >= 0).nonzero().squeeze(1)
        token_ids[text, column[text, path]] = drafted[text, path]
    token_ids = token_ids.view(-1, 1)
    law = Law.of_probs(torch.ones_like(token_ids, dtype=torch.float32))
    row = torch.arange(len(token_ids), device=token_ids.device).view(-1, width)
    return LevelLaws(replace(law, token_ids=token_ids, vocab=vocabulary), row)
