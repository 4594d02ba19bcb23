"""Tokenizers: text and ids go both ways, files of the official layout are read, and nothing is lost without a word."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spikeloom.datasets import (
    BPETokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    Tokenizer,
    check_neox_20b,
    clean_prompt,
    load_tokenizer,
)
from spikeloom.datasets.token_ids import token_dtype

TEXT = "The quick brown fox\n    naïve café, ∑ 東京 🦊\t\x00 end"
# the 77 characters of the BookCorpus model: lower case, a few controls, no double quote
BOOK = "\n\x13\x14\x18\x19\x1c\x1d\x1f !#$%&'()*+,-./0123456789:;<=>?@[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~\x7f"
NEOX = {
    "\n": [187],
    "Hello world": [12092, 1533],
    "The quick brown fox\n": [510, 3158, 8516, 30013, 187],
    "def f(x):\n    return x": [1545, 269, 9, 89, 2262, 187, 50274, 2309, 1269],
    "        8 spaces": [50270, 25, 8470],
}


@pytest.fixture(scope="session")
def bpe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level BPE with an added token, which also asks for truncation and padding.

    As GPT-NeoX's it has the 243 bytes that occur in UTF-8, not C0, C1 and F5 to FF.
    """
    library = pytest.importorskip("tokenizers")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.normalizer = library.normalizers.NFC()
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=sorted(set(library.pre_tokenizers.ByteLevel.alphabet()) - set("ÀÁõö÷øùúûüýþÿ")),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the fox and the dog and the fox"] * 5, trainer)
    tokenizer.add_tokens(["    "])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    path = tmp_path_factory.mktemp("bpe") / "bpe.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(params=["bytes", "characters", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    makers: dict[str, Callable[[], Tokenizer]] = {
        "bytes": ByteTokenizer,
        "characters": lambda: CharacterTokenizer.from_text(TEXT),
        "bpe": lambda: BPETokenizer.from_file(request.getfixturevalue("bpe_file")),
    }
    return makers[request.param]()


def test_text_goes_both_ways(tokenizer: Tokenizer) -> None:
    for text in (TEXT, "", "T", TEXT * 50):
        ids = tokenizer.encode(text)
        assert ids.ndim == 1
        assert ids.dtype == token_dtype(tokenizer.vocab_size)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids.tolist()) == text
        assert tokenizer.decode(torch.from_numpy(ids.astype(np.int64))) == text


def test_a_folder_holds_the_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tokenizer.save(tmp_path / "checkpoint")
    assert [one.name for one in (tmp_path / "checkpoint").iterdir()] == ["tokenizer.json"]
    assert file == tmp_path / "checkpoint" / "tokenizer.json"
    again = load_tokenizer(tmp_path / "checkpoint")
    assert type(again) is type(tokenizer)
    assert again.vocab_size == tokenizer.vocab_size
    assert again.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    if not isinstance(tokenizer, ByteTokenizer):
        assert again == tokenizer
        assert hash(again) == hash(tokenizer)
    (tmp_path / "plain").touch()
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_ids_out_of_range_are_refused(tokenizer: Tokenizer) -> None:
    V = tokenizer.vocab_size
    tokenizer.decode([0, V - 1])
    for ids, found in (([0, V], f"Token 1 is {V}"), ([-1], "Token 0 is -1")):
        with pytest.raises(ValueError, match=rf"{found}; expected 0 to {V - 1}"):
            tokenizer.decode(ids)
    with pytest.raises(ValueError, match="array of shape"):
        tokenizer.decode(torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="float64"):
        tokenizer.decode(np.zeros(2))
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(ValueError, match=f"ids is a tensor of type {dtype}; expected integers"):
            tokenizer.decode(torch.zeros(2, dtype=dtype))
    with pytest.raises(ValueError, match="ids is a ragged list"):
        tokenizer.decode([[1], [1, 2]])  # type: ignore[list-item]
    for empty in ([], np.zeros(0, np.uint8), torch.zeros(0, dtype=torch.int64)):
        assert tokenizer.decode(empty) == ""


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_lone_surrogate_is_named(kind: str, request: pytest.FixtureRequest) -> None:
    found = ByteTokenizer() if kind == "bytes" else BPETokenizer.from_file(request.getfixturevalue("bpe_file"))
    with pytest.raises(ValueError, match=r"\(U\+D800\) at 2 \(positions.*remove them"):
        found.encode("ab\ud800")


def test_a_vocabulary_without_lone_surrogates(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(U\+DC00\) at 2 \(positions.*remove them"):
        CharacterTokenizer("ab\udc00")
    (tmp_path / "vocabulary.json").write_text('{"0": "a", "1": "\\ud800"}')
    with pytest.raises(ValueError, match=r"\(U\+D800\) at 1"):
        CharacterTokenizer.from_vocabulary(tmp_path / "vocabulary.json")
    assert CharacterTokenizer("a b", unknown=" ").encode("a\ud800").tolist() == [0, 1]


def test_a_text_is_no_vocabulary() -> None:
    """Found at once: looking for every character in the whole text would take minutes."""
    text = "the fox\n" * 250_000
    with pytest.raises(ValueError, match=r"more than once.*the vocabulary of a text is .*from_text\(text\)"):
        CharacterTokenizer(text)


def test_bytes_are_utf8_and_half_a_character_is_marked() -> None:
    bytewise = ByteTokenizer()
    assert bytewise.encode("é\n").tolist() == [0xC3, 0xA9, 0x0A]
    assert bytewise.decode([0xC3]) == "\ufffd"
    assert bytewise.to_bytes([0xC3, 255]) == b"\xc3\xff"


def test_characters_are_ranked_by_code_point() -> None:
    found = CharacterTokenizer.from_text("banana 🦊 é\n")
    assert found.characters == "\n abné🦊"
    assert found.encode("a🦊\n").tolist() == [2, 6, 0]


def test_a_long_text_is_encoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spikeloom.datasets.character_tokenizer._PIECE", 7)
    text = "".join(random.Random(0).choices(BOOK, k=100))
    found = CharacterTokenizer(BOOK)
    assert found.encode(text).tolist() == [BOOK.index(one) for one in text]
    with pytest.raises(ValueError, match=r"'A' .* at 100"):
        found.encode(text + "A")


def test_unknown_characters_are_named_ten_at_most() -> None:
    found = CharacterTokenizer(BOOK)
    with pytest.raises(ValueError, match="without an id") as caught:
        found.encode('a "B" ∑' + "Q" * 20)
    message = str(caught.value)
    assert "'\"' (U+0022) at 2, 'B' (U+0042) at 3, '\"' (U+0022) at 4, '∑' (U+2211) at 6, 'Q' (U+0051) at 7" in message
    assert message.count(" at ") == 10
    assert "and 14 more" in message
    assert "from_text" in message
    assert "unknown=' '" in message


def test_a_named_character_stands_for_unknown_ones() -> None:
    found = CharacterTokenizer(BOOK, unknown=" ")
    assert found.decode(found.encode('a"b🦊')) == "a b "
    assert found != CharacterTokenizer(BOOK)
    with pytest.raises(ValueError, match="unknown is 'A'"):
        CharacterTokenizer(BOOK, unknown="A")


def test_the_official_vocabulary_file(tmp_path: Path) -> None:
    """UTF-16 with a byte order mark, in either byte order, and characters beyond 16 bits."""
    table = json.dumps({str(number): one for number, one in enumerate(BOOK)}, ensure_ascii=False)
    for name, data in (
        ("little", b"\xff\xfe" + table.encode("utf-16-le")),
        ("big", b"\xfe\xff" + table.encode("utf-16-be")),
        ("eight", table.encode("utf-8")),
    ):
        (tmp_path / name).write_bytes(data)
        found = CharacterTokenizer.from_vocabulary(tmp_path / name, unknown=" ")
        assert (found.vocab_size, found.characters, found.unknown) == (77, BOOK, " ")
    wide = CharacterTokenizer.from_text(TEXT)
    wide.write_vocabulary(tmp_path / "wide")
    raw = (tmp_path / "wide").read_bytes()
    assert raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    assert json.loads(raw.decode("utf-16"))["0"] == "\x00"
    assert CharacterTokenizer.from_vocabulary(tmp_path / "wide") == wide


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "holds a JSON list"),
        ("{}", "holds a JSON dict"),
        ('{"0": "a", "2": "b"}', "none for id 1"),
        ('{"0": "a", "1": "bc"}', "'bc' for id 1"),
        ('{"0": "a", "1": 5}', "5 for id 1"),
        ('{"0": "a", "1": "a"}', "more than once"),
        ('{"0": "a", "1": "b", "1": "c"}', r"has \['1'\] more than once; each id has one character"),
        ('{"0": "a"', "not a vocabulary"),
    ],
    ids=["list", "empty", "gap", "two_characters", "number", "twice", "repeated_id", "cut_off"],
)
def test_a_wrong_vocabulary_file_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "vocabulary.json").write_bytes(content.encode("utf-16"))
    with pytest.raises(ValueError, match=message):
        CharacterTokenizer.from_vocabulary(tmp_path / "vocabulary.json")


def test_empty_vocabularies_are_refused() -> None:
    with pytest.raises(ValueError, match="text is empty"):
        CharacterTokenizer.from_text("")
    with pytest.raises(ValueError, match="characters is empty"):
        CharacterTokenizer("")


def test_prompts_are_cleaned() -> None:
    assert clean_prompt("  once \n\n\tupon a \r\n time") == "\nonce\nupon a\ntime"
    assert clean_prompt("") == "\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "JSON list"),
        ('{"kind": "words"}', "kind 'words'; expected one of"),
        ('{"model": {}}', r"BPETokenizer\.from_file"),
        ('{"kind": "characters", "characters": "ab"}', "lacks 'unknown'"),
        ('{"kind": "characters", "characters": 3, "unknown": null}', "no string"),
    ],
    ids=["cut_off", "list", "kind", "hugging_face", "lacks", "number"],
)
def test_a_damaged_folder_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


def test_bpe_applies_neither_truncation_nor_padding(bpe_file: Path) -> None:
    found = BPETokenizer.from_file(bpe_file)
    assert found.vocab_size == len(json.loads(bpe_file.read_text())["model"]["vocab"]) + 1
    assert found.encode("    x").tolist()[0] == found.vocab_size - 1
    assert len(found.encode("the dog " * 20)) > 20
    assert found.decode(found.encode("the<|endoftext|>fox")) == "the<|endoftext|>fox"


def test_bpe_is_compared_by_what_it_does(bpe_file: Path) -> None:
    found, table = BPETokenizer.from_file(bpe_file), json.loads(bpe_file.read_text())
    assert found == BPETokenizer(json.dumps(table), "another name")
    vocab = table["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    other = BPETokenizer(json.dumps(table))
    assert other.vocab_size == found.vocab_size
    assert other != found
    assert len({found, other, BPETokenizer.from_file(bpe_file)}) == 2
    assert found != ByteTokenizer()


def strip(left: bool) -> dict[str, Any]:
    """A normalizer that strips white space on one side."""
    return {"type": "Strip", "strip_left": left, "strip_right": not left}


def split_words(table: dict[str, Any]) -> dict[str, Any]:
    """A pre_tokenizer that is byte-level, of words alone."""
    return {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, table["pre_tokenizer"]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table["model"].update(type="WordPiece"), "is a WordPiece tokenizer"),
        (lambda table: table.update(pre_tokenizer={"type": "Whitespace"}), "is not byte-level"),
        (lambda table: table.update(pre_tokenizer=None), "is not byte-level"),
        (lambda table: table["model"]["vocab"].pop("Ġ"), "lacks ids for 1 of the 243 bytes"),
        (lambda table: table.pop("model"), "no 'model'"),
        (lambda table: table.update(normalizer={"type": "Nonsense"}), "cannot be read by tokenizers"),
        (lambda table: table["model"].update(dropout=0.1), "dropout 0.1, so a text has other ids each time"),
        (lambda table: table.update(decoder=None), "no decoder of type ByteLevel"),
        (lambda table: table.update(normalizer=strip(left=True)), r"reads ' a \\n\\tb \\n' and gives back 'a \\n"),
        (lambda table: table.update(normalizer=strip(left=False)), r"gives back ' a \\n\\tb'"),
        (lambda table: table.update(pre_tokenizer=split_words(table)), "gives back 'ab'"),
    ],
    ids=["model", "whitespace", "none", "byte", "no_model", "library", "dropout", "decoder", "left", "right", "words"],
)
def test_other_tokenizer_files_are_refused(
    change: Callable[[dict[str, Any]], object], message: str, bpe_file: Path, tmp_path: Path
) -> None:
    table = json.loads(bpe_file.read_text())
    change(table)
    (tmp_path / "changed.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=message):
        BPETokenizer.from_file(tmp_path / "changed.json")


def test_without_the_library_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'spikeloom\[text\]'"):
        BPETokenizer("{}")


class Table(ByteTokenizer):
    """Gives the ids of a table."""

    def __init__(self, table: dict[str, list[int]], vocab_size: int = 50277) -> None:
        self.table = table
        self.vocab_size = vocab_size

    def encode(self, text: str) -> Any:
        return np.array(self.table[text])


def test_the_check_of_neox_compares_size_and_ids() -> None:
    check_neox_20b(Table(NEOX))
    with pytest.raises(ValueError, match=r"has 50257 ids; that of GPT-NeoX-20B has 50277.*20B_tokenizer\.json"):
        check_neox_20b(Table(NEOX, 50257))
    for text, ids in NEOX.items():
        with pytest.raises(ValueError, match=re.escape(f"reads {text!r} as [1]; that of GPT-NeoX-20B as {ids}")):
            check_neox_20b(Table({**NEOX, text: [1]}))


def test_the_neox_file_has_the_published_ids() -> None:
    """Runs where the file is at hand; it is not part of the package."""
    path = Path(__file__).resolve().parents[1] / "golden" / "data" / "20B_tokenizer.json"
    pytest.importorskip("tokenizers")
    if not path.is_file():
        pytest.skip(f"the tokenizer of GPT-NeoX-20B is not at {path}")
    check_neox_20b(BPETokenizer.from_file(path))
