"""llama-cpp-python: top-H, min-p and their family on its numpy scores.

    from llama_cpp import Llama, LogitsProcessorList
    from warpdraft import TopH
    from warpdraft.integrations.llama_cpp import Truncation

    processors = LogitsProcessorList([Truncation(TopH(0.4), temperature=1.5)])
    Llama("model.gguf")("Once", temperature=1.5, top_k=0, top_p=1, min_p=0, logits_processor=processors)

llama.cpp calls it before everything else and divides by the temperature last. So `temperature` is
stated twice; `top_k=40`, `top_p=0.95` and `min_p=0.05`, the engine's defaults, come after our rules
unless they are switched off; and a `grammar` may forbid all that they leave. `logit_bias` makes
llama-cpp-python 0.3.36 drop every logits processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from warpdraft.arguments import TEMPERATURES
from warpdraft.parameters import check_number
from warpdraft.rules import Rule
from warpdraft.truncation import check_rules_of_numbers, truncate

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Truncation"]


class Truncation:
    """Rules for one call of `Llama`, or for all of them: nothing is remembered.

    Args:
        rules: one rule or several, applied in order.
        temperature: that of the call, at least 0.

    Raises:
        TypeError: a rule is not a rule, or a parameter or the temperature no number.
        ValueError: the temperature is negative or not finite.
    """

    def __init__(self, rules: Rule | Sequence[Rule], *, temperature: float = 1.0) -> None:
        # llama.cpp prints the errors of a processor and goes on: they must come now
        check_number("temperature", temperature, TEMPERATURES)
        self.rules = check_rules_of_numbers(rules)
        self.temperature = temperature

    def __call__(
        self, input_ids: npt.NDArray[np.intc], scores: npt.NDArray[np.single]
    ) -> npt.NDArray[np.single]:
        """`scores` `[vocab]`, any strides, with -inf outside the support: a new array."""
        row = torch.from_numpy(np.ascontiguousarray(scores))[None]
        truncated: npt.NDArray[np.single] = truncate(
            row, self.rules, temperature=self.temperature
        ).numpy()[0]
        return truncated
