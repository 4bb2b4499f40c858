"""`model.generate(custom_generate=FOLDER, trust_remote_code=True, ...)`, FOLDER being the one above.

The arguments are those of `model.generate`, of which `assistant_model` is the draft, and those of
`warpdraft.integrations.transformers.generate`. `rules` may also name its rules: `{"top_h": 0.4}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from warpdraft.integrations.transformers import generate as speculate
from warpdraft.request_parameters import rules_of_request


def generate(
    model: Any,
    inputs: Any = None,
    *,
    assistant_model: Any = None,
    rules: Any = (),
    **arguments: Any,
) -> Any:
    """Speculative decoding with `assistant_model` as the draft, fused sampling without one."""
    if isinstance(rules, Mapping):
        rules = rules_of_request(rules)
    return speculate(model, assistant_model, inputs, rules=rules, **arguments)
