"""The options of a soak: what one kind of generation is, drawn at random from what goes together."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
)

from warpdraft import (
    AdaptiveShape,
    DynamicTemperature,
    Epsilon,
    FirstLayers,
    MinP,
    PLess,
    PromptLookup,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    Typical,
)
from warpdraft.rules import Rule
from warpdraft.truncation import truncate
from warpdraft.verification import VERIFIERS, get_verifier

if TYPE_CHECKING:
    from warpdraft.draft_sources import Draft

VOCAB = 16
PAD = 0
LONGEST = 9
"""New tokens of a generation are fewer."""
PROMPTS = ((1, 5, 9), (1, 7), (1, 2, 3, 2, 3), (1, 11, 4, 11))
RULES: tuple[tuple[Rule, ...], ...] = (
    (),
    (TopH(0.4),),
    (MinP(0.1),),
    (TopK(5), TopP(0.9)),
    (Epsilon(0.02),),
    (Typical(0.8),),
    (TopNSigma(1.0), PLess()),
    (DynamicTemperature(0.5, 1.5), MinP(0.05)),
)

Source = Literal["none", "model", "first layer", "look-up"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Target and draft."""

    target: PreTrainedModel
    draft: PreTrainedModel


@dataclass(frozen=True, slots=True)
class Group:
    """The options of one kind of generation; fields as in `integrations.transformers.generate`."""

    source: Source
    verifier: str
    num_drafts: int
    draft_length: int
    num_top: int | None
    structure: str
    layout: str
    adapts: bool
    rules: tuple[Rule, ...]
    temperature: float
    penalty: float
    batch: int
    ends: tuple[int, ...]
    cache: str
    dtype: str

    @classmethod
    def at_random(cls, rng: random.Random) -> Group:
        """A group that the options allow."""
        source: Source = rng.choice(["none", "look-up", "first layer", "model", "model", "model"])
        verifier = "target_only" if source == "look-up" else rng.choice(sorted(VERIFIERS))
        rule = get_verifier(verifier)
        most = 1 if source == "look-up" else rule.most_drafts
        # the hybrid drafts of greedy_drafts are drawn i.i.d. but for the first
        iid = rule.drafts == "iid" and rule.num_top(2) == 0
        rollover = source == "model" and iid and most is None and rng.random() < 0.25
        rules = rng.choice(RULES)
        static = iid and source == "model" and not rollover and rng.random() < 0.25
        num_drafts = most or rng.choice([1, 2, 4])
        return cls(
            source=source,
            verifier=verifier,
            num_drafts=num_drafts,
            draft_length=rng.choice([1, 2, 4]),
            num_top=1 if verifier == "optimal" and not rollover and rng.random() < 0.3 else None,
            structure="rollover" if rollover else "paths",
            layout="auto" if static else rng.choice(["auto", "paths"]),
            adapts=iid and not rollover and not static and rng.random() < 0.2,
            rules=rules,
            temperature=rng.choice([0.5, 1.0, 1.5]),
            penalty=rng.choice([1.0, 1.0, 1.3]),
            batch=rng.choice([1, 2, 8]),
            ends=rng.choice([(), (3,), (4, 7)]),
            cache="static" if static else "dynamic",
            # rounded logits move the edges of a support, so what a rule keeps is checked in float32
            dtype="float32" if rules or rng.random() < 0.5 else "bfloat16",
        )

    def draft_of(self, pair: Pair) -> Draft | None:
        """What drafts; None for fused sampling."""
        drafts: dict[Source, Draft | None] = {
            "none": None,
            "model": pair.draft,
            "first layer": FirstLayers(1),
            "look-up": PromptLookup(2),
        }
        return drafts[self.source]

    def speculation(self) -> dict[str, Any]:
        """Arguments of `generate` that a draft needs."""
        if self.source == "none":
            return {}
        return {
            "num_drafts": self.num_drafts,
            "draft_length": self.draft_length,
            "num_top": self.num_top,
            "verifier": self.verifier,
            "structure": self.structure,
            "layout": self.layout,
            # costs are given, so that no clock decides what is drafted
            "adaptive": AdaptiveShape((1, 2, 4), draft_cost=0.3, node_cost=0.01)
            if self.adapts
            else None,
        }

    def laws(self, target: PreTrainedModel, text: Tensor, seen: Tensor) -> Tensor:
        """Of plain sampling at every new token of a text, given what stands before it.

        Args:
            target: of the dtype of the group.
            text: `[batch, length + new]` int64, `length` tokens of prompts padded on the left, then new ones.
            seen: `[batch, length]` int64, 0 at padding.

        Returns:
            `[batch, new, vocab]` float64.
        """
        length = seen.shape[1]
        new = text.shape[1] - length
        mask = torch.cat([seen, seen.new_ones(len(seen), new)], dim=1)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            logits = cast(Any, target)(
                text, attention_mask=mask, position_ids=places
            ).logits.float()
        penalise = RepetitionPenaltyLogitsProcessor(self.penalty)
        laws = []
        for end in range(length, text.shape[1]):
            scores = penalise(cast(Any, text[:, :end]), cast(Any, logits[:, end - 1].clone()))
            kept = truncate(scores, self.rules, temperature=self.temperature)
            laws.append(torch.softmax(kept.double() / self.temperature, dim=-1))
        return torch.stack(laws, dim=1)


def groups_of(rng: random.Random, number: int) -> list[Group]:
    """So many different groups."""
    found: dict[Group, None] = {}
    while len(found) < number:
        found[Group.at_random(rng)] = None
    return list(found)


def pairs() -> dict[str, Pair]:
    """A pair of tiny models a dtype, of the same weights."""
    made = {}
    for name in ("float32", "bfloat16"):
        target, draft = (_tiny_model(seed, getattr(torch, name)) for seed in (0, 1))
        made[name] = Pair(target, draft)
    return made


def _tiny_model(seed: int, dtype: torch.dtype) -> PreTrainedModel:
    """A random Llama whose laws are neither flat nor one-hot."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    model = cast(PreTrainedModel, AutoModelForCausalLM.from_config(config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.5)
    return cast(PreTrainedModel, cast(Any, model).to(dtype).eval())
