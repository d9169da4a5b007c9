"""The Penn Treebank as words, from the three files in which language models usually read it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import check_files
from torch import Tensor

__all__ = ["Corpus", "load_penn_treebank"]

FILES = ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")
END = "<eos>"


@dataclass(frozen=True)
class Corpus:
    """Numbers of words, ``int64[n]`` each; ``words[number]`` is the word."""

    words: tuple[str, ...]
    train: Tensor
    validation: Tensor
    test: Tensor


def load_penn_treebank(folder: Path) -> Corpus:
    """The corpus; words are numbered as they first occur in the training text, and every line ends in ``<eos>``."""
    check_files(folder, FILES, "the Penn Treebank as Mikolov prepared it (10,000 words, the rest <unk>)")
    texts = [_read(folder / name) for name in FILES]
    numbers = {word: number for number, word in enumerate(dict.fromkeys(texts[0]))}
    train, validation, test = (_numbered(text, numbers, folder / name) for text, name in zip(texts, FILES, strict=True))
    return Corpus(tuple(numbers), train, validation, test)


def _read(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        sys.exit(f"error: {path} is damaged ({error}); fetch it again")
    words = [word for line in lines for word in [*line.split(), END]]
    if not words:
        sys.exit(f"error: {path} is empty; fetch it again")
    return words


def _numbered(text: list[str], numbers: dict[str, int], path: Path) -> Tensor:
    unknown = next((word for word in text if word not in numbers), None)
    if unknown is not None:
        sys.exit(f"error: {path} has the word '{unknown}', which {FILES[0]} lacks: they are not of the same corpus")
    return torch.tensor([numbers[word] for word in text])
