"""Block verification: the most tokens that any rule accepts of one draft path."""

from __future__ import annotations

from warpdraft.abstract_verifiers import DraftBlock, VerifiedBlock
from warpdraft.kernels.noise import Noise

from .optimal_block import OptimalBlock


class Block(OptimalBlock):
    """Sun et al., ICLR 2025, arXiv 2403.10444: `OptimalBlock` with nothing to select, every p the draft's law."""

    name = "block"
    most_drafts = 1

    def __init__(self) -> None:
        super().__init__()

    def verify(self, block: DraftBlock, noise: Noise) -> VerifiedBlock:
        """Verify one path a row; ValueError for more."""
        self.check_paths(block.draft_token_ids.shape[1], rollover=False)
        return super().verify(block, noise)
