"""vLLM: top-H, min-p and their family, request by request, on either model runner.

    vllm serve MODEL --logits-processors warpdraft.integrations.vllm:Truncation
    LLM(MODEL, logits_processors=["warpdraft.integrations.vllm:Truncation"])

    SamplingParams(temperature=1.5, extra_args={"top_h": 0.4})              offline
    {"temperature": 1.5, "vllm_xargs": {"top_h": 0.4}, ...}                 over HTTP

`warpdraft.request_parameters` lists the names. `vllm_xargs` takes no nested lists, so `rules` is
given as JSON there. The rules see the law after penalties, bias and grammar, at the request's
temperature; vLLM's own `top_k` and `top_p` come after them, its `min_p` before them on the V1 runner
and after them on V2. Greedy requests need no rules. V2 keeps the processor under speculative
decoding; V1 refuses to start with both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from warpdraft.per_request import PerRequestRules
from warpdraft.request_parameters import rules_of_request

try:
    from vllm.v1.sample.logits_processor import LogitsProcessor as V1LogitsProcessor
    from vllm.v1.sample.logits_processor import MoveDirectionality
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2LogitsProcessor
except ImportError as error:
    raise ImportError(
        "warpdraft.integrations.vllm needs vLLM 0.32 or newer, with both of its interfaces for "
        f"logits processors ({error}): pip install 'vllm>=0.32'"
    ) from error

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState

__all__ = ["Truncation"]


class Truncation(V2LogitsProcessor, V1LogitsProcessor):  # type: ignore[misc]
    """The rules of each request, as a logits processor of whichever model runner vLLM picks.

    The V1 runner calls it after the temperature and keeps a request in the row of the batch that it
    moves around; the V2 runner calls it before the temperature, with a slot for every row.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        device_or_state: torch.device | LogitsProcRequestState,
        is_pin_memory: bool = False,
    ) -> None:
        # the V2 runner hands over two arguments, of which the state of its requests names the device
        self.requests = PerRequestRules(getattr(device_or_state, "device", device_or_state))

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """ValueError for parameters that are not ours to guess; the client gets it as HTTP 400."""
        rules_of_request(sampling_params.extra_args)

    # Model Runner V2

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Take the request's rules into its slot; whether it has any."""
        rules = rules_of_request(sampling_params.extra_args)
        return self.requests.add(req_idx, rules, sampling_params.temperature)

    def apply(self, logits: Tensor, ctx: LogitsContext | None = None) -> Tensor:
        """Mask `logits` float32 `[rows, vocab]` in place."""
        if ctx is None:
            return self.requests.apply_inplace(logits)
        # a request with drafted tokens has several rows, and the host does not know how many
        drafted = len(logits) != len(ctx.idx_mapping_np)
        return self.requests.apply_inplace(
            logits, ctx.expanded_idx_mapping if drafted else ctx.idx_mapping_np
        )

    # the V1 runner

    def is_argmax_invariant(self) -> bool:
        """True: the slot after penalties and temperature, which greedy requests do not pass."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests through the batch: removed, added, moved."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self.requests.remove(row)
        for row, sampling_params, *_ in batch_update.added:
            greedy = sampling_params.temperature == 0
            # other rows come divided by their temperature
            rules = () if greedy else rules_of_request(sampling_params.extra_args)
            self.requests.add(row, rules, temperature=1.0)
        for source, target, direction in batch_update.moved:
            if direction == MoveDirectionality.SWAP:
                self.requests.swap(source, target)
            else:
                self.requests.move(source, target)
