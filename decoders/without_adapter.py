"""Self-speculation of an adapted model: the model under its adapter drafts.

Where an adapter changes a model only a little, what it was made for is its best draft, and its weights are there
already: the draft is another view of the target's modules, in which every adapted layer is the layer under it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .draft_sources import ModelSource
from .model_views import kept_view, view_of
from .tree_mask import model_inside

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class WithoutAdapter(ModelSource):
    """Drafts with the model under the target's adapter (PEFT: LoRA and others that wrap layers).

    Raises:
        ValueError: when used, if the target has no adapted layer, or its adapter is merged into the weights.
    """

    def model_for(self, target: PreTrainedModel) -> PreTrainedModel:
        """See `ModelSource`, also for the errors; the same view as long as the target's weights are."""
        inside = model_inside(target)
        draft = _without_adapter(inside)
        if draft is inside:
            name = type(inside).__name__
            raise ValueError(f"the target {name} has no adapted layer to draft without")
        return kept_view(target, "without adapter", draft)


def _without_adapter(module: Module) -> Any:
    """The module itself, or a view of it with the layers that adapters wrap."""
    under = getattr(module, "base_layer", None)
    if under is not None:
        if getattr(module, "merged", False):
            raise ValueError("the adapter is merged into the target's weights: unmerge it first")
        return _without_adapter(under)
    bare = {name: _without_adapter(child) for name, child in module.named_children()}
    if all(bare[name] is child for name, child in module.named_children()):
        return module
    view = view_of(module)
    view._modules.update(bare)
    return view
