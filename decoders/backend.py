"""The choice between plain torch and Triton that every public function offers."""

from __future__ import annotations

from typing import Literal

Backend = Literal["auto", "torch", "triton"]


def check_backend(backend: str) -> None:
    """ValueError unless `backend` can run here."""
    if backend == "triton":
        raise ValueError(
            "backend='triton' is not part of this version: use 'auto' or 'torch', which run everywhere"
        )
    if backend not in ("auto", "torch"):
        raise ValueError(f"backend must be 'auto', 'torch' or 'triton', got {backend!r}")
