"""The providers by name, in the order of the table."""

from __future__ import annotations

from .libraries import FlashInfer, Transformers, Vllm
from .library import Library
from .provider import Provider
from .torch_forms import HandWritten, SortReference

PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Library(),
        SortReference(),
        SortReference(compiled=True),
        HandWritten(),
        HandWritten(compiled=True),
        Transformers(),
        FlashInfer(),
        Vllm(),
    )
}
