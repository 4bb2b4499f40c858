"""Records rows of logits of a real model, in the compact form of recorded_rows.py.

    python bench/record_rows.py FOLDER

The model continues each of bench/english_prompts.txt by 33 tokens at temperature 1; every sixth position
gives a row, the first 64 of them are kept. Printed: how far the rebuilt rows are from the true ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from warpdraft import TopH
from warpdraft.bench.prompts import lines_of
from warpdraft.bench.recorded_rows import FILE, NUM_ROWS, compact, rebuild
from warpdraft.bench.throughput.reference import kept_counts

NEW_TOKENS = 33
STRIDE = 6
TEMPERATURES = (1.0, 1.5, 2.0)


def rows_of_model(folder: Path) -> Tensor:
    """Logits `[64, vocab]` of the model on text of its own."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for number, prompt in enumerate(lines_of(Path(__file__).with_name("english_prompts.txt"))):
        token_ids = tokenizer(prompt, return_tensors="pt").input_ids
        torch.manual_seed(number)
        text = model.generate(
            token_ids,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
        )
        with torch.no_grad():
            logits = model(text).logits[0]
        rows.append(logits[token_ids.shape[1] - 1 :: STRIDE][: NEW_TOKENS // STRIDE + 1])
    return torch.cat(rows)[:NUM_ROWS].float()


def errors(rows: Tensor, rebuilt: Tensor) -> list[str]:
    """A line a temperature: kept tokens and entropy of the rebuilt rows beside the true ones."""
    lines = []
    for temperature in TEMPERATURES:
        true = kept_counts(rows, (TopH(0.4),), temperature, band=0.0)
        made = kept_counts(rebuilt, (TopH(0.4),), temperature, band=0.0)
        entropies = [entropy(side, temperature) for side in (rows, rebuilt)]
        lines.append(
            f"temperature {temperature:g}: TopH(0.4) keeps {true.most.double().median():g} tokens in the "
            f"median, {int((true.most != made.most).sum())} rows differ by at most "
            f"{int((true.most - made.most).abs().max())}; entropy {entropies[0].median():.2f} nats, off "
            f"by at most {(entropies[0] - entropies[1]).abs().max():.1e}"
        )
    return lines


def entropy(rows: Tensor, temperature: float) -> Tensor:
    """Of each row's law, float64."""
    logprobs = torch.log_softmax(rows.double() / temperature, dim=-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def main(
    folder: Annotated[Path, typer.Argument(help="A model in transformers' format.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = FILE,
) -> None:
    """Record, save and print the errors."""
    rows = rows_of_model(folder)
    arrays = compact(rows)
    np.savez_compressed(out, allow_pickle=False, **arrays)
    typer.echo(f"{out.name}: {out.stat().st_size:,} bytes, {len(rows)} rows of {rows.shape[1]:,}")
    for line in errors(rows, rebuild(arrays)):
        typer.echo(line)


if __name__ == "__main__":
    typer.run(main)
