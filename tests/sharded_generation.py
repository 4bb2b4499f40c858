"""What a rank runs in `test_tensor_parallel.py`: `python sharded_generation.py FOLDER`, under torchrun's variables.

The texts of rank r go to FOLDER/texts-r.pt.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import distributed
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList
from transformers.distributed import DistributedConfig

from warpdraft.adaptive_shape import AdaptiveShape
from warpdraft.first_layers import FirstLayers
from warpdraft.integrations.transformers import FusedSampling, SpeculativeDecoding
from warpdraft.same_text import SameText

PROMPTS = torch.tensor([[5, 9, 2, 30, 41], [0, 0, 7, 7, 12]])
CALL = {
    "input_ids": PROMPTS,
    "attention_mask": (PROMPTS != 0).long(),
    "do_sample": True,
    "top_k": 0,
    "max_new_tokens": 9,
}


class OneRankStops(StoppingCriteria):
    """A clock that runs differently on every rank: the first one stops at 8 tokens, the others never."""

    def __init__(self, rank):
        self.rank = rank

    def __call__(self, input_ids, scores, **kwargs):
        stopped = self.rank == 0 and input_ids.shape[1] >= 8
        return torch.full((len(input_ids),), stopped)


def texts(target, drafts, rank, names=None):
    """Texts of one rank, by what wrote them; of the cases with these names, or of all."""
    sharded, whole = drafts
    stop = StoppingCriteriaList([OneRankStops(rank)])
    adaptive = AdaptiveShape((1, 3), (1, 2))
    cases = {
        "seeded, sharded draft": (SpeculativeDecoding(sharded, num_drafts=3, seed=5), {}),
        "seeded, whole draft": (SpeculativeDecoding(whole, num_drafts=3, seed=5), {}),
        "seeded, own layers": (SpeculativeDecoding(FirstLayers(1), seed=5), {}),
        "seeded, fused": (FusedSampling(seed=5), {}),
        "sharded draft": (SpeculativeDecoding(sharded, num_drafts=3), {}),
        "whole draft": (SpeculativeDecoding(whole, num_drafts=3, layout="paths"), {}),
        "whole target": (SpeculativeDecoding(sharded, num_drafts=2), {"model": whole}),
        "rollover": (SpeculativeDecoding(whole, num_drafts=3, structure="rollover"), {}),
        "static": (SpeculativeDecoding(whole, num_drafts=2), {"cache_implementation": "static"}),
        "adaptive": (SpeculativeDecoding(whole, adaptive=adaptive), {}),
        "fused": (FusedSampling(), {}),
        "stopped": (SpeculativeDecoding(whole), {"stopping_criteria": stop}),
    }
    written = {}
    for name in names or cases:
        custom_generate, arguments = cases[name]
        # every rank's generator stands elsewhere
        torch.manual_seed(100 + rank)
        call = CALL | arguments
        model = call.pop("model", target)
        written[name] = model.generate(**call, custom_generate=custom_generate)
    return written


def with_rounding(model, rank):
    """Make every logit of this rank's calls differ from the other ranks', by far more than rounding would."""
    noise = torch.Generator().manual_seed(rank)

    def perturb(module, arguments, output):
        output.logits = output.logits + torch.randn(output.logits.shape, generator=noise)
        return output

    return model.register_forward_hook(perturb)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)

    def load(name, **options):
        return AutoModelForCausalLM.from_pretrained(folder / name, **options)

    config = DistributedConfig(tp_size=ranks, fsdp_size=1, tp_plan="auto")
    tensor_parallel = {"distributed_config": config}
    target, draft = (load(name, **tensor_parallel) for name in ("target", "draft"))
    drafts = draft, load("draft")
    written = texts(target, drafts, rank)
    logits = target(PROMPTS).logits
    for model in (target, *drafts):
        with_rounding(model, rank)
    unlike = texts(target, drafts, rank, ("sharded draft", "whole draft", "rollover", "fused"))
    # the same without the agreement: ranks that may differ do
    SameText.tensor = lambda self, mine: mine
    torch.manual_seed(100 + rank)
    alone = target.generate(**CALL, custom_generate=FusedSampling())
    torch.save(
        {"texts": written, "unlike": unlike, "alone": alone, "logits": logits.detach()},
        folder / f"texts-{rank}.pt",
    )
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
