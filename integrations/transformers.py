"""transformers: logits processors, fused sampling and speculative decoding for `model.generate`.

    out = model.generate(**inputs, logits_processor=[TopHLogitsProcessor(0.4)])
    out = model.generate(**inputs, custom_generate=FusedSampling(rules=[TopH(0.4)]))
    out = model.generate(**inputs, custom_generate=SpeculativeDecoding(draft_model))
    out = model.generate(**inputs, custom_generate=SpeculativeDecoding(FirstLayers(4)))
    out = generate(model, PromptLookup(3), **inputs, streamer=streamer, stop_strings=["END"])

`model.generate` drops `streamer` and `tokenizer` on the way to a `custom_generate` object, and
refuses `stop_strings` with one, so the objects take all three themselves; `generate` takes them as
`model.generate` does. `transformers_arguments.ARGUMENTS` says what becomes of every argument.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

try:
    import transformers
except ImportError as error:
    raise ImportError(
        "warpdraft.integrations.transformers needs transformers 5.17 or newer: "
        "pip install 'transformers>=5.17'"
    ) from error
if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 17):
    raise ImportError(
        "warpdraft.integrations.transformers needs transformers 5.17 or newer, found "
        f"{transformers.__version__}: pip install --upgrade 'transformers>=5.17'"
    )

from warpdraft.adaptive_shape import AdaptiveShape
from warpdraft.checks import check_streamer
from warpdraft.first_layers import FirstLayers
from warpdraft.prompt_lookup import PromptLookup
from warpdraft.without_adapter import WithoutAdapter

from .transformers_arguments import check_arguments
from .transformers_custom_generate import FusedSampling, SpeculativeDecoding, SpeculativeOutput
from .transformers_grammars import OutlinesLogitsProcessor, XGrammarLogitsProcessor
from .transformers_install import Installation, install
from .transformers_processors import (
    MinPLogitsProcessor,
    RulesLogitsProcessor,
    TopHLogitsProcessor,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer

    from warpdraft.draft_sources import Draft
    from warpdraft.rules import Rule
    from warpdraft.structures import Structure
    from warpdraft.tree_mask import Layout
    from warpdraft.verification import Selector, Verifier

__all__ = [
    "AdaptiveShape",
    "FirstLayers",
    "FusedSampling",
    "Installation",
    "MinPLogitsProcessor",
    "OutlinesLogitsProcessor",
    "PromptLookup",
    "RulesLogitsProcessor",
    "SpeculativeDecoding",
    "SpeculativeOutput",
    "TopHLogitsProcessor",
    "WithoutAdapter",
    "XGrammarLogitsProcessor",
    "custom_generate_folder",
    "generate",
    "install",
]


def generate(
    model: PreTrainedModel,
    draft: Draft | None = None,
    inputs: Tensor | None = None,
    *,
    num_drafts: int = 4,
    draft_length: int = 4,
    adaptive: AdaptiveShape | None = None,
    verifier: str | Verifier | None = None,
    selector: Selector | None = None,
    num_top: int | None = None,
    structure: Structure = "paths",
    node_budget: int | None = None,
    layout: Layout = "auto",
    compile: bool = False,
    rules: Rule | Sequence[Rule] = (),
    seed: int | None = None,
    sequence: Tensor | None = None,
    generator: torch.Generator | None = None,
    trusted: Collection[type] = (),
    streamer: BaseStreamer | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    stop_strings: str | list[str] | None = None,
    **arguments: Any,
) -> Tensor | SpeculativeOutput:
    """`model.generate(inputs, **arguments)` by speculation, or by fused sampling without a draft.

    The parameters are those of `SpeculativeDecoding`; `arguments` are those of `model.generate`.

    Returns:
        `[batch, longest]` int64 token ids, prompts included; with `return_dict_in_generate=True` a
        `SpeculativeOutput`, whose `sequences` they are and whose `stats` say what the run did.

    Raises:
        ValueError: for arguments that `transformers_arguments.ARGUMENTS` lists as refused, and as
            `SpeculativeDecoding`.
        TypeError: as `SpeculativeDecoding`.
    """
    check_streamer(streamer)
    once = None if streamer is None else _EndedOnce(streamer)
    sampling: dict[str, Any] = {
        "rules": rules,
        "seed": seed,
        "sequence": sequence,
        "generator": generator,
        "trusted": trusted,
        "streamer": once,
        "tokenizer": tokenizer,
    }
    try:
        check_arguments(arguments)
        model, arguments, found = _without_stop_strings(model, arguments)
        sampling["stop_strings"] = found if stop_strings is None else stop_strings
        if draft is None:
            custom_generate = FusedSampling(**sampling)
        else:
            custom_generate = SpeculativeDecoding(
                draft,
                num_drafts=num_drafts,
                draft_length=draft_length,
                adaptive=adaptive,
                verifier=verifier,
                selector=selector,
                num_top=num_top,
                structure=structure,
                node_budget=node_budget,
                layout=layout,
                compile=compile,
                **sampling,
            )
        # the stubs take the mixin's method for a tensor
        return cast(Any, model).generate(inputs, custom_generate=custom_generate, **arguments)  # type: ignore[no-any-return]
    finally:
        # whatever went wrong before the run began: nobody waits for a stream that never ends
        if once is not None:
            once.end()


def custom_generate_folder() -> str:
    """The folder for `model.generate(custom_generate=FOLDER, trust_remote_code=True, ...)`."""
    return str(Path(__file__).parent / "hub")


class _EndedOnce:
    """A streamer that can be ended again without a second end."""

    def __init__(self, streamer: BaseStreamer) -> None:
        self.put = streamer.put
        self._streamer: BaseStreamer | None = streamer

    def end(self) -> None:
        if self._streamer is not None:
            self._streamer.end()
            self._streamer = None


def _without_stop_strings(
    model: PreTrainedModel, arguments: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any], str | list[str] | None]:
    """The call without the stop strings of its configs, which `generate` would raise at, and them."""
    found = None
    if model.generation_config.stop_strings is not None:
        found = model.generation_config.stop_strings
        # a second view of the same weights: another thread may be using the model's own config
        model = copy.copy(model)
        model.generation_config = copy.deepcopy(model.generation_config)
        model.generation_config.stop_strings = None
    config = arguments.get("generation_config")
    if config is not None and config.stop_strings is not None:
        found = config.stop_strings
        config = copy.deepcopy(config)
        config.stop_strings = None
        arguments = {**arguments, "generation_config": config}
    return model, arguments, found
