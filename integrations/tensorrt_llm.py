"""TensorRT-LLM: top-H, min-p and their family, a request or a batch at a time.

    from tensorrt_llm import LLM, SamplingParams
    from warpdraft import TopH
    from warpdraft.integrations.tensorrt_llm import BatchedTruncation, Truncation

    processor = Truncation(TopH(0.4), temperature=1.5)
    LLM(MODEL).generate(prompts, SamplingParams(temperature=1.5, logits_processor=processor))

    llm = LLM(MODEL, batched_logits_processor=BatchedTruncation(TopH(0.4), temperature=1.5))
    llm.generate(prompts, SamplingParams(temperature=1.5, apply_batched_logits_processor=True))

TensorRT-LLM divides by the temperature afterwards, so it is stated twice, and applies its own
`top_k`, `top_p` and `min_p` after our rules. It takes any callable with the right parameters: these
need nothing from it and can be pickled, as its worker processes ask for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from warpdraft.arguments import TEMPERATURES
from warpdraft.parameters import check_number
from warpdraft.rules import Rule
from warpdraft.truncation import check_rules_of_numbers, truncate

__all__ = ["BatchedTruncation", "Truncation"]


class _Rules:
    """Rules and a temperature for every row that comes."""

    def __init__(self, rules: Rule | Sequence[Rule], *, temperature: float = 1.0) -> None:
        check_number("temperature", temperature, TEMPERATURES)
        self.rules = check_rules_of_numbers(rules)
        self.temperature = temperature

    def apply_inplace(self, logits: Tensor) -> None:
        """Mask logits `[..., vocab]`: `[1, beams, vocab]`, or `[beams, 1, vocab]` from PyTorch."""
        rows = logits.view(-1, logits.shape[-1])
        truncate(rows, self.rules, temperature=self.temperature, out=rows)


class Truncation(_Rules):
    """The logits processor of a request; see `BatchedTruncation` for many.

    Args:
        rules: one rule or several, applied in order.
        temperature: that of the request, at least 0.

    Raises:
        TypeError: a rule is not a rule, or a parameter or the temperature no number.
        ValueError: the temperature is negative or not finite.
    """

    def __call__(
        self,
        req_id: int,
        logits: Tensor,
        token_ids: list[list[int]],
        stream_ptr: int | None,
        client_id: int | None,
    ) -> None:
        """Mask the request's logits in place, on the stream that they are computed on."""
        with _on(stream_ptr, logits.device):
            self.apply_inplace(logits)


class BatchedTruncation(_Rules):
    """The logits processor of all requests that ask for it, with the arguments of `Truncation`."""

    def __call__(
        self,
        req_ids: list[int],
        logits: list[Tensor],
        token_ids: list[list[list[int]]],
        stream_ptr: int | None,
        client_ids: list[int | None],
    ) -> None:
        """Mask the requests' logits in place, on the stream that they are computed on."""
        for rows in logits:
            with _on(stream_ptr, rows.device):
                self.apply_inplace(rows)


def _on(stream_ptr: int | None, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Kernels go to the engine's stream; the PyTorch backend names none, its own is current."""
    if stream_ptr is None:
        return contextlib.nullcontext()
    return torch.cuda.stream(torch.cuda.ExternalStream(stream_ptr, device))
