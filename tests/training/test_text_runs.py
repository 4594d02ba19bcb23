"""Language models from recipes: training, resuming, evaluation, and what is refused."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from spikeloom.datasets import ByteTokenizer, CharacterTokenizer, write_indexed
from spikeloom.datasets.tokenizer_folder import load_tokenizer
from spikeloom.models import create_model
from spikeloom.training import Augment, Data, Loss, Optim, Recipe, Result, TrainingInterrupted, fit, loop, run
from spikeloom.training.cli import evaluate
from spikeloom.training.data import batches_of, load_test, load_train
from spikeloom.training.finite import DivergedError
from spikeloom.training.log import RunLog
from spikeloom.training.optim import learning_rate
from spikeloom.training.text_batches import Text, TextBatches
from spikeloom.training.token_schedule import rate_at_token

TEXT = "one spike per token, and one token per step. the state is all that is kept of the past.\n" * 40
CPU = torch.device("cpu")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def recipe(text: Path) -> Recipe:
    """Three epochs of four steps; dropout draws random numbers."""
    return Recipe(
        model="spikegpt_46m",
        model_args={"depth": 2, "embed_dim": 16, "dropout": 0.1},
        data=Data("text_file", root=str(text), context=24, tokenizer="characters", windows=18, validation=3),
        optim=Optim(lr=4e-3, min_lr=1e-4, betas=(0.9, 0.99), eps=4e-9, warmup_epochs=0.0, schedule="token"),
        loss=Loss(logit_penalty=1e-4),
        task="language",
        epochs=3,
        batch_size=4,
    )


def quiet(recipe: Recipe, out: Path, resume: bool = False) -> Result:
    return fit(recipe, out, resume=resume, device="cpu", console=Console(quiet=True))


def test_a_run_learns_and_keeps_its_tokenizer(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(recipe, epochs=6, data=replace(recipe.data, windows=64), optim=replace(recipe.optim, lr=1e-2))
    result = quiet(recipe, tmp_path / "run")
    assert result.test.mean_loss < 2.4 < math.log(22)
    assert result.test.samples == len(TEXT) // 10 - 1  # all of the last tenth but its first token, each once
    assert result.test.bits_per_character == pytest.approx(result.test.mean_loss / math.log(2))
    assert sorted(result.firing) == ["binary", "blocks.0.lif1", "blocks.0.lif2", "blocks.1.lif1", "blocks.1.lif2"]
    assert load_tokenizer(result.checkpoint) == CharacterTokenizer.from_text(TEXT)
    last = RunLog(tmp_path / "run" / "log.jsonl").lines()[-1]
    assert last["event"] == "test"
    assert last["perplexity"] == pytest.approx(math.exp(result.test.mean_loss))
    assert evaluate([str(tmp_path / "run"), "--device", "cpu", "--stride", "24"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "bits per character, perplexity" in shown
    assert "windows of 24, stride 24" in shown


def test_evaluation_weighs_every_token_once(recipe: Recipe) -> None:
    data = replace(recipe.data, stride=24)
    part = load_test(data)
    assert isinstance(part, Text)
    model = create_model("spikegpt_46m", vocab_size=part.tokenizer.vocab_size, embed_dim=16, depth=1).eval()
    whole = loop.evaluate(model, TextBatches(part, data, 4, CPU), recipe, CPU)
    alone = loop.evaluate(model, TextBatches(part, data, 1, CPU), recipe, CPU)
    assert whole.samples == alone.samples == len(part) - 1
    assert whole.loss == pytest.approx(alone.loss, rel=1e-5)


@pytest.mark.parametrize(
    ("written", "tokenizer", "ratio"),
    [("äb" * 100, "bytes", 1.5), ("äb" * 100, "characters", 1.0)],
    ids=["bytes", "characters"],
)
def test_tokens_per_character(tmp_path: Path, written: str, tokenizer: str, ratio: float) -> None:
    (tmp_path / "a.txt").write_text(written)
    data = Data("text_file", root=str(tmp_path), context=4, tokenizer=tokenizer)
    (part, _), device = load_train(data), CPU
    found = batches_of(part, data, 2, device).tokens_per_character
    assert found == pytest.approx(ratio, abs=0.01)


def test_bytes_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\r\n\xff" * 30)
    ByteTokenizer().save(tmp_path / "saved")
    data = Data("text_file", root=str(tmp_path), context=4)
    for tokenizer in ("bytes", str(tmp_path / "saved")):
        part = load_test(replace(data, tokenizer=tokenizer))
        assert isinstance(part, Text)
        assert part.tokens.tobytes() == b"a\r\n\xff" * 3
    (tmp_path / "b.txt").write_text("b" * 120)
    assert len(load_train(data)[0]) == 216  # both files, in the order of their names


def test_batches_are_time_first_and_repeat(recipe: Recipe) -> None:
    part, held = load_train(recipe.data)
    assert isinstance(part, Text)
    assert isinstance(held, Text)
    batches = TextBatches(part, recipe.data, 4, CPU)
    drawn = list(batches.shuffled(0, 1))
    assert len(drawn) == len(batches) == 18 // 4
    inputs, targets = drawn[2]
    assert inputs.shape == targets.shape == (24, 4)
    assert inputs.dtype == torch.int64
    assert torch.equal(inputs[1:], targets[:-1])
    assert torch.equal(inputs, next(batches.shuffled(0, 1, start=2))[0])
    # three contexts, in windows half a context apart
    assert len(held) == 3 * 24 + 1
    assert len(list(TextBatches(held, recipe.data, 1, CPU).in_order())) == 5


def test_a_resumed_run_is_bit_exact(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = quiet(recipe, tmp_path / "straight")

    class Stop:
        asked = 0

        @property
        def signal(self) -> int | None:
            self.asked += 1
            return signal.SIGINT if self.asked >= 6 else None

    @contextmanager
    def watch() -> Iterator[Stop]:
        yield Stop()

    with monkeypatch.context() as patch:
        patch.setattr(run, "watch", watch)
        with pytest.raises(TrainingInterrupted):
            quiet(recipe, tmp_path / "cut")
    (half,) = (tmp_path / "cut").glob("checkpoint-*")
    assert half.name == "checkpoint-000005"  # in the middle of the second epoch
    resumed = quiet(recipe, tmp_path / "cut", resume=True)
    one, other = (load_file(result.checkpoint / "model.safetensors") for result in (straight, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert straight.test.loss == resumed.test.loss


def test_a_changed_text_is_not_resumed(recipe: Recipe, text: Path, tmp_path: Path) -> None:
    quiet(replace(recipe, epochs=1), tmp_path / "run")
    text.write_text(TEXT.replace("k", "Q"))
    with pytest.raises(ValueError, match="was trained with another tokenizer"):
        quiet(replace(recipe, epochs=1), tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="was trained with another tokenizer"):
        quiet(replace(recipe, init=str(tmp_path / "run")), tmp_path / "other")


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, calls = loop.language_loss, iter(range(1000))

    def broken(logits: torch.Tensor, targets: torch.Tensor, penalty: float) -> torch.Tensor:
        loss = own(logits, targets, penalty)
        return loss * math.nan if logits.requires_grad and next(calls) >= 6 else loss

    monkeypatch.setattr(loop, "language_loss", broken)
    with pytest.raises(DivergedError, match="loss is nan at step 6"):
        quiet(recipe, tmp_path / "run")
    (kept,) = (tmp_path / "run").glob("checkpoint-*")
    assert kept.name == "checkpoint-000004"
    assert all(bool(value.isfinite().all()) for value in load_file(kept / "model.safetensors").values())


def test_indexed_ids_are_read_by_the_tokenizer_of_a_folder(recipe: Recipe, tmp_path: Path) -> None:
    tokenizer = CharacterTokenizer.from_text(TEXT)
    tokenizer.save(tmp_path / "tokenizer")
    write_indexed(tmp_path / "pair", [tokenizer.encode(TEXT)])
    data = replace(recipe.data, name="indexed_text", tokenizer=str(tmp_path / "tokenizer"))
    for root in ("pair", "pair.bin"):
        part = load_test(replace(data, root=str(tmp_path / root)))
        assert isinstance(part, Text)
        assert tokenizer.decode(part.tokens) == TEXT[-len(TEXT) // 10 :]
    write_indexed(tmp_path / "wrong", [tokenizer.encode(TEXT) + 5])
    with pytest.raises(ValueError, match=r"expected 0 to \d+"):
        load_test(replace(data, root=str(tmp_path / "wrong")))
    with pytest.raises(ValueError, match="expected the tokenizer that the ids were made by"):
        load_test(replace(data, root=str(tmp_path / "pair"), tokenizer="characters"))


def test_the_rate_follows_the_tokens(recipe: Recipe) -> None:
    optim, step, tokens = replace(recipe.optim, warmup_epochs=1.0), 4, 4 * 24
    rates = [learning_rate(number, 12, step, optim) for number in range(12)]
    assert rates[0] == optim.lr
    for number in range(1, 12):
        assert rates[number] == pytest.approx(rate_at_token(number * tokens, 4e-3, 1e-4, 4 * tokens, 12 * tokens))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: replace(r, data=replace(r.data, T=4)), "Data.T changes nothing there"),
        (lambda r: replace(r, data=replace(r.data, stride=25)), "stride is 25"),
        (lambda r: replace(r, data=replace(r.data, tokenizer="none.json")), "there is no such file"),
        (lambda r: replace(r, data=replace(r.data, context=5000)), "Choose a shorter context"),
        (lambda r: replace(r, data=replace(r.data, root=None)), "was given. Pass a text file"),
        (lambda r: replace(r, data=Data("saccade_mnist")), "is no text"),
        (lambda r: replace(r, data=Data("saccade_mnist", context=5)), "context changes nothing there"),
        (lambda r: replace(r, task="classify", loss=Loss()), "is a text"),
        (lambda r: replace(r, task="classify"), "logit_penalty changes nothing"),
        (lambda r: replace(r, model="spikformer_small", model_args={}), "is for SpikeGPT"),
        (lambda r: replace(r, augment=Augment(flip=0.5)), "augment changes nothing"),
        (lambda r: replace(r, batch_size=64), "has no whole batch"),
        (lambda r: replace(r, optim=replace(r.optim, min_lr=None)), "final_lr is 0.0"),
        (lambda r: replace(r, model_args={"depth": 1, "vocab_size": 3, "embed_dim": 8}), "got the token id"),
    ],
    ids=["T", "stride", "tokenizer", "context", "root", "task", "field", "classify", "penalty", "model", "augment",
         "batch", "lowest", "vocabulary"],
)  # fmt: skip
def test_what_does_not_fit_is_refused(recipe: Recipe, tmp_path: Path, change: object, says: str) -> None:
    assert callable(change)
    with pytest.raises(ValueError, match=says):
        quiet(change(recipe), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recipe_goes_to_json_and_back(recipe: Recipe) -> None:
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
