"""Kernels of other libraries: transformers' warpers everywhere, flashinfer's and vLLM's where they can be imported.

Each is called as its own engine calls it, from logits, softmax included.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from warpdraft import MinP, TopH, TopK, TopP
from warpdraft.bench.throughput.inputs import Block, Inputs, Rows
from warpdraft.bench.throughput.kernels import Kernel
from warpdraft.rules import Rule

from .provider import Call, NotMeasured


class Transformers:
    """The warpers in the order of the rules; a draw is their softmax and `torch.multinomial`, as in `generate`."""

    name = "transformers"

    def prepare(self, kernel: Kernel, inputs: Inputs, most_kept: int) -> Call | None:
        """Its top-H is a rule of its own, over 100 tokens: the gate holds it to that one."""
        if isinstance(inputs, Block):
            return None
        warpers = [self._warper(rule) for rule in kernel.rules]
        if kernel.temperature != 1:
            heat = self._classes().TemperatureLogitsWarper(kernel.temperature)
            warpers.insert(0, heat)
        token_ids = torch.zeros(1, 1, dtype=torch.int64, device=inputs.logits.device)

        def run(rows: Rows) -> object:
            # `generate` hands its warpers float32
            scores = rows.logits.float()
            for warper in warpers:
                scores = warper(token_ids, scores)
            if kernel.output == "logits":
                return scores
            return torch.multinomial(torch.softmax(scores.float(), dim=-1), num_samples=1)[:, 0]

        own = tuple(
            TopH(float(rule.value), variant="transformers") if isinstance(rule, TopH) else rule
            for rule in kernel.rules
        )
        note = "its own top-H" if own != kernel.rules else ""
        return Call(run, own, note=note)

    def _warper(self, rule: Rule) -> Any:
        classes, value = self._classes(), float(rule.value)
        if isinstance(rule, TopK):
            return classes.TopKLogitsWarper(int(value))
        if isinstance(rule, TopP):
            return classes.TopPLogitsWarper(value)
        if isinstance(rule, MinP):
            return classes.MinPLogitsWarper(value)
        assert isinstance(rule, TopH), rule
        return classes.TopHLogitsWarper(value)

    @staticmethod
    def _classes() -> Any:
        return _imported("transformers.generation.logits_process", "transformers")


class FlashInfer:
    """flashinfer's sampling kernels, which take probabilities, and its top-k mask."""

    name = "flashinfer"

    def prepare(self, kernel: Kernel, inputs: Inputs, most_kept: int) -> Call | None:
        """Min-p, top-p and top-k, one at a time."""
        run = self._run(kernel)
        if isinstance(inputs, Block) or run is None:
            return None
        if inputs.logits.device.type != "cuda":
            raise NotMeasured("flashinfer needs a CUDA device")
        return Call(run, kernel.rules)

    @staticmethod
    def _run(kernel: Kernel) -> Callable[[Rows], object] | None:
        if len(kernel.rules) != 1 or kernel.temperature != 1:
            return None
        rule = kernel.rules[0]
        value = float(rule.value)
        names: dict[type[Rule], str] = {
            MinP: "min_p_sampling_from_probs",
            TopP: "top_p_sampling_from_probs",
            TopK: "top_k_sampling_from_probs",
        }
        if type(rule) not in names or (kernel.output == "logits" and not isinstance(rule, TopK)):
            return None
        sampling = _imported("flashinfer.sampling", "flashinfer")
        parameter = int(value) if isinstance(rule, TopK) else value
        if kernel.output == "logits":
            return lambda rows: sampling.top_k_mask_logits(rows.logits.float(), parameter)
        draw = getattr(sampling, names[type(rule)])
        return lambda rows: draw(sampling.softmax(rows.logits.float()), parameter)


class Vllm:
    """vLLM's top-k, top-p and min-p, which mask the logits in place, and its exponential race."""

    name = "vllm"

    def prepare(self, kernel: Kernel, inputs: Inputs, most_kept: int) -> Call | None:
        """One rule at a time."""
        if isinstance(inputs, Block) or len(kernel.rules) != 1 or kernel.temperature != 1:
            return None
        rule = kernel.rules[0]
        if not isinstance(rule, MinP | TopP | TopK):
            return None
        sampler = _imported("vllm.v1.sample.ops.topk_topp_sampler", "vllm")
        if inputs.logits.device.type != "cuda":
            raise NotMeasured("vllm's kernels need a CUDA device")
        mask = self._mask(rule, sampler, inputs.logits)

        def run(rows: Rows) -> object:
            # its sampler turns logits to float32 first
            masked = mask(rows.logits.float())
            if kernel.output == "logits":
                return masked
            return sampler.random_sample(masked.softmax(dim=-1, dtype=torch.float32), {})

        return Call(run, kernel.rules)

    @staticmethod
    def _mask(rule: Rule, sampler: Any, like: Tensor) -> Callable[[Tensor], Tensor]:
        batch, device = len(like), like.device
        if isinstance(rule, MinP):
            apply = _imported("vllm.v1.worker.gpu.sample.min_p", "vllm").apply_min_p
            shares = torch.full((batch,), float(rule.value), device=device)
            rows = torch.arange(batch, dtype=torch.int32, device=device)

            def min_p(logits: Tensor) -> Tensor:
                apply(logits, rows, shares)
                return logits

            return min_p
        if isinstance(rule, TopK):
            counts = torch.full((batch,), int(rule.value), dtype=torch.int32, device=device)
            return lambda logits: sampler.apply_top_k_top_p(logits, counts, None)
        masses = torch.full((batch,), float(rule.value), device=device)
        return lambda logits: sampler.apply_top_k_top_p(logits, None, masses)


def _imported(module: str, library: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:
        # engines fail at their import in many ways, most of them no ImportError
        raise NotMeasured(f"{library} cannot be imported ({type(error).__name__})") from error
