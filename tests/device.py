"""The device of the GPU suite."""

from __future__ import annotations

import os

import torch

DRY_RUN = os.environ.get("WARPDRAFT_DRY_RUN") == "1"

DEVICE = "cpu" if DRY_RUN else "cuda" if torch.cuda.is_available() else None
"""Where the GPU suite runs; None where it cannot."""
