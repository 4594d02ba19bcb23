"""A tokenizer of a checkpoint's folder: whatever `save` of a tokenizer wrote there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spikeloom.datasets.bpe_tokenizer import BPETokenizer
from spikeloom.datasets.byte_tokenizer import ByteTokenizer
from spikeloom.datasets.character_tokenizer import CharacterTokenizer
from spikeloom.datasets.token_ids import FILE, Tokenizer

_KINDS = (ByteTokenizer.kind, CharacterTokenizer.kind, BPETokenizer.kind)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read `tokenizer.json` of a folder, as `save` of a tokenizer writes it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of another kind (a file of the Hugging Face libraries is for
            `BPETokenizer.from_file`).
    """
    path = Path(folder) / FILE
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Save the tokenizer again.") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path} holds a JSON {type(table).__name__}; expected an object. Save the tokenizer again.")
    kind = table.get("kind")
    if kind not in _KINDS:
        hint = " Read a file of the Hugging Face libraries with BPETokenizer.from_file." if "model" in table else ""
        raise ValueError(f"{path} has kind {kind!r}; expected one of {list(_KINDS)}.{hint}")
    try:
        return _built(kind, table, path)
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}, which kind {kind!r} has. Save the tokenizer again.") from error


def _built(kind: str, table: dict[str, Any], path: Path) -> Tokenizer:
    if kind == BPETokenizer.kind:
        return BPETokenizer(json.dumps(table["tokenizer"]), str(path))
    if kind == CharacterTokenizer.kind:
        characters, unknown = table["characters"], table["unknown"]
        if not isinstance(characters, str) or not isinstance(unknown, str | None):
            raise ValueError(f"{path} is damaged: 'characters' or 'unknown' is no string. Save the tokenizer again.")
        return CharacterTokenizer(characters, unknown)
    return ByteTokenizer()
