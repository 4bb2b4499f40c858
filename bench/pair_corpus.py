"""Text for the built-in pair: the running Python's standard library and language reference.

Every machine with Python has it, and its licence (PSF) allows weights trained on it. Generated
tables (character maps, grammars' pickles, build variables) are left out: they are no language.
"""

from __future__ import annotations

import hashlib
import platform
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<bos>", "<eos>", "<pad>")
VOCAB_SIZE = 2048
CONTEXT = 8192
HELD_OUT_SHARE = 0.05
PROMPT_TOKENS = (48, 96)

# tests repeat themselves, lib2to3's fixers too; the rest is machine-made or bound to one machine
_LEFT_OUT_FOLDERS = {"site-packages", "test", "tests", "idle_test", "__pycache__", "pydoc_data"}
_LEFT_OUT_FILES = re.compile(
    r"^(encodings/(cp|iso|mac|koi|kz|ptcp|hp|tis|palmos|euc|big5|gb|hz|johab|shift|jis).*"
    r"|html/entities|_sysconfigdata.*|.*pydoc_topics|stringprep)\.py$"
)
_PROMPT_START = re.compile(r"^(?:    )?(?:def|class) \w+", re.MULTILINE)


@dataclass(frozen=True)
class Document:
    """One file of the corpus: its name inside the library and its text."""

    name: str
    text: str


def collect_documents() -> list[Document]:
    """Standard library sources and the language reference's topics, in the order of their names."""
    folder = Path(sysconfig.get_path("stdlib"))
    sources = [Document(name, text) for name, text in _read_sources(folder)]
    return sources + [Document(f"pydoc_data/{name}", text) for name, text in _read_topics()]


def _read_sources(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        if _LEFT_OUT_FOLDERS.isdisjoint(name.split("/")) and not _LEFT_OUT_FILES.match(name):
            yield name, path.read_text(encoding="utf-8", errors="replace")


def _read_topics() -> list[tuple[str, str]]:
    from pydoc_data.topics import topics

    return sorted(topics.items())


def is_held_out(document: Document, seed: int) -> bool:
    """A seeded hash of the name decides; topics quote each other, so they only train."""
    if document.name.startswith("pydoc_data/"):
        return False
    digest = hashlib.sha256(f"{seed}:{document.name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def corpus_digest(documents: list[Document]) -> str:
    """SHA-256 over names and texts: says whether two runs saw the same corpus."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.name}\0{document.text}\0".encode())
    return digest.hexdigest()


def train_tokenizer(documents: list[Document]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; a prompt is `<bos>` and its text, a document ends with `<eos>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    bos = (SPECIAL_TOKENS[0], tokenizer.token_to_id(SPECIAL_TOKENS[0]))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[bos]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def encode(documents: list[Document], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """One stream of token ids `[tokens]`, int64: every document followed by `<eos>`."""
    stream: list[int] = []
    for document in documents:
        stream += tokenizer.encode(document.text, add_special_tokens=False, verbose=False)
        stream.append(tokenizer.eos_token_id)
    return torch.tensor(stream)


def windows(stream: Tensor, length: int, bos: int, offset: int = 0) -> Tensor:
    """Cut a stream into rows `[rows, length]` that start with `<bos>`, without overlap."""
    text = length - 1
    rows = (len(stream) - offset) // text
    body = stream[offset : offset + rows * text].view(rows, text)
    return torch.cat([body.new_full((rows, 1), bos), body], dim=1)


def random_windows(
    stream: Tensor, length: int, rows: int, bos: int, generator: torch.Generator
) -> Tensor:
    """Rows `[rows, length]` from anywhere in a stream; `<bos>` stands for any beginning."""
    starts = torch.randint(len(stream) - length + 1, (rows,), generator=generator)
    body = stream[starts[:, None] + torch.arange(length - 1)]
    return torch.cat([body.new_full((rows, 1), bos), body], dim=1)


def cut_prompts(
    documents: list[Document], tokenizer: PreTrainedTokenizerFast, count: int, seed: int
) -> list[dict[str, str]]:
    """Beginnings of functions and classes, 48 to 96 tokens each, spread over the documents."""
    candidates = [
        (hashlib.sha256(f"{seed}:{doc.name}:{text}".encode()).hexdigest(), doc.name, text)
        for doc in documents
        for text in _prompts_of(doc, tokenizer)
    ]
    by_file: dict[str, int] = {}
    ranked = []
    for digest, name, text in sorted(candidates):
        by_file[name] = by_file.get(name, 0) + 1
        ranked.append((by_file[name], digest, name, text))
    chosen = sorted(sorted(ranked)[:count], key=lambda entry: (entry[2], entry[1]))
    if len(chosen) < count:
        raise ValueError(f"the held-out files give {len(chosen)} prompts, {count} are needed")
    return [{"file": name, "text": text} for _, _, name, text in chosen]


def _prompts_of(document: Document, tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    shortest, longest = PROMPT_TOKENS
    for match in _PROMPT_START.finditer(document.text):
        text = ""
        for line in document.text[match.start() :].splitlines(keepends=True)[:40]:
            text += line
            size = len(tokenizer.encode(text, add_special_tokens=False))
            if size >= shortest:
                if size <= longest:
                    yield text
                break


@dataclass(frozen=True)
class Corpus:
    """Documents, tokenizer and the two streams of token ids."""

    documents: list[Document]
    held_out_documents: list[Document]
    tokenizer: PreTrainedTokenizerFast
    training: Tensor
    held_out: Tensor

    @classmethod
    def prepare(cls, seed: int) -> Corpus:
        """Collect, split by file and encode; the tokenizer sees training files only."""
        documents = collect_documents()
        held_out = [d for d in documents if is_held_out(d, seed)]
        training = [d for d in documents if not is_held_out(d, seed)]
        tokenizer = train_tokenizer(training)
        streams = (encode(part, tokenizer) for part in (training, held_out))
        return cls(documents, held_out, tokenizer, *streams)

    @property
    def bos(self) -> int:
        """The token id that every row starts with."""
        bos: int = self.tokenizer.bos_token_id
        return bos

    def summary(self) -> dict[str, Any]:
        """What training.json keeps of the corpus."""
        return {
            "python": platform.python_version(),
            "files": len(self.documents),
            "characters": sum(len(d.text) for d in self.documents),
            "training_tokens": len(self.training),
            "held_out_tokens": len(self.held_out),
            "held_out_files": [d.name for d in self.held_out_documents],
            "sha256": corpus_digest(self.documents),
        }
