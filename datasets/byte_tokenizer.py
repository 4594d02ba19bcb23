"""Bytes as tokens: a text's UTF-8 encoding, 256 ids.

Every text and every file has ids, so enwik8 needs no vocabulary. The loss per token divided by ln 2 is bits per byte;
the character model of SpikeGPT (R.-J. Zhu et al., arXiv 2302.13939) counts bits per Unicode character instead.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spikeloom.datasets.token_ids import Ids, Tokens, as_ids, utf8, write_description


class ByteTokenizer:
    """Ids 0 to 255 are the bytes of the UTF-8 encoding."""

    kind = "bytes"
    vocab_size = 256

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByteTokenizer)

    def __hash__(self) -> int:
        return hash(self.kind)

    def encode(self, text: str) -> Tokens:
        """Ids `[N]` uint8, one to four for each character.

        Raises:
            ValueError: the text has lone surrogates, which UTF-8 cannot hold.
        """
        return np.frombuffer(utf8(text), dtype=np.uint8)

    def decode(self, ids: Ids) -> str:
        """The text of ids `[N]`; bytes that are not UTF-8, such as half a character, become U+FFFD.

        Raises:
            ValueError: an id is not from 0 to 255.
        """
        return self.to_bytes(ids).decode("utf-8", errors="replace")

    def to_bytes(self, ids: Ids) -> bytes:
        """The bytes of ids `[N]`, exactly."""
        return as_ids(ids, self.vocab_size).astype(np.uint8).tobytes()

    def save(self, folder: str | Path) -> Path:
        """Write `tokenizer.json` into a folder, for `load_tokenizer`; returns the file."""
        return write_description(folder, {"kind": self.kind})
