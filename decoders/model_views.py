"""Views of a model: other modules around the same weights, kept as long as the model is."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

_views: weakref.WeakKeyDictionary[PreTrainedModel, dict[Hashable, PreTrainedModel]] = (
    weakref.WeakKeyDictionary()
)


def view_of(module: Module) -> Any:
    """A module with the same contents, whose tables of contents can be changed without touching the other's."""
    view = copy.copy(module)
    # a forward that accelerate put in place would run the old module's contents
    for name in ("forward", "_old_forward", "_hf_hook"):
        view.__dict__.pop(name, None)
    for name, value in vars(view).items():
        if isinstance(value, dict):
            view.__dict__[name] = value.copy()
    return view


def kept_view(model: PreTrainedModel, key: Hashable, view: PreTrainedModel) -> PreTrainedModel:
    """The view that was made of the model under this key, if it still has the same contents as the new one.

    What was compiled for it is then found again, in every run.
    """
    views = _views.setdefault(model, {})
    known = views.get(key)
    if known is None or _contents(known) != _contents(view):
        views[key] = view
    return views[key]


def _contents(view: PreTrainedModel) -> list[Any]:
    """What a view is made of: its weights, by identity, and its configuration."""
    weights = [*view.parameters(), *view.buffers()]
    return [*map(id, weights), view.config.to_dict()]
