"""A verifier that passes everything on to another one, for benchmarks that look on."""

from __future__ import annotations

from torch import Tensor

from warpdraft.kernels.noise import Noise
from warpdraft.verification import DraftBlock, Drafts, VerifiedBlock, Verifier


class WatchedVerifier(Verifier):
    """Behaves like the verifier inside; subclasses look at what passes."""

    def __init__(self, inner: Verifier) -> None:
        self.inner = inner

    @property
    def name(self) -> str:  # type: ignore[override]
        """That of the verifier inside."""
        return self.inner.name

    @property
    def drafts(self) -> Drafts:  # type: ignore[override]
        """Those of the verifier inside."""
        return self.inner.drafts

    def num_top(self, num_drafts: int) -> int:
        """Those of the verifier inside."""
        return self.inner.num_top(num_drafts)

    def verify(self, block: DraftBlock, noise: Noise) -> VerifiedBlock:
        """What the verifier inside does."""
        return self.inner.verify(block, noise)

    def survival(self, block: DraftBlock) -> Tensor:
        """That of the verifier inside."""
        return self.inner.survival(block)
