"""A training run in stages that lasts a given time, saves itself and can be resumed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from transformers import LlamaForCausalLM

WARM_UP = 0.02
WEIGHT_DECAY = 0.1
CHECKPOINT_SECONDS = 120


@dataclass(frozen=True)
class Stage:
    """A part of a training run: its share of the time, its batches and its loss.

    Compiling a loss takes a minute or more: only the longest stages earn it back.
    """

    name: str
    share: float
    batch: Callable[[Generator], tuple[Tensor, ...]]
    loss: Callable[..., Tensor]
    compiled: bool = False


def optimizers_of(model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed_tokens" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed_tokens" in name]
    muon = torch.optim.Muon(
        matrices, lr=learning_rate, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    return [muon, adamw]


class Run:
    """A training run that can stop at any step and go on from its last checkpoint."""

    def __init__(
        self, model: LlamaForCausalLM, learning_rate: float, seconds: float, checkpoint: Path
    ) -> None:
        self.model, self.learning_rate, self.seconds = model, learning_rate, seconds
        self.optimizers = optimizers_of(model, learning_rate)
        self.checkpoint = checkpoint
        self.step, self.elapsed = 0, 0.0
        self.tokens: dict[str, int] = {}
        self.losses: list[dict[str, Any]] = []
        if checkpoint.exists():
            self._resume()

    def train(self, stages: list[Stage], seed: int, measure: Callable[[], float]) -> None:
        """Go through the stages; `measure` gives the held-out figure that is recorded."""
        start, last_save = time.monotonic() - self.elapsed, self.elapsed
        losses = {
            stage.name: torch.compile(stage.loss, dynamic=False) if stage.compiled else stage.loss
            for stage in stages
        }
        recent: list[float] = []
        while (progress := self.elapsed / self.seconds) < 1:
            stage = stage_at(stages, progress)
            batch = stage.batch(Generator().manual_seed(seed * 1_000_003 + self.step))
            recent.append(self._update(losses[stage.name](self.model, *batch), progress))
            self.step += 1
            self.tokens[stage.name] = self.tokens.get(stage.name, 0) + batch[0].numel()
            self.elapsed = time.monotonic() - start
            if self.elapsed - last_save > CHECKPOINT_SECONDS or self.elapsed >= self.seconds:
                self._record(stage.name, sum(recent) / len(recent), measure())
                self._save()
                last_save, recent = self.elapsed, []

    def summary(self) -> dict[str, Any]:
        """What training.json keeps of this run."""
        return {
            "parameters": self.model.num_parameters(),
            "seconds": round(self.elapsed),
            "steps": self.step,
            "tokens": self.tokens,
            "tokens_per_second": round(sum(self.tokens.values()) / self.elapsed),
            "peak_learning_rate": self.learning_rate,
            "losses": self.losses,
        }

    def _update(self, loss: Tensor, progress: float) -> float:
        # warm-up, then straight down to zero
        scale = min(progress / WARM_UP + 1e-2, 1.0) * max(1.0 - progress, 0.01)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = self.learning_rate * scale
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item()

    def _record(self, stage: str, loss: float, held_out: float) -> None:
        entry = {"stage": stage, "seconds": round(self.elapsed), "step": self.step}
        entry |= {"tokens": sum(self.tokens.values()), "training": round(loss, 4)}
        self.losses.append(entry | {"held_out": round(held_out, 4)})
        print(" ".join(f"{key} {value}" for key, value in self.losses[-1].items()), flush=True)

    def _save(self) -> None:
        keep = ("step", "elapsed", "tokens", "losses")
        state = {key: getattr(self, key) for key in keep} | {"model": self.model.state_dict()}
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state.pop("model"))
        for optimizer, saved in zip(self.optimizers, state.pop("optimizers"), strict=True):
            optimizer.load_state_dict(saved)
        vars(self).update(state)
        print(f"resumed {self.checkpoint.name} at step {self.step}", flush=True)


def stage_at(stages: list[Stage], progress: float) -> Stage:
    """The stage that a run is in after a share `progress` of its time."""
    ends = itertools.accumulate(stage.share for stage in stages)
    return next((s for s, end in zip(stages, ends, strict=True) if progress < end), stages[-1])
