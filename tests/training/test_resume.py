"""A run that was interrupted and resumed gives the numbers of one that was not, bit for bit (on a CPU)."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from spikeloom.training import Augment, Data, Recipe, Result, TrainingInterrupted, fit, loop, recipes, run
from spikeloom.training.checkpoint import read_description, read_state, require_checkpoint
from spikeloom.training.log import RunLog
from spikeloom.training.recipe import read_recipe

EXACT = ("loss", "accuracy", "validation_loss", "validation_accuracy", "lr", "epoch", "step")


def quiet(recipe: Recipe, out: Path, resume: bool = False) -> Result:
    return fit(recipe, out, resume=resume, device="cpu", console=Console(quiet=True))


class StopAfter:
    """Stands for a signal that arrives during step `step`."""

    def __init__(self, step: int) -> None:
        self.asked, self.step = 0, step

    @property
    def signal(self) -> int | None:
        """The training asks once after every step (and once more after an epoch)."""
        self.asked += 1
        return signal.SIGINT if self.asked >= self.step else None


@contextmanager
def stopping(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    @contextmanager
    def watch() -> Iterator[StopAfter]:
        yield StopAfter(step)

    with monkeypatch.context() as patch:
        patch.setattr(run, "watch", watch)
        with pytest.raises(TrainingInterrupted, match=r"Continue with:\n  spikeloom train .* --resume") as raised:
            yield
        assert raised.value.code == 130


def epochs(out: Path) -> list[dict[str, Any]]:
    """What the log says of the epochs, without times."""
    lines = RunLog(out / "log.jsonl").lines()
    return [{name: line[name] for name in EXACT if name in line} for line in lines if line["event"] == "epoch"]


def assert_same_run(one: Path, other: Path) -> None:
    a, b = require_checkpoint(one), require_checkpoint(other)
    assert a.name == b.name
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    state, state_b = read_state(a), read_state(b)
    assert flat(state) == flat(state_b)
    assert epochs(one) == epochs(other)


def flat(value: Any) -> Any:
    """A nested state with tensors as lists, to be compared; wall-clock times are left out."""
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items() if key != "seconds"}
    if isinstance(value, list):
        return [flat(item) for item in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("step", [1, 3, 5, 6, 9, 14])
def test_resumed_equals_uninterrupted(step: int, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(tiny, data=replace(tiny.data, validation=10), batch_size=6, ema=0.9)  # 5 steps per epoch
    whole = quiet(tiny, tmp_path / "whole")
    with stopping(step, monkeypatch):
        quiet(tiny, tmp_path / "cut")
    resumed = quiet(tiny, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert (resumed.test.loss, resumed.test.correct) == (whole.test.loss, whole.test.correct)
    assert len(epochs(tmp_path / "cut")) == 3


def test_interrupted_again_and_again(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(tiny, tmp_path / "whole")
    for attempt in range(4):
        with stopping(2, monkeypatch):
            quiet(tiny, tmp_path / "cut", resume=attempt > 0)
    quiet(tiny, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_kill_between_log_and_checkpoint_repeats_the_epoch(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(tiny, tmp_path / "whole")
    saved = run.save
    with monkeypatch.context() as patch:

        def killed(training: Any, session: Any) -> Path:
            if training.epoch == 2:
                raise SystemExit(9)
            return saved(training, session)

        patch.setattr(run, "save", killed)
        with pytest.raises(SystemExit):
            quiet(tiny, tmp_path / "cut")
    assert [line["epoch"] for line in epochs(tmp_path / "cut")] == [1, 2]
    with (tmp_path / "cut" / "log.jsonl").open("a") as log:
        log.write('{"event": "epo')  # and the last line was cut off
    quiet(tiny, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_is_only_evaluated_again(tiny: Recipe, tmp_path: Path) -> None:
    first = quiet(tiny, tmp_path / "run")
    weights = (first.checkpoint / "model.safetensors").read_bytes()
    second = quiet(tiny, tmp_path / "run", resume=True)
    assert (second.test.loss, second.test.correct) == (first.test.loss, first.test.correct)
    assert (second.checkpoint / "model.safetensors").read_bytes() == weights
    assert len(epochs(tmp_path / "run")) == 3


def test_the_random_state_of_the_caller_is_left_alone(tiny: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    quiet(replace(tiny, epochs=1), tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_differ_and_repeat(tiny: Recipe, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        quiet(replace(tiny, epochs=1, seed=seed), tmp_path / name)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    a, c = (load_file(require_checkpoint(tmp_path / name) / "model.safetensors") for name in "ac")
    assert not torch.equal(a["head.weight"], c["head.weight"])


def test_resume_refuses_other_settings_and_other_data(tiny: Recipe, tmp_path: Path) -> None:
    tiny = replace(tiny, epochs=1)
    quiet(tiny, tmp_path / "run")
    with pytest.raises(ValueError, match=r"other settings: optim.lr 0.005 -> 0.1; .* --resume"):
        quiet(replace(tiny, optim=replace(tiny.optim, lr=0.1), epochs=2), tmp_path / "run", resume=True)
    shrunk = tmp_path / "run" / "recipe.json"
    shrunk.write_text(shrunk.read_text().replace('"limit": null', '"limit": 30'))
    with pytest.raises(ValueError, match="trained on 40 recordings, but the data set has 30 now"):
        quiet(replace(tiny, data=replace(tiny.data, limit=30)), tmp_path / "run", resume=True)


def test_nothing_is_overwritten(tiny: Recipe, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match=r"exists and is not empty\. Continue the run in it with --resume"):
        quiet(tiny, tmp_path)
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        quiet(tiny, tmp_path, resume=True)
    with pytest.raises(FileNotFoundError, match="There is no run at"):
        quiet(tiny, tmp_path / "new", resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_that_cannot_start_leaves_no_folder(tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="n-mnist"):
        quiet(replace(tiny, data=replace(tiny.data, root=str(tmp_path / "nowhere"))), tmp_path / "run")
    with pytest.raises(ValueError, match="no model 'conv_snn_teeny'"):
        quiet(replace(tiny, model="conv_snn_teeny"), tmp_path / "run")
    train_alone = tmp_path / "train_alone"
    train_alone.mkdir()
    (train_alone / "Train").symlink_to(Path(str(tiny.data.root)) / "Train")
    with pytest.raises(FileNotFoundError, match="Test"):
        quiet(replace(tiny, data=replace(tiny.data, root=str(train_alone))), tmp_path / "run")
    with pytest.raises(ValueError, match=r"Data\.crop is 64, but the frames"):
        quiet(replace(tiny, data=replace(tiny.data, crop=64)), tmp_path / "run")
    with pytest.raises(ValueError, match=r"drop_last leaves no batch of 41 of the 40 recordings"):
        quiet(replace(tiny, data=replace(tiny.data, drop_last=True), batch_size=41), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_first_stage_that_cannot_start_leaves_no_folder(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = replace(tiny, augment=Augment(), data=Data("cifar10_dvs", root=str(tmp_path / "nowhere")))
    monkeypatch.setattr(recipes, "_RECIPES", {"first_stage": lambda: gone})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        quiet(replace(tiny, pretrain="first_stage"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_first_stage_has_the_frames_and_the_limit_of_the_second(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "_RECIPES", {"first_stage": lambda: replace(tiny, epochs=1)})
    data = replace(tiny.data, duration_us=100_000, limit=16, T=2, crop=34, encoding="count")
    quiet(replace(tiny, pretrain="first_stage", epochs=1, data=data), tmp_path / "run")
    assert read_recipe(tmp_path / "run" / "pretrain" / "recipe.json").data == data
    assert read_description(require_checkpoint(tmp_path / "run" / "pretrain")).step == 2


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter([1.0] * 8 + [float("nan")])  # one recording is tried before the first step
    monkeypatch.setattr(loop, "make_loss", lambda config: lambda logits, labels: logits.mean() * next(steps))
    with pytest.raises(FloatingPointError, match=r"The loss is nan at step 7 .* Lower --lr"):
        quiet(tiny, tmp_path / "run")
    assert read_description(require_checkpoint(tmp_path / "run")).step == 5


class _Spoiled(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * float("nan")


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    clip_norm: float | None, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(99))

    def spoil(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = logits.square().mean()
        return _Spoiled.apply(loss) if next(calls) == 8 else loss  # type: ignore[no-untyped-call, no-any-return]

    monkeypatch.setattr(loop, "make_loss", lambda config: spoil)
    with pytest.raises(FloatingPointError, match=r"norm of the gradient is nan at step 7 .* Lower --lr"):
        quiet(replace(tiny, optim=replace(tiny.optim, clip_norm=clip_norm)), tmp_path / "run")
    checkpoint = require_checkpoint(tmp_path / "run")
    assert read_description(checkpoint).step == 5
    assert all(value.isfinite().all() for value in load_file(checkpoint / "model.safetensors").values())


def test_no_clipping_changes_no_gradient(tiny: Recipe, tmp_path: Path) -> None:
    for name, clip_norm in (("none", None), ("high", 1e30)):
        quiet(replace(tiny, epochs=1, optim=replace(tiny.optim, clip_norm=clip_norm)), tmp_path / name)
    assert_same_run(tmp_path / "none", tmp_path / "high")


def test_recordings_that_moved_are_resumed(
    recordings: Path, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(tiny, tmp_path / "whole")
    with stopping(7, monkeypatch):
        quiet(tiny, tmp_path / "cut")
    (tmp_path / "moved").symlink_to(recordings)
    there = replace(tiny, data=replace(tiny.data, root=str(tmp_path / "moved")))
    quiet(there, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert read_recipe(tmp_path / "cut" / "recipe.json") == there


def test_a_run_that_ended_before_its_first_checkpoint_goes_on_from_the_start(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:

        def killed(*_: Any) -> Any:
            raise SystemExit(9)

        patch.setattr(run, "train_epoch", killed)
        with pytest.raises(SystemExit):
            quiet(tiny, out)
    assert {path.name for path in out.iterdir()} == {"recipe.json", "log.jsonl"}
    with pytest.raises(ValueError, match="other settings: epochs 3 -> 1"):
        quiet(replace(tiny, epochs=1), out, resume=True)
    with pytest.raises(FileExistsError, match="is not empty"):  # it may still be running
        quiet(tiny, out)
    quiet(tiny, out, resume=True)
    assert len(epochs(out)) == 3
    with pytest.raises(FileExistsError, match="is not empty"):
        quiet(tiny, out)


@pytest.mark.parametrize("step", [2, 8])
def test_two_stages_resumed_in_either(step: int, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first_stage() -> Recipe:
        return replace(tiny, epochs=1)

    monkeypatch.setattr(recipes, "_RECIPES", {"first_stage": first_stage})
    both = replace(tiny, pretrain="first_stage", epochs=2)
    quiet(both, tmp_path / "whole")
    first = require_checkpoint(tmp_path / "whole" / "pretrain")
    assert read_description(first).epoch == 1
    with monkeypatch.context() as patch:
        calls = iter([StopAfter(step), StopAfter(step - 6)])  # the first stage asks six times: five steps, one epoch

        @contextmanager
        def watch() -> Iterator[StopAfter]:
            yield next(calls)

        patch.setattr(run, "watch", watch)
        with pytest.raises(TrainingInterrupted, match=r"spikeloom train \S*cut --resume"):
            quiet(both, tmp_path / "cut")
    quiet(both, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert_same_run(tmp_path / "whole" / "pretrain", tmp_path / "cut" / "pretrain")


def test_init_starts_from_a_checkpoint(tiny: Recipe, tmp_path: Path) -> None:
    first = quiet(replace(tiny, epochs=1), tmp_path / "first")
    frozen = replace(tiny.optim, lr=1e-30, weight_decay=0.0)
    second = quiet(replace(tiny, epochs=1, init=str(tmp_path / "first"), optim=frozen), tmp_path / "second")
    a, b = (load_file(result.checkpoint / "model.safetensors") for result in (first, second))
    assert torch.equal(a["head.weight"], b["head.weight"])
    with pytest.raises(ValueError, match="holds another model"):
        quiet(replace(tiny, model="conv_snn_small", init=str(tmp_path / "first")), tmp_path / "third")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_real_signal_saves_and_ends_the_process(number: int, code: int, recordings: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "spikeloom", "train", "nmnist_small", "--root", str(recordings)]
    command += ["--pretrain", "None", "--model", "conv_snn_tiny", "--out", str(tmp_path / "cut"), "--epochs", "300"]
    environment = {**os.environ, "PYTHONPATH": str(Path(run.__file__).parents[1]), "OMP_WAIT_POLICY": "passive"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("epoch"):
            process.send_signal(number)
            break
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert errors == ""
    assert f"spikeloom train {tmp_path / 'cut'} --resume" in rest
    description = read_description(require_checkpoint(tmp_path / "cut"))
    assert 1 <= description.epoch < 300
    assert RunLog(tmp_path / "cut" / "log.jsonl").lines()[-1]["event"] == "interrupted"
