"""Plain text files as tokens, and their parts for training, validation and test.

enwik8, WikiText and other text files are read by path: `read_tokens("enwik8", ByteTokenizer())`. A text that is used
often and is slow to tokenise is written once with `write_indexed` and read from a memory map after that.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np

from spikeloom.datasets.byte_tokenizer import ByteTokenizer
from spikeloom.datasets.token_ids import Tokenizer, Tokens, require_tokens


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8; every kind of line end becomes a line feed, as in the official SpikeGPT code.

    Raises:
        ValueError: the file is empty or not UTF-8.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at {error.start} ({error.reason}). Convert it "
            "(iconv -f ... -t UTF-8), or read it as bytes: read_tokens(path, ByteTokenizer())."
        ) from error
    if not text:
        raise ValueError(f"{path} is empty; expected a text.")
    return text


def read_tokens(path: str | Path, tokenizer: Tokenizer) -> Tokens:
    """Ids `[N]` of a text file.

    With `ByteTokenizer` the file itself is the array: it is mapped into memory read-only, byte by byte as it is, so
    its size does not matter. Other tokenizers read the whole text (`read_text`).

    Raises:
        ValueError: the file is empty or not UTF-8, or has characters without an id.
    """
    if not isinstance(tokenizer, ByteTokenizer):
        return tokenizer.encode(read_text(path))
    if Path(path).stat().st_size == 0:
        raise ValueError(f"{path} is empty; expected a text.")
    return np.memmap(path, dtype=np.uint8, mode="r")


def split_tokens(tokens: Tokens, *fractions: float) -> tuple[Tokens, ...]:
    """Parts of a text `[N]` in order, without a copy: the first 90 % and the last 10 %, or as `fractions` says.

    enwik8 is usually split in 0.9, 0.05, 0.05.

    Raises:
        ValueError: the fractions are not positive, do not sum to 1, or leave a part empty.
    """
    require_tokens(tokens)
    shares = fractions or (0.9, 0.1)
    if not all(share > 0 for share in shares) or not math.isclose(math.fsum(shares), 1.0, abs_tol=1e-6):
        raise ValueError(f"fractions are {shares}; expected positive numbers that sum to 1, such as 0.9, 0.1.")
    cuts = [round(len(tokens) * math.fsum(shares[:part])) for part in range(len(shares))] + [len(tokens)]
    parts = tuple(tokens[start:end] for start, end in pairwise(cuts))
    if not all(len(part) for part in parts):
        raise ValueError(f"{len(tokens)} tokens are too few for parts of {shares}: one would be empty.")
    return parts
