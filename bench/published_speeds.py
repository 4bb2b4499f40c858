"""Speeds that others measured and published, to set the cost model beside.

Plain sampling in 16 bits on one device:

    gpt-fast        https://github.com/pytorch-labs/gpt-fast (README, "Benchmarks"): Llama 2 7B, prompts of 5 tokens,
                    200 new ones; the A100 was limited to 330 W
    SGLang          https://docs.sglang.io/advanced_features/speculative_decoding.html: Llama 3.1 8B, MT-bench
    NIM             https://docs.nvidia.com/nim/llama-3-1-nemotron-safety-guard-8b/performance.md: Llama 3.1 8B's shape,
                    1,000 tokens in and 1,000 out, concurrency 1 and 100; prefill is in the throughput, which must be
                    tokens a second, though the page heads it "inputs/s"

EAGLE and EAGLE-3 drafting chains for Llama 3.1 8B, as ratios to the same engine without drafts, from tables 3 and 5 of
https://arxiv.org/abs/2503.01840 (SGLang 0.4.4 on an H100, 3 tokens; vLLM on an A100, 2 tokens; the text names another
GPU for the latter). Their acceptance by position is read off that paper's figure 7, tables and figure from a
transcript. The draft is counted as one layer of the target under its head, the fusing matrix before it left out.

SpecTr's published ratios are not here: the sizes of its models, PaLM 2, are not public. Nor are MagicDec's: eight GPUs
share a model there, and communication is no part of the cost model.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import mul


@dataclass(frozen=True, slots=True)
class PlainSpeed:
    """Plain sampling.

    Attributes:
        source: who measured.
        machine: a name of `machines.GPUS`.
        model: a name of `model_shape.PUBLISHED`.
        batch: texts.
        context: mean tokens of a text, assumed where the source does not say.
        prompt_share: prompt tokens that were read in the measured time, for every new token.
        tokens_per_second: of all texts.
    """

    source: str
    machine: str
    model: str
    batch: int
    context: int
    prompt_share: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class DraftedRatios:
    """One chain of drafts.

    Attributes:
        source: engine and draft.
        machine: a name of `machines.GPUS`.
        model: a name of `model_shape.PUBLISHED`.
        context: tokens of a text, assumed.
        acceptance: by position, of those accepted before.
        ratios: to plain sampling, by batch size.
    """

    source: str
    machine: str
    model: str
    context: int
    acceptance: tuple[float, ...]
    ratios: dict[int, float]

    @property
    def block_efficiency(self) -> float:
        """Tokens a target call: 1 + a_1 + a_1 a_2 + ..."""
        efficiency: float = 1 + sum(accumulate(self.acceptance, mul))
        return efficiency


PLAIN_SPEEDS = (
    PlainSpeed("gpt-fast", "a100", "llama-2-7b", 1, 105, 0.0, 104.9),
    PlainSpeed("SGLang", "h100", "llama-8b", 1, 512, 0.0, 158.34),
    PlainSpeed("NIM", "gh200", "llama-8b", 1, 1500, 1.0, 165.83),
    PlainSpeed("NIM", "gh200", "llama-8b", 100, 1500, 1.0, 7590.53),
)

_SIZES = (2, 4, 8, 16, 24, 32, 48, 56, 64)


def _ratios(*values: float) -> dict[int, float]:
    return dict(zip(_SIZES, values, strict=False))


DRAFTED_RATIOS = (
    DraftedRatios(
        "SGLang, EAGLE",
        "h100",
        "llama-8b",
        512,
        (0.71, 0.69, 0.66),
        _ratios(1.40, 1.38, 1.23, 1.02, 0.93, 0.94, 0.88, 0.99, 0.99),
    ),
    DraftedRatios(
        "SGLang, EAGLE-3",
        "h100",
        "llama-8b",
        512,
        (0.79, 0.79, 0.78),
        _ratios(1.81, 1.82, 1.62, 1.48, 1.39, 1.32, 1.38, 1.34, 1.38),
    ),
    DraftedRatios(
        "vLLM, EAGLE",
        "a100",
        "llama-8b",
        512,
        (0.71, 0.69),
        _ratios(1.30, 1.25, 1.21, 1.10, 1.03, 0.93, 0.82, 0.71),
    ),
    DraftedRatios(
        "vLLM, EAGLE-3",
        "a100",
        "llama-8b",
        512,
        (0.79, 0.79),
        _ratios(1.75, 1.68, 1.58, 1.49, 1.42, 1.36, 1.21, 1.01),
    ),
)
