"""Peak memory of long generations, less the key-value caches: it must not grow with the text.

    python bench/peak_memory.py --new-tokens 512 --new-tokens 4096

Each length runs in a process of its own with the built-in pair and one thread. Printed: the largest resident size, the
bytes of both models' caches at the end of the text, and their difference. glibc keeps freed blocks of growing sizes in
its heap, where they count as resident; with MALLOC_MMAP_THRESHOLD_=131072 in the environment it gives them back.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from typing import Annotated

import typer

_MEBIBYTE = 2**20


def measure(new_tokens: int, num_drafts: int, draft_length: int, verifier: str) -> dict[str, float]:
    """Generate in this process, which has done nothing else, and look at its largest size."""
    import torch

    from warpdraft.bench.model_pair import load_pair
    from warpdraft.builtin_pair import held_out_prompts
    from warpdraft.integrations.transformers import generate

    torch.set_num_threads(1)
    pair = load_pair()
    assert pair.draft is not None
    inputs = pair.encode(held_out_prompts()[:1], raw=True)
    # the end token would end the text where it likes
    pair.target.generation_config.eos_token_id = None
    output = generate(
        pair.target,
        pair.draft,
        **inputs,
        do_sample=True,
        top_k=0,
        top_p=1.0,
        max_new_tokens=new_tokens,
        num_drafts=num_drafts,
        draft_length=draft_length,
        verifier=verifier,
        seed=0,
    )
    assert isinstance(output, torch.Tensor)
    # kibibytes on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    slots = output.shape[1]
    caches = sum(slots * bytes_of_slot(model.config) for model in (pair.target, pair.draft))
    return {"new_tokens": slots - inputs["input_ids"].shape[1], "peak": peak, "caches": caches}


def bytes_of_slot(config: object) -> float:
    """Mebibytes of one token in a float32 cache."""
    layers, heads = config.num_hidden_layers, config.num_key_value_heads  # type: ignore[attr-defined]
    return float(layers * 2 * heads * config.head_dim * 4 / _MEBIBYTE)  # type: ignore[attr-defined]


def main(
    new_tokens: Annotated[list[int], typer.Option(help="A length; give two or more.")],
    num_drafts: int = 4,
    draft_length: int = 8,
    verifier: str = "optimal_block",
    alone: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Print a line for each length and the growth of the last over the first."""
    if alone:
        typer.echo(json.dumps(measure(new_tokens[0], num_drafts, draft_length, verifier)))
        return
    rest = []
    for length in new_tokens:
        command = [sys.executable, __file__, "--alone", "--new-tokens", str(length)]
        command += ["--num-drafts", str(num_drafts), "--draft-length", str(draft_length)]
        run = subprocess.run(
            [*command, "--verifier", verifier], check=True, capture_output=True, text=True
        )
        found = json.loads(run.stdout.splitlines()[-1])
        rest.append(found["peak"] - found["caches"])
        typer.echo(
            f"{found['new_tokens']:,.0f} new tokens: peak {found['peak']:.0f} MiB, caches "
            f"{found['caches']:.0f} MiB, everything else {rest[-1]:.0f} MiB"
        )
    typer.echo(f"everything else grew by {100 * (rest[-1] / rest[0] - 1):+.1f} %")


if __name__ == "__main__":
    typer.run(main)
