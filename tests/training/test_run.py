"""What a run shows, and where it runs."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from spikeloom.training import Recipe, TrainingInterrupted, fit
from spikeloom.training.checkpoint import require_checkpoint
from spikeloom.training.log import RunLog
from spikeloom.training.run import pick_device


def test_a_terminal_shows_a_bar_with_speed_and_time_left(tiny: Recipe, tmp_path: Path) -> None:
    screen = io.StringIO()
    fit(tiny, tmp_path / "run", device="cpu", console=Console(file=screen, force_terminal=True, width=150))
    text = screen.getvalue()
    for part in ("epoch 3/3", "samples/s", "left", "0:00:0", "loss", "accuracy"):
        assert part in text


def test_learning_shows_in_the_log(tiny: Recipe, tmp_path: Path) -> None:
    result = fit(replace(tiny, epochs=30), tmp_path / "run", device="cpu", console=Console(quiet=True))
    lines = RunLog(tmp_path / "run" / "log.jsonl").lines()
    assert [line["event"] for line in lines] == ["start", *["epoch"] * 30, "test"]
    assert lines[0]["recipe"] == replace(tiny, epochs=30).to_json()
    losses = [line["loss"] for line in lines[1:-1]]
    assert losses[-1] < 0.5 * losses[0]
    assert result.test.accuracy >= 0.5  # ten classes: 10 % by chance
    assert lines[-1]["accuracy"] == result.test.accuracy
    assert lines[-1]["firing"] == {name: layer.rate for name, layer in result.firing.items()}
    assert lines[-1]["step"] == 150


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="no device 'tpu9'; expected auto, cpu, cuda"):
        pick_device("tpu9")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"torch sees no GPU. `spikeloom doctor`"):
            pick_device("cuda:1")


@pytest.mark.gpu
@pytest.mark.parametrize("bf16", [False, True])
def test_a_gpu_trains_and_resumes(bf16: bool, tiny: Recipe, tmp_path: Path) -> None:
    recipe = replace(tiny, epochs=30, bf16=bf16, ema=0.9)
    quiet = Console(quiet=True)
    result = fit(recipe, tmp_path / "run", device="cuda", console=quiet)
    assert result.test.accuracy >= 0.5
    again = fit(recipe, tmp_path / "run", resume=True, device="cpu", console=quiet)  # trained on one, used on the other
    assert again.checkpoint == result.checkpoint
    assert abs(again.test.accuracy - result.test.accuracy) <= 0.1  # bfloat16 may turn a close decision


def test_an_interruption_is_a_keyboard_interrupt() -> None:
    assert issubclass(TrainingInterrupted, KeyboardInterrupt)


def test_a_missing_checkpoint_in_the_run_starts_from_the_beginning(tiny: Recipe, tmp_path: Path) -> None:
    quiet = Console(quiet=True)
    first = fit(replace(tiny, epochs=1), tmp_path / "run", device="cpu", console=quiet)
    expected = (first.checkpoint / "model.safetensors").read_bytes()
    for file in first.checkpoint.iterdir():
        file.unlink()
    first.checkpoint.rmdir()  # as after a kill in the first epoch
    fit(replace(tiny, epochs=1), tmp_path / "run", resume=True, device="cpu", console=quiet)
    assert (require_checkpoint(tmp_path / "run") / "model.safetensors").read_bytes() == expected


def test_a_finished_run_that_is_resumed_has_one_result(tiny: Recipe, tmp_path: Path) -> None:
    for resume in (False, True):
        fit(replace(tiny, epochs=1), tmp_path / "run", resume=resume, device="cpu", console=Console(quiet=True))
    events = [line["event"] for line in RunLog(tmp_path / "run" / "log.jsonl").lines()]
    assert events.count("test") == 1
    assert events[-1] == "test"
