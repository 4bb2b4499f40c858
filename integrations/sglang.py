"""SGLang: top-H, min-p and their family, request by request.

    python -m sglang.launch_server --model-path MODEL --enable-custom-logit-processor

    engine = sglang.Engine(model_path=MODEL, enable_custom_logit_processor=True)
    engine.generate(
        prompt,
        {"temperature": 1.5, "custom_params": {"top_h": 0.4}},
        custom_logit_processor=Truncation.to_str(),
    )

Over HTTP `sampling_params` and `custom_logit_processor` stand in the JSON of `/generate`. `to_str`
names the class, so the server needs warpdraft too. `warpdraft.request_parameters` lists the names.
The rules see the law after penalties, bias and grammar, at the request's temperature; SGLang's own
`top_k`, `top_p` and `min_p` come after them. Greedy requests, which are those of `top_k` 1, need no
rules. Of SGLang's speculative algorithms only DFlash calls these processors.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from torch import Tensor

from warpdraft.per_request import PerRequestRules
from warpdraft.request_parameters import rules_of_request
from warpdraft.rules import Rule

try:
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor
except ImportError as error:
    raise ImportError(
        "warpdraft.integrations.sglang needs SGLang 0.5.23 or newer, with its custom logit "
        f"processors ({error}): pip install 'sglang>=0.5.23'"
    ) from error

__all__ = ["Truncation"]


class Truncation(CustomLogitProcessor):  # type: ignore[misc]
    """The rules of each request, as SGLang's custom logit processor.

    Bad parameters end their own request with HTTP 400 and one line: an error raised here would stop
    the server for everybody.
    """

    def __init__(self) -> None:
        # SGLang keeps one of us a batch, whose requests have the same mappings step after step
        self._parameters: list[Mapping[str, Any] | None] = []
        self._requests: PerRequestRules | None = None

    def __call__(
        self, logits: Tensor, custom_param_list: Sequence[Mapping[str, Any] | None] | None = None
    ) -> Tensor:
        """Mask `logits` `[rows, vocab]`, a copy that SGLang made for us; one mapping a row."""
        given = list(custom_param_list or ())
        if self._requests is None or not _same(given, self._parameters):
            self._parameters = given
            self._requests = PerRequestRules(logits.device)
            for row, parameters in enumerate(given):
                self._requests.add(row, *_rules_and_temperature(parameters))
        return self._requests.apply_inplace(logits)


def _same(one: Sequence[object], other: Sequence[object]) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _rules_and_temperature(
    parameters: Mapping[str, Any] | None,
) -> tuple[tuple[Rule, ...], float]:
    """What a request asks for; no rules where it is greedy or cannot be understood."""
    # SGLang names the request in mappings only
    if not isinstance(parameters, Mapping) or "__req__" not in parameters:
        return (), 1.0
    request = parameters["__req__"]
    sampling = request.sampling_params
    # a temperature of 0 has become top_k = 1 here
    if sampling.top_k == 1:
        return (), 1.0
    try:
        return rules_of_request(parameters), sampling.temperature
    except ValueError as error:
        from sglang.srt.managers.schedule_batch import FINISH_ABORT

        request.to_finish = FINISH_ABORT(str(error), HTTPStatus.BAD_REQUEST, "BadRequestError")
        return (), 1.0
