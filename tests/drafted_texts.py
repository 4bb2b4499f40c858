"""Tiny models, prompts of a batch, and greedy texts for the tests of `generate`."""

import functools

import torch
from tiny_models import tiny_model

VOCAB = 64


@functools.cache
def model_of(name, seed=0, vocab=VOCAB):
    return tiny_model(name, seed=seed, vocab=vocab, context=256)


PROMPTS = torch.tensor([[5, 9, 2, 30, 41], [0, 0, 7, 7, 12], [0, 3, 61, 8, 20]])
MASK = (PROMPTS != 0).long()


def prompts():
    return {"input_ids": PROMPTS.clone(), "attention_mask": MASK.clone()}


def one_prompt():
    return {"input_ids": PROMPTS[:1].clone(), "attention_mask": MASK[:1].clone()}


@functools.cache
def perturbed_target():
    """The target with a perturbed output layer: long accepted runs and rejections in one text."""
    draft = tiny_model("llama", vocab=VOCAB, context=256)
    weight = draft.get_output_embeddings().weight
    with torch.no_grad():
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
        weight.add_(noise * weight.std() / 4)
    return draft


def greedy(model, custom_generate=None, **arguments):
    return model.generate(do_sample=False, custom_generate=custom_generate, **arguments)
