"""The built-in pair: a small target and its draft, both writing Python, inside the package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PairFolders(NamedTuple):
    """Folders that `from_pretrained` takes; each holds a model and the tokenizer of both."""

    target: Path
    draft: Path


@dataclass(frozen=True, slots=True)
class Pair:
    """A target, its draft and their tokenizer, ready for generation."""

    target: PreTrainedModel
    draft: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def builtin_pair_folders() -> PairFolders:
    """Where the built-in models lie, for tools that want a path."""
    return PairFolders(_models_folder() / "target", _models_folder() / "draft")


def load_builtin_pair(dtype: torch.dtype = torch.float32) -> Pair:
    """Load the built-in pair on the CPU, in eval mode, offline and without printing.

    Args:
        dtype: a floating-point dtype for the weights; the files hold float16.

    Returns:
        target, draft and tokenizer, new ones with every call.

    Raises:
        TypeError: `dtype` is no floating-point `torch.dtype`.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folders = builtin_pair_folders()
    with _quiet_transformers():
        target, draft = (
            AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True
            ).eval()
            for folder in folders
        )
        tokenizer = AutoTokenizer.from_pretrained(folders.target, local_files_only=True)
    return Pair(target, draft, tokenizer)


def held_out_prompts() -> list[str]:
    """Fifty beginnings of functions and classes from files that neither model was trained on."""
    path = _models_folder() / "held_out_prompts.json"
    return [prompt["text"] for prompt in json.loads(path.read_text(encoding="utf-8"))]


def _models_folder() -> Path:
    # below the front door: the folder of a package without __init__.py is not always found
    return Path(str(files("warpdraft"))) / "models"


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Switch transformers' progress bars and warnings off, and back to what they were."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
