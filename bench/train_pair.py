"""Train the built-in pair from scratch: `python bench/train_pair.py --output decoders/models`.

Corpus and tokenizer (pair_corpus.py), then the target by language modelling, then the draft by
distillation: a short language-modelling start, the Kullback-Leibler divergence, and the total
variation, which is what a draft is used for (1 - total variation is the acceptance rate of
standard speculative sampling, Leviathan et al. 2023, corollary 3.6).

The two models are initialised from different seeds and share no weight. Stages last a share of
`--target-minutes` and `--draft-minutes`, so a run ends on time on any machine; training.json
records the steps and tokens they came to. Everything runs in float32: it is the fastest
format on a CPU without matrix units. Interrupted runs resume from `--work-dir`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Generator, Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from warpdraft.bench.pair_card import model_card
from warpdraft.bench.pair_corpus import (
    CONTEXT,
    VOCAB_SIZE,
    Corpus,
    cut_prompts,
    random_windows,
    windows,
)
from warpdraft.bench.pair_figures import SHORT_STRIDE, held_out_loss, measure_pair, overlap
from warpdraft.bench.pair_lessons import (
    LESSON_LENGTH,
    LONG_TEXT,
    SAMPLES,
    TEXT,
    Lessons,
    prepare_lessons,
)
from warpdraft.bench.pair_training import Run, Stage

TARGET_SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
DRAFT_SHAPE = {
    "hidden_size": 160,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
}
# room for both models, two tokenizers, prompts and card in the wheel
MAX_BYTES = 16_000_000

TARGET_LEARNING_RATE = 4e-3
DRAFT_LEARNING_RATE = 6e-3
STEP_TOKENS = 4096
SAMPLED_SHARE = 0.2
PROMPT_COUNT = 50
# every stride-th held-out window is looked at while a run goes on
CHECK_STRIDE = 16


def build_model(shape: Mapping[str, Any], seed: int) -> LlamaForCausalLM:
    """A float32 Llama with tied embeddings, initialised from its own seed."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **shape,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config)


def language_loss(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """Mean cross-entropy in nats a token over rows `[rows, length]`."""
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def divergence(model: LlamaForCausalLM, tokens: Tensor, states: Tensor, head: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of the draft from the target, nats a token."""
    target_logprobs = F.log_softmax(states.float() @ head.T, dim=-1)
    draft_logprobs = F.log_softmax(model(input_ids=tokens, use_cache=False).logits, dim=-1)
    return (target_logprobs.exp() * (target_logprobs - draft_logprobs)).sum(-1).mean()


def total_variation(
    model: LlamaForCausalLM, tokens: Tensor, states: Tensor, head: Tensor
) -> Tensor:
    """Mean of `sum |target_probs - draft_probs| / 2` at temperature 1."""
    target_probs = F.softmax(states.float() @ head.T, dim=-1)
    draft_probs = F.softmax(model(input_ids=tokens, use_cache=False).logits, dim=-1)
    return (target_probs - draft_probs).abs().sum(-1).mean() / 2


def target_stages(stream: Tensor, bos: int) -> list[Stage]:
    """Mostly short windows, then longer ones, so that the whole context is usable."""

    def stage(length: int, share: float) -> Stage:
        def batch(generator: Generator) -> tuple[Tensor]:
            rows = max(1, STEP_TOKENS // length)
            return (random_windows(stream, length, rows, bos, generator),)

        compiled = length < CONTEXT
        return Stage(f"language, {length} tokens", share, batch, language_loss, compiled)

    return [stage(256, 0.8), stage(2048, 0.12), stage(CONTEXT, 0.08)]


def draft_stages(lessons: dict[str, Lessons], head: Tensor) -> list[Stage]:
    """Language modelling, divergence, total variation, and total variation on long rows."""
    count = STEP_TOKENS // LESSON_LENGTH
    own = round(count * SAMPLED_SHARE)

    def short(generator: Generator) -> tuple[Tensor, ...]:
        parts = zip(
            lessons[TEXT].pick(count - own, generator),
            lessons[SAMPLES].pick(own, generator),
            strict=True,
        )
        return (*(torch.cat(part) for part in parts), head)

    def long(generator: Generator) -> tuple[Tensor, ...]:
        return (*lessons[LONG_TEXT].pick(1, generator), head)

    def text(generator: Generator) -> tuple[Tensor]:
        return (lessons[TEXT].pick(count, generator)[0],)

    return [
        Stage("language", 0.08, text, language_loss),
        Stage("divergence", 0.32, short, divergence, compiled=True),
        Stage("total variation", 0.5, short, total_variation, compiled=True),
        Stage(f"total variation, {CONTEXT} tokens", 0.1, long, total_variation),
    ]


def write_model(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> LlamaForCausalLM:
    """Write a float16 folder and return what it loads as, in float32."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.half().save_pretrained(folder)
    # safetensors writes for its owner only; an installed package is read by everybody
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)
    loaded: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    loaded.eval()
    return loaded


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON with a final newline."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def train_target(options: argparse.Namespace, corpus: Corpus) -> Run:
    """The target, by language modelling on the corpus."""
    model = build_model(TARGET_SHAPE, options.seed)
    run = Run(
        model, TARGET_LEARNING_RATE, options.target_minutes * 60, options.work_dir / "target.pt"
    )
    rows = windows(corpus.held_out, LESSON_LENGTH, corpus.bos)[::CHECK_STRIDE]
    stages = target_stages(corpus.training, corpus.bos)
    run.train(stages, options.seed, lambda: held_out_loss(model, rows).mean().item())
    return run


def train_draft(
    options: argparse.Namespace, corpus: Corpus, target: LlamaForCausalLM
) -> tuple[Run, dict[str, int]]:
    """The draft, by distillation; its held-out figure is the overlap at temperature 1."""
    lessons = saved_lessons(options, corpus, target)
    model = build_model(DRAFT_SHAPE, options.seed + 1)
    run = Run(model, DRAFT_LEARNING_RATE, options.draft_minutes * 60, options.work_dir / "draft.pt")
    rows = windows(corpus.held_out, LESSON_LENGTH, corpus.bos)[::CHECK_STRIDE]
    stages = draft_stages(lessons, target.lm_head.weight.detach())
    run.train(stages, options.seed + 1, lambda: overlap(target, model, rows))
    return run, {name: lesson.tokens.numel() for name, lesson in lessons.items()}


def saved_lessons(
    options: argparse.Namespace, corpus: Corpus, target: LlamaForCausalLM
) -> dict[str, Lessons]:
    """The draft's lessons, from the work folder where an interrupted run left them."""
    path = options.work_dir / "lessons.pt"
    if not path.exists():
        seconds = options.lesson_minutes * 60
        lessons = prepare_lessons(target, corpus.training, corpus.bos, options.seed + 2, seconds)
        torch.save({name: (part.tokens, part.states) for name, part in lessons.items()}, path)
    return {name: Lessons(*saved) for name, saved in torch.load(path, weights_only=True).items()}


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the pair")
    parser.add_argument("--work-dir", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--target-minutes", type=float, default=68)
    parser.add_argument("--lesson-minutes", type=float, default=3)
    parser.add_argument("--draft-minutes", type=float, default=12)
    return parser.parse_args()


def main() -> None:
    """Train, write and measure the pair."""
    transformers.utils.logging.disable_progress_bar()
    options = parse_options()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    options.output.mkdir(parents=True, exist_ok=True)
    corpus = Corpus.prepare(options.seed)
    print(f"{len(corpus.training)} training, {len(corpus.held_out)} held-out tokens", flush=True)
    target_run = train_target(options, corpus)
    draft_run, lessons = train_draft(options, corpus, target_run.model.eval())
    write_pair(options.output, corpus, target_run, draft_run, options.seed, lessons)


def write_pair(
    output: Path,
    corpus: Corpus,
    target_run: Run,
    draft_run: Run,
    seed: int,
    lessons: dict[str, int],
) -> None:
    """Write both folders, prompts, record and card; the figures are of the written models."""
    tokenizer, runs = corpus.tokenizer, {"target": target_run, "draft": draft_run}
    rows = windows(corpus.held_out, LESSON_LENGTH, corpus.bos)[::SHORT_STRIDE]
    before = {
        name: held_out_loss(run.model.eval(), rows).mean().item() for name, run in runs.items()
    }
    models = {name: write_model(run.model, tokenizer, output / name) for name, run in runs.items()}
    prompts = cut_prompts(corpus.held_out_documents, tokenizer, PROMPT_COUNT, seed)
    record = {
        "seed": seed,
        "stages_by": "seconds",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "corpus": corpus.summary(),
        "lessons": lessons,
        **{name: run.summary() for name, run in runs.items()},
        "held_out": measure_pair(**models, stream=corpus.held_out, bos=corpus.bos, seed=seed + 3),
        "held_out_loss_before_float16": {name: round(loss, 4) for name, loss in before.items()},
    }
    write_json(output / "held_out_prompts.json", prompts)
    write_json(output / "training.json", record)
    card = model_card(record, vocab=VOCAB_SIZE, context=CONTEXT)
    (output / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    print(json.dumps(record["held_out"], indent=1))
    if (size := folder_bytes(output)) > MAX_BYTES:
        raise ValueError(f"{output} holds {size} bytes, at most {MAX_BYTES} fit the package")


if __name__ == "__main__":
    main()
