"""The model card of the built-in pair, written from the record of its training run."""

from __future__ import annotations

from typing import Any

_CARD = """\
---
license: other
license_name: psf-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [python, speculative-decoding]
---

# The built-in pair

Two small Llama models, a target and its draft, that write Python. They exist so that `warpdraft`
runs at once and offline, and so that its tests and benchmarks have a realistic pair.

| | target | draft |
|---|---|---|
{table}

Both read one byte-level BPE tokenizer of {vocab} tokens. A prompt begins with `<bos>`; `<eos>` ends a
file. The context is {context:,} tokens. The files hold float16.

## Data and licence

The sources of the standard library of CPython {python} and the topics of its language reference
(`pydoc_data`): {files} files, {characters:.1f} million characters, {training_tokens:,} training tokens,
{held_out_tokens:,} tokens held out by file. Left out: installed packages, tests, and generated tables.
The text is under the Python Software Foundation License Version 2, © Python Software Foundation;
the weights are derived from it and may be used under the same terms.
SHA-256 of the corpus: `{sha256}`.

## Training

From scratch, on a CPU, in float32, by `python bench/train_pair.py --output DIR --work-dir DIR`
(seed {seed}). Muon for the matrices, AdamW for embeddings and norms. The models start from
different seeds and share no weight. The draft first models the corpus, then learns the target's
distribution by its Kullback-Leibler divergence and by the total variation at temperature 1, on
these lessons:

{lessons}

Stages last a share of the run's time, so a rerun takes other step counts; `training.json` holds
these, and the losses by time.

| stage | tokens |
|---|---|
{stages}

{note}Training took {target_minutes:.0f} minutes (target) and {draft_minutes:.0f} minutes (draft) on two shared cores.

## Figures on the held-out files

| | target | draft |
|---|---|---|
| loss, nats a token, windows of 512 | {target_loss:.3f} | {draft_loss:.3f} |
| before rounding to float16 | {target_before:.3f} | {draft_before:.3f} |
{positions}

| mean overlap of target and draft, 1 - total variation | |
|---|---|
{overlaps}

## Use and limits

For demonstrations, tests and benchmarks of decoding strategies. The target writes text that looks
like Python and seldom means anything: not a coding assistant. It can repeat passages of the
standard library. The draft learned mostly from windows of 512 tokens: beyond them its loss rises
and the overlap falls, as the tables show. At this size a target call costs little, so block
efficiency carries over to larger pairs, time saved does not.
"""


def model_card(record: dict[str, Any], *, vocab: int, context: int) -> str:
    """Fill the card's figures in from the content of training.json."""
    held_out, before = record["held_out"], record["held_out_loss_before_float16"]
    runs = {name: record[name] for name in ("target", "draft")}
    return _CARD.format(
        **record["corpus"] | {"characters": record["corpus"]["characters"] / 1e6},
        seed=record["seed"],
        note=record.get("note", "") and record["note"] + "\n\n",
        vocab=vocab,
        context=context,
        table="\n".join(_compare(runs, key) for key in ("parameters", "steps", "seconds")),
        lessons="\n".join(f"- {n:,} tokens of {name}" for name, n in record["lessons"].items()),
        stages="\n".join(
            f"| {name}: {stage} | {tokens:,} |"
            for name, run in runs.items()
            for stage, tokens in run["tokens"].items()
        ),
        positions=_positions(held_out["loss_by_position"]),
        overlaps="\n".join(f"| {law} | {x:.3f} |" for law, x in held_out["overlap"].items()),
        **{f"{name}_minutes": run["seconds"] / 60 for name, run in runs.items()},
        **{f"{name}_loss": loss for name, loss in held_out["loss"].items()},
        **{f"{name}_before": loss for name, loss in before.items()},
    )


def _compare(runs: dict[str, dict[str, Any]], key: str) -> str:
    return f"| {key} | {runs['target'][key]:,} | {runs['draft'][key]:,} |"


def _positions(losses: dict[str, dict[str, float]]) -> str:
    return "\n".join(
        f"| loss at positions {bucket} | {loss:.3f} | {losses['draft'][bucket]:.3f} |"
        for bucket, loss in losses["target"].items()
    )
