"""Characters of the Python standard library's own source, found on every machine that runs Python."""

import sysconfig
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meshemu.errors import InputError
from meshemu.workload.arguments import check_positive
from meshemu.workload.data.dataset import Dataset, stored_dataset

__all__ = ["VOCABULARY", "decode", "encode", "python_source"]

VOCABULARY = "\n" + "".join(chr(code) for code in range(32, 127))
"""Newline and the printable ASCII characters: a character's token is its place here."""

_UNKNOWN = "?"
_TEST_EVERY = 10  # one file in ten is held out


def python_source(context: int = 64, max_characters: int = 1_000_000, max_test_windows: int = 200) -> Dataset:
    """Windows of `context` characters, int64 (context,), and as targets the characters that follow each.

    Files are taken whole in alphabetical order until `max_characters` is reached; every tenth file is held out.

    Args:
        context: characters per window.
        max_characters: about how many characters to read (the last file is cut).
        max_test_windows: at most this many held-out windows, evenly spaced.

    Raises:
        InputError: an argument out of range, or too few characters for one window.
    """
    check_positive(
        "data python_source", context=context, max_characters=max_characters, max_test_windows=max_test_windows
    )
    train, test = _read(max_characters)
    train_windows, test_windows = _windows(train, context), _windows(test, context)
    if not len(train_windows) or not len(test_windows):
        raise InputError(
            f"data python_source: max_characters = {max_characters} leaves {len(train)} characters to train and "
            f"{len(test)} held out: not one window of context + 1 = {context + 1} each"
        )
    kept = np.linspace(0, len(test_windows) - 1, min(max_test_windows, len(test_windows))).astype(np.int64)
    test_windows = test_windows[torch.from_numpy(kept)]
    return stored_dataset(
        train_inputs=train_windows[:, :-1].contiguous(), train_targets=train_windows[:, 1:].contiguous(),
        test_inputs=test_windows[:, :-1].contiguous(), test_targets=test_windows[:, 1:].contiguous(),
        n_classes=len(VOCABULARY),
        description=f"standard library of Python {sysconfig.get_python_version()}: {len(train):,} characters to train "
        f"on, {len(test):,} held out, vocabulary {len(VOCABULARY)}, windows of {context}",
    )


def encode(text: str) -> NDArray[np.int64]:
    """Tokens of a text; tabs count as four spaces, characters outside the vocabulary as a question mark."""
    codes = np.frombuffer(text.replace("\t", "    ").encode("utf-32-le", errors="surrogatepass"), np.uint32)
    known = np.frombuffer(VOCABULARY.encode("utf-32-le"), np.uint32)
    table = np.full(int(known.max()) + 2, VOCABULARY.index(_UNKNOWN), np.int64)
    table[known] = np.arange(len(known))
    return table[np.minimum(codes, len(table) - 1)]


def decode(tokens: NDArray[np.int64]) -> str:
    """The text of tokens."""
    return "".join(VOCABULARY[token] for token in tokens)


def _read(max_characters: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens to train on and tokens held out, split by file."""
    parts: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    left = max_characters
    for number, path in enumerate(sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))):
        tokens = encode(path.read_text(encoding="utf-8", errors="replace"))[:left]
        parts[number % _TEST_EVERY == _TEST_EVERY - 1].append(tokens)
        left -= len(tokens)
        if left <= 0:
            break
    train, test = (np.concatenate(part) if part else np.empty(0, dtype=np.int64) for part in parts)
    return train, test


def _windows(tokens: NDArray[np.int64], context: int) -> Tensor:
    """Windows (n, context + 1); each starts at the last character of the one before, so all are predicted once."""
    n = max(0, (len(tokens) - 1) // context)
    starts = np.arange(n)[:, None] * context
    return torch.from_numpy(tokens[starts + np.arange(context + 1)])
