"""10,000 short generations with mixed options: errors, memory and the law.

    python -m warpdraft.bench.soak --generations 10000 --seconds 1500 --results bench/results/soak.json

Every generation takes one of the option groups below, at random: paths, lengths, verifiers,
structures, rules, a repetition penalty, batch sizes, an end token, static caches, dtypes and
temperatures, on two tiny random models. The first new tokens of every group are counted against the
law of plain sampling (a chi-square each, false-alarm rate 0.001 for all groups together); the resident
memory and the number of objects that the collector knows are recorded, and the slopes of both over the
second half of the run stand with their 95 % intervals.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from warpdraft import Epsilon, MinP, TopH, TopK, TopP
from warpdraft.integrations.transformers import SpeculativeDecoding
from warpdraft.rules import Rule
from warpdraft.truncation import truncate
from warpdraft.verification import VERIFIERS, get_verifier

VOCAB = 16
FALSE_ALARMS = 1e-3
RULES: tuple[tuple[Rule, ...], ...] = (
    (),
    (TopH(0.4),),
    (MinP(0.1),),
    (TopK(5), TopP(0.9)),
    (Epsilon(0.02),),
)


@dataclass(frozen=True)
class Group:
    """The options of one kind of generation."""

    verifier: str
    num_drafts: int
    draft_length: int
    structure: str
    rules: tuple[Rule, ...]
    temperature: float
    penalty: float
    batch: int
    end: int | None
    cache: str
    dtype: str

    @classmethod
    def at_random(cls, rng: random.Random) -> Group:
        """A group that the options allow."""
        verifier = rng.choice([name for name in sorted(VERIFIERS) if name != "target_only"])
        rule = get_verifier(verifier)
        iid = rule.drafts == "iid" and verifier != "greedy_drafts"
        return cls(
            verifier=verifier,
            num_drafts=rule.most_drafts or rng.choice([1, 2, 4]),
            draft_length=rng.choice([1, 2, 4]),
            structure="rollover"
            if iid and not rule.most_drafts and rng.random() < 0.25
            else "paths",
            rules=rng.choice(RULES),
            temperature=rng.choice([0.5, 1.0, 1.5]),
            penalty=rng.choice([1.0, 1.0, 1.3]),
            batch=rng.choice([1, 2, 8]),
            end=rng.choice([None, 3]),
            cache="dynamic",
            dtype=rng.choice(["float32", "float32", "bfloat16"]),
        ).with_cache(iid and rng.random() < 0.25)

    def with_cache(self, static: bool) -> Group:
        """On static caches, where the structure has a fixed shape."""
        static = static and self.structure == "paths"
        return Group(**{**self.__dict__, "cache": "static" if static else "dynamic"})


def tiny_model(seed: int, dtype: torch.dtype) -> PreTrainedModel:
    """A random Llama whose laws are neither flat nor one-hot."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = cast(PreTrainedModel, AutoModelForCausalLM.from_config(config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.5)
    return cast(PreTrainedModel, cast(Any, model).to(dtype).eval())


class Soak:
    """The models, the groups and what came out of them."""

    def __init__(self, seed: int, groups: int) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.groups = [Group.at_random(self.rng) for _ in range(groups)]
        self.models = {
            name: (tiny_model(0, getattr(torch, name)), tiny_model(1, getattr(torch, name)))
            for name in ("float32", "bfloat16")
        }
        self.prompt = torch.tensor([[1, 5, 9]])
        self.first: list[Counter[int]] = [Counter() for _ in self.groups]
        self.errors: Counter[str] = Counter()

    def generate(self, number: int) -> None:
        """One generation of a group at random."""
        place = self.rng.randrange(len(self.groups))
        group = self.groups[place]
        target, draft = self.models[group.dtype]
        options: dict[str, Any] = {
            "num_drafts": group.num_drafts,
            "draft_length": group.draft_length,
            "verifier": group.verifier,
            "structure": group.structure,
        }
        spec = SpeculativeDecoding(draft, rules=group.rules, seed=self.seed + number, **options)
        prompts = self.prompt.expand(group.batch, -1)
        text: Tensor = cast(Any, target).generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            temperature=group.temperature,
            repetition_penalty=group.penalty,
            top_k=0,
            eos_token_id=group.end,
            pad_token_id=0,
            max_new_tokens=self.rng.randrange(2, 9),
            cache_implementation=group.cache,
            disable_compile=True,
            custom_generate=spec,
        )
        self.first[place].update(text[:, self.prompt.shape[1]].tolist())

    def law(self, group: Group) -> np.ndarray[Any, Any]:
        """The first new token's, from one plain call of the target."""
        target, _ = self.models[group.dtype]
        with torch.no_grad():
            logits = cast(Any, target)(self.prompt).logits[:, -1].float()
        seen = self.prompt[0]
        held = logits[0, seen]
        penalised = torch.where(held > 0, held / group.penalty, held * group.penalty)
        logits[0, seen] = penalised
        kept = truncate(logits, group.rules, temperature=group.temperature)
        law: np.ndarray[Any, Any] = torch.softmax(
            kept[0].double() / group.temperature, dim=-1
        ).numpy()
        return law

    def p_values(self) -> list[float]:
        """Of the groups that have tokens enough for five expected in two cells."""
        found = []
        for group, counts in zip(self.groups, self.first, strict=True):
            seen = np.array([counts[token] for token in range(VOCAB)])
            expected = self.law(group) * seen.sum()
            if seen[expected == 0].sum():
                found.append(0.0)
                continue
            large = expected >= 5
            cells = [(seen[large], expected[large])]
            rest = (seen[~large].sum(), expected[~large].sum())
            observed, wanted = np.append(cells[0][0], rest[0]), np.append(cells[0][1], rest[1])
            observed, wanted = observed[wanted > 0], wanted[wanted > 0]
            if len(wanted) >= 2 and wanted.min() >= 1:
                statistic = ((observed - wanted) ** 2 / wanted).sum()
                found.append(float(stats.chi2.sf(statistic, len(wanted) - 1)))
        return found


def resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def slope(points: Sequence[tuple[int, float]]) -> tuple[float, float, float]:
    """Growth a 1,000 generations over the second half, with its 95 % interval."""
    late = np.array(points[len(points) // 2 :], dtype=float)
    if len(late) < 4:
        return (float("nan"),) * 3
    fit = stats.linregress(late[:, 0] / 1000, late[:, 1])
    half = float(stats.t.ppf(0.975, len(late) - 2) * fit.stderr)
    return float(fit.slope), float(fit.slope) - half, float(fit.slope) + half


def soak(generations: int, seconds: float, seed: int, groups: int) -> dict[str, Any]:
    """Run, and say what happened."""
    run = Soak(seed, groups)
    memory: list[tuple[int, float]] = []
    objects: list[tuple[int, float]] = []
    start, number = time.monotonic(), 0
    every = max(1, generations // 200)
    while number < generations and time.monotonic() - start < seconds:
        try:
            run.generate(number)
        except (ValueError, TypeError, RuntimeError, IndexError, AssertionError) as error:
            run.errors[f"{type(error).__name__}: {error}"[:200]] += 1
        number += 1
        if number % every == 0:
            gc.collect()
            memory.append((number, resident()))
            objects.append((number, float(len(gc.get_objects()))))
    chances = run.p_values()
    least = min(chances, default=1.0)
    return {
        "command": f"python -m warpdraft.bench.soak --generations {generations} --seed {seed}",
        "asked_for": generations,
        "generations": number,
        "rows": sum(sum(counts.values()) for counts in run.first),
        "groups": len(run.groups),
        "errors": dict(run.errors),
        "resident_MiB": [round(value, 1) for _, value in memory[:: max(1, len(memory) // 20)]],
        "resident_MiB_per_1000": [round(value, 3) for value in slope(memory)],
        "objects_per_1000": [round(value, 1) for value in slope(objects)],
        "chi_square_groups": len(chances),
        "least_p": least,
        "false_alarm_rate": FALSE_ALARMS,
        "law_holds": least > FALSE_ALARMS / max(1, len(chances)),
    }


def main() -> None:
    """Run from the command line, print the result and write it."""
    parser = argparse.ArgumentParser(description="10,000 short generations with mixed options.")
    parser.add_argument("--generations", type=int, default=10000)
    parser.add_argument("--seconds", type=float, default=1500.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--groups", type=int, default=80)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = soak(options.generations, options.seconds, options.seed, options.groups)
    print(json.dumps(found, indent=1))
    if options.results:
        options.results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
