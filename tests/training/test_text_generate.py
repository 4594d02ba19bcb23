"""`spikeloom generate`, and the text recipes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from spikeloom.datasets import ByteTokenizer, CharacterTokenizer, write_indexed
from spikeloom.models import create_model
from spikeloom.models.files import WEIGHTS
from spikeloom.training import Data, Recipe, fit, generate_cli, get_recipe
from spikeloom.training.generate_cli import decoded, draw, generate
from spikeloom.training.token_schedule import rate_at_token

TEXT = "in the beginning was the word. " * 60


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    (folder / "text.txt").write_text(TEXT)
    recipe = Recipe(
        model="spikegpt_46m",
        model_args={"depth": 1, "embed_dim": 8},
        data=Data("text_file", root=str(folder), context=16, tokenizer="characters", windows=8, limit=1),
        task="language",
        epochs=1,
        batch_size=8,
    )
    return fit(recipe, folder / "run", device="cpu", console=Console(quiet=True)).checkpoint


def test_a_text_is_continued_and_repeats(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(trained.parent), "--prompt", "in the", "--tokens", "30", "--device", "cpu"]
    texts = []
    for seed in ("1", "1", "2"):
        assert generate([*arguments, "--seed", seed, "--top-p", "1"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("in the")
    assert len(texts[0]) == len("in the") + 30 + len("\n")
    assert set(texts[0]) <= set(TEXT + "\n")


def test_greedy_tokens_are_those_of_the_whole_text() -> None:
    torch.manual_seed(0)
    model = create_model("spikegpt_46m", vocab_size=11, embed_dim=16, depth=2).double().eval()
    ids = torch.tensor([3, 1, 4, 1, 5])
    drawn = draw(model, ids, 9, torch.Generator(), top_p=0.0, temperature=1.0)
    for _ in range(8):
        with torch.no_grad():
            expected = int(model(ids.unsqueeze(1))[-1, 0, :9].argmax())
        assert next(drawn) == expected < 9
        ids = torch.cat([ids, torch.tensor([expected])])


def test_a_long_prompt_enters_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = create_model("spikegpt_46m", vocab_size=11, embed_dim=16, depth=1).eval()
    ids = torch.randint(0, 11, (10,))

    def first() -> int:
        return next(draw(model, ids, 11, torch.Generator().manual_seed(0), 1.0, 1.0))

    whole = first()
    monkeypatch.setattr(generate_cli, "_PIECE", 3)
    assert first() == whole


def test_characters_of_several_tokens_are_written_whole() -> None:
    text = "aé€\N{GRINNING FACE}b"
    pieces = list(decoded(iter(text.encode()), ByteTokenizer(), len(text.encode())))
    assert pieces == list(text)
    assert list(decoded(iter(b"a\xe2\x82"), ByteTokenizer(), 3)) == ["a", "\N{REPLACEMENT CHARACTER}"]
    assert "".join(decoded(iter(b"\xff\xff\xff\xff\xffz"), ByteTokenizer(), 6)).endswith("z")


def test_ctrl_c_keeps_what_there_is(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    monkeypatch.setattr(generate_cli, "draw", interrupted)
    assert generate([str(trained), "--prompt", "in", "--device", "cpu"]) == 130
    assert capsys.readouterr().out == "in" + sorted(set(TEXT))[1] + "\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompt", ""], "A line feed does"),
        (["--prompt", "in", "--tokens", "0"], "--tokens is 0"),
        (["--prompt", "in", "--temperature", "0"], "--temperature is 0.0"),
    ],
    ids=["empty", "tokens", "temperature"],
)
def test_wrong_usage_is_explained(
    trained: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        generate([str(trained), *arguments, "--device", "cpu"])
    assert stop.value.code == 2
    assert says in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_unknown_characters_are_named(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"without an id: 'Ä' \(U\+00C4\) at 3"):
        generate([str(trained), "--prompt", "in Ätna", "--device", "cpu"])


def test_other_checkpoints_are_refused(trained: Path, tmp_path: Path, tiny: Recipe) -> None:
    other = fit(replace(tiny, epochs=1), tmp_path / "run", device="cpu", console=Console(quiet=True)).checkpoint
    with pytest.raises(ValueError, match="is no language model but a conv_snn_tiny"):
        generate([str(other), "--prompt", "in"])
    for name in ("config.json", WEIGHTS):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    with pytest.raises(FileNotFoundError, match=r"lacks tokenizer\.json"):
        generate([str(tmp_path), "--prompt", "in"])
    ByteTokenizer().save(tmp_path)
    with pytest.raises(ValueError, match=r"has 256 ids, and the network knows \d+"):
        generate([str(tmp_path), "--prompt", "in"])


@pytest.mark.parametrize("name", ["enwik8_paper", "openwebtext_216m_paper"])
def test_the_published_training(name: str) -> None:
    recipe = get_recipe(name)
    optim, data = recipe.optim, recipe.data
    assert (optim.lr, optim.min_lr, optim.betas, optim.eps) == (6e-4, 1e-5, (0.9, 0.99), 4e-9)
    assert (optim.weight_decay, optim.clip_norm, recipe.loss.logit_penalty) == (0.0, 1.0, 1e-4)
    assert (recipe.batch_size, data.context, data.windows, recipe.epochs) == (12, 1024, 10_000, 1000)
    assert rate_at_token(0, optim.lr, 1e-5, 0, 10_240_000_000) == optim.lr
    assert optim.schedule == "token"
    assert optim.warmup_epochs == 0


@pytest.mark.parametrize("name", ["spikegpt_char", "char_small", "enwik8_paper", "openwebtext_216m_paper"])
def test_a_recipe_reads_and_takes_steps(name: str, tmp_path: Path) -> None:
    recipe, tokenizer = get_recipe(name), CharacterTokenizer.from_text(TEXT)
    (tmp_path / "file").write_text(TEXT)
    root = None
    if recipe.data.name == "text_file":
        root = str(tmp_path / "file")
    elif recipe.data.name == "indexed_text":
        write_indexed(tmp_path / "pair", [tokenizer.encode(TEXT)])
        root = str(tmp_path / "pair")
        tokenizer.save(tmp_path)
        recipe = replace(recipe, data=replace(recipe.data, tokenizer=str(tmp_path)))
    data = replace(recipe.data, root=root, context=16, windows=4, stride=None, validation=1, limit=2)
    model_args = {**recipe.model_args, "depth": 1, "embed_dim": 8}
    recipe = replace(recipe, data=data, model_args=model_args, batch_size=2, epochs=1)
    result = fit(recipe, tmp_path / "run", device="cpu", console=Console(quiet=True))
    assert (result.epochs, result.test.samples) == (1, 32)
    assert result.test.bits_per_character < 8


def test_the_larger_recipe_is_small() -> None:
    model = create_model("spikegpt_46m", **{**get_recipe("char_small").model_args, "vocab_size": 256})
    assert 9e6 < sum(parameter.numel() for parameter in model.parameters()) < 11e6
