"""Text files: read by path, split in order, not copied; the Bible that travels along; docs/text.md runs."""

from __future__ import annotations

import hashlib
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spikeloom.datasets import (
    ByteTokenizer,
    CharacterTokenizer,
    TextWindows,
    bible_text,
    check_tokens,
    king_james,
    read_text,
    read_tokens,
    split_tokens,
    write_indexed,
)

ROOT = Path(__file__).resolve().parents[2]
NOTE = (ROOT / "datasets" / "_data" / "KING_JAMES_NOTE.md").read_text(encoding="utf-8")


def test_a_file_is_read_as_characters_and_as_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("é\r\nb\n".encode())
    assert read_text(tmp_path / "a.txt") == "é\nb\n"
    assert read_tokens(tmp_path / "a.txt", CharacterTokenizer("\nbé")).tolist() == [2, 0, 1, 0]
    assert bytes(read_tokens(tmp_path / "a.txt", ByteTokenizer())) == "é\r\nb\n".encode()


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(ValueError, match=r"not UTF-8: byte 0xe9 at 3 .*iconv"):
        read_text(tmp_path / "latin.txt")
    (tmp_path / "empty.txt").touch()
    for tokenizer in (ByteTokenizer(), CharacterTokenizer("a")):
        with pytest.raises(ValueError, match="is empty"):
            read_tokens(tmp_path / "empty.txt", tokenizer)


def test_parts_are_views_in_order() -> None:
    tokens = np.arange(101)
    train, validation = split_tokens(tokens)
    assert (len(train), len(validation)) == (91, 10)
    parts = split_tokens(tokens, 0.9, 0.05, 0.05)
    assert np.concatenate(parts).tolist() == tokens.tolist()
    assert all(np.shares_memory(part, tokens) for part in parts)
    assert [len(part) for part in split_tokens(np.arange(100_000_000, dtype=np.int8), 0.9, 0.05, 0.05)] == [
        90_000_000,
        5_000_000,
        5_000_000,
    ]


@pytest.mark.parametrize("fractions", [(0.9,), (0.9, 0.2), (1.5, -0.5), (1.0, 0.0), (float("nan"), 0.1)], ids=str)
def test_wrong_fractions_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="fractions are"):
        split_tokens(np.arange(100), *fractions)


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(ValueError, match="4 tokens are too few"):
        split_tokens(np.arange(4))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64"])
def test_ids_of_a_text_are_checked_against_the_network(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spikeloom.datasets.token_ids.CHUNK", 8)
    tokens = np.arange(30, dtype=dtype)
    check_tokens(tokens, 30)
    check_tokens(tokens, 100_000)
    check_tokens(tokens[:0], 1)
    with pytest.raises(ValueError, match="Token 29 is 29; expected 0 to 28, as vocab_size is 29"):
        check_tokens(tokens, 29)
    if dtype.startswith("int"):
        tokens[17] = -2
        with pytest.raises(ValueError, match="Token 17 is -2"):
            check_tokens(tokens, 30)


def test_a_large_file_is_never_copied(tmp_path: Path) -> None:
    """A quarter of a gigabyte (a hole on disk) read, split, checked, drawn from and written, in less than 32 MB."""
    size = 1 << 28
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
    tracemalloc.start()
    try:
        tokens = read_tokens(tmp_path / "large", ByteTokenizer())
        train, validation = split_tokens(tokens)
        assert isinstance(train, np.memmap)
        check_tokens(validation, 1)
        inputs, _ = TextWindows(train, 1024).random(16, 0, 0, 0)
        assert int(inputs.sum()) == 0
        written = write_indexed(tmp_path / "pair", [validation], np.uint8)
        TextWindows(written.tokens, 1024).random(16, 0, 0, 0)
        assert next(TextWindows(train, 1024).sliding(512, 4))[0].shape == (4, 1024)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(tokens) == size
    assert peak < 32 << 20


def test_the_bible_is_the_text_that_its_note_describes(monkeypatch: pytest.MonkeyPatch) -> None:
    text = king_james()
    assert hashlib.sha256(text.encode()).hexdigest() in NOTE
    assert text.isascii()
    assert f"{len(text):,} characters" in NOTE
    assert f"{len(set(text))} distinct" in NOTE
    assert len(re.findall(r"^\d+ \S", text, re.M)) == 31_102 + len(
        re.findall(r"^[123] (Samuel|Kings|Chronicles|Corinthians|Thessalonians|Timothy|Peter|John) \d+$", text, re.M)
    )
    assert len(re.findall(r"^(?:[123] )?[A-Z][A-Za-z ]+ \d+$", text, re.M)) == 1_189
    assert text.startswith("Genesis 1\n\n1 In the beginning God created the heaven and the earth.\n")
    assert "\nJohn 11\n\n1 Now a certain man" in text
    assert "\n35 Jesus wept.\n" in text
    assert "  " not in text
    assert " \n" not in text
    assert bible_text._FILE.stat().st_size < 1_500_000
    monkeypatch.setattr(bible_text, "_FILE", Path("absent.txt.xz"))
    with pytest.raises(FileNotFoundError, match="Reinstall spikeloom"):
        king_james()


def test_the_page_runs_and_prints_what_it_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "text.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    compared = 0
    for block, printed in re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", page, re.S | re.M):
        exec(block, names)
        out = capsys.readouterr().out
        if printed:
            assert out == printed, block
            compared += 1
    assert compared >= 4
