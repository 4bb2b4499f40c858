"""A target, a draft and their tokenizer, ready to run: the built-in pair or any Hugging Face folder or name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

    from warpdraft.prompt_lookup import PromptLookup

BUILT_IN = "built-in pair"
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class ModelPair:
    """Models in evaluation mode on one device.

    Attributes:
        target: whose law the text has.
        draft: the draft model; None where there is none.
        tokenizer: of both.
        device: of both.
        name: of the pair.
        lookup: drafts in place of a model.
    """

    target: PreTrainedModel
    draft: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    name: str
    lookup: PromptLookup | None = None

    @property
    def source(self) -> PreTrainedModel | PromptLookup | None:
        """What drafts; without it the target samples alone."""
        return self.draft if self.lookup is None else self.lookup

    @property
    def is_chat(self) -> bool:
        """Whether the tokenizer knows how a conversation is written."""
        return self.tokenizer.chat_template is not None

    def encode(self, prompts: list[str], *, raw: bool = False) -> BatchEncoding:
        """Prompts as left-padded model inputs, through the chat template if there is one.

        Args:
            prompts: texts to continue, or user messages where the tokenizer has a chat template.
            raw: never apply the chat template.

        Raises:
            ValueError: a prompt without a single token.
        """
        is_chat = self.is_chat and not raw
        if is_chat:
            prompts = [self.render_chat(prompt) for prompt in prompts]
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        inputs: BatchEncoding = self.tokenizer(
            prompts,
            # a chat template writes its own
            add_special_tokens=not is_chat,
            padding=len(prompts) > 1,
            padding_side="left",
            return_token_type_ids=False,
            return_tensors="pt",
        )
        if inputs["input_ids"].shape[1] == 0:
            raise ValueError("the prompt is empty: it needs at least one token")
        inputs.to(self.device)
        return inputs

    def render_chat(self, prompt: str) -> str:
        """A user message through the chat template, up to where the answer starts."""
        message = {"role": "user", "content": prompt}
        rendered = self.tokenizer.apply_chat_template(
            [message], add_generation_prompt=True, tokenize=False
        )
        return str(rendered)


def load_pair(
    model: str | None = None,
    draft_model: str | None = None,
    *,
    skip: Sequence[int] = (),
    device: str = "cpu",
    dtype: str | None = None,
) -> ModelPair:
    """Load a target and a draft model for sampling.

    Args:
        model: Hugging Face folder or name of the target; None takes the built-in pair.
        draft_model: folder or name of the draft, "first-layers:N" or "prompt-lookup:N"; None beside a `model` leaves
            the target alone.
        skip: draft with the target itself without these layers.
        device: a torch device.
        dtype: "float32", "bfloat16" or "float16"; None takes float32 on a CPU and the
            checkpoint's own elsewhere.

    Raises:
        ValueError: an unknown or absent device or dtype, a draft without a target, two tokenizers
            that differ, a draft model and layers to skip, layers that are not there.
        OSError: no such model.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    place = find_device(device)
    silence_transformers()
    source = read_source(draft_model)
    if model is None:
        if source is not None:
            return with_source(built_in(place, dtype), *source)
        if draft_model is not None:
            raise ValueError(f"a draft model needs its target: --model, got only {draft_model!r}")
        return with_layers_skipped(built_in(place, dtype), skip)
    if skip and draft_model is not None:
        raise ValueError(f"--skip makes a draft of the target: leave out --draft {draft_model}")
    target = load_model(model, place, dtype)
    tokenizer = load_tokenizer(model)
    if skip:
        return with_layers_skipped(ModelPair(target, None, tokenizer, place, model), skip)
    if draft_model is None:
        return ModelPair(target, None, tokenizer, place, model)
    if source is not None:
        return with_source(ModelPair(target, None, tokenizer, place, model), *source)
    draft = load_model(draft_model, place, dtype)
    check_tokenizers(tokenizer, load_tokenizer(draft_model), model, draft_model)
    return ModelPair(target, draft, tokenizer, place, f"{model} with {draft_model}")


SOURCES = ("first-layers", "prompt-lookup")


def read_source(draft: str | None) -> tuple[str, int] | None:
    """A name of `SOURCES` and its number; None for a model.

    Raises:
        ValueError: a source without a positive whole number.
    """
    name, colon, number = (draft or "").partition(":")
    if name not in SOURCES:
        return None
    if not colon or not number.isdecimal() or int(number) == 0:
        raise ValueError(f"--draft {name}:N needs a positive whole number, got {draft!r}")
    return name, int(number)


def own_verifier(draft: str | None) -> str:
    """The verifier that the drafts of such a name are for."""
    from warpdraft import PromptLookup
    from warpdraft.verification import DEFAULT_VERIFIER

    source = read_source(draft)
    is_lookup = source is not None and source[0] == "prompt-lookup"
    return PromptLookup.default_verifier if is_lookup else DEFAULT_VERIFIER


def with_source(pair: ModelPair, name: str, number: int) -> ModelPair:
    """The pair with another source of drafts: the target's first layers, or the text itself."""
    from warpdraft import FirstLayers, PromptLookup

    target = "the built-in target" if pair.name == BUILT_IN else pair.name
    if name == "first-layers":
        draft = FirstLayers(number).model_for(pair.target)
        return replace(pair, draft=draft, name=f"{target} with its first layers, {number}")
    lookup = PromptLookup(number)
    return replace(pair, draft=None, lookup=lookup, name=f"{target} with {lookup}")


def with_layers_skipped(pair: ModelPair, skip: Sequence[int]) -> ModelPair:
    """The pair, its draft the target without these layers; as it is for none."""
    if not skip:
        return pair
    from .layer_skipping import layer_skipped_draft

    name = "the built-in target" if pair.name == BUILT_IN else pair.name
    layers = ", ".join(map(str, sorted(skip)))
    return replace(
        pair,
        draft=layer_skipped_draft(pair.target, skip),
        name=f"{name} with itself without layers {layers}",
    )


def built_in(device: torch.device, dtype: str | None) -> ModelPair:
    """The pair inside the package."""
    import torch

    from warpdraft.builtin_pair import load_builtin_pair

    pair = load_builtin_pair(getattr(torch, dtype or "float32"))
    for model in (pair.target, pair.draft):
        move(model, device)
    return ModelPair(pair.target, pair.draft, pair.tokenizer, device, BUILT_IN)


def find_device(name: str) -> torch.device:
    """The named device.

    Raises:
        ValueError: no such device here.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda, cuda:N or mps, got {name!r}") from error
    present = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        raise ValueError(f"device {name!r} is not here: see `warpdraft env`")
    return device


def silence_transformers() -> None:
    """Switch off transformers' progress bars and warnings: the screen belongs to the text."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def load_model(name: str, device: torch.device, dtype: str | None) -> PreTrainedModel:
    """Load a decoder-only model.

    Raises:
        ValueError: an encoder-decoder model, damaged weights.
        OSError: no such folder or name.
    """
    import transformers
    from safetensors import SafetensorError

    require_folder(name)
    config = transformers.AutoConfig.from_pretrained(name)
    if config.is_encoder_decoder:
        raise ValueError(
            f"{name} is an encoder-decoder model; only decoder-only models can be used"
        )
    if dtype is None:
        dtype = "float32" if device.type == "cpu" else "auto"
    try:
        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=dtype
        )
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} cannot be read: {error}") from error
    move(model, device)
    return model


def move(model: torch.nn.Module, device: torch.device) -> None:
    """Move a model in place."""
    model.to(device)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside a model."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(name)


def require_folder(name: str) -> None:
    """Tell a mistyped path from a name on the hub, which transformers would go and ask for.

    Raises:
        FileNotFoundError: the name is written as a path and no folder is there.
    """
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise FileNotFoundError(f"no model folder at {name}")


def check_tokenizers(
    target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase, model: str, draft_model: str
) -> None:
    """Refuse a draft that writes in other tokens; padded vocabularies of one tokenizer pass.

    Raises:
        ValueError: the tokenizers differ, with the first token that does.
    """
    ours, theirs = target.get_vocab(), draft.get_vocab()
    if ours == theirs:
        return
    differing = sorted(ours.items() ^ theirs.items(), key=lambda pair: (pair[1], pair[0]))
    token, token_id = differing[0]
    raise ValueError(
        f"{model} and {draft_model} have different tokenizers ({len(ours)} and {len(theirs)} "
        f"tokens; they first differ at token {token_id}, {token!r}); a draft must share the "
        "target's tokenizer"
    )
