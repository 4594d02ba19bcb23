"""Checkpoints: whole or not there, and clear words about every other file."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spikeloom.models import create_model, files, model_config
from spikeloom.training import CheckpointError, Recipe, checkpoint, load_model
from spikeloom.training.checkpoint import (
    Description,
    find_checkpoint,
    load_weights,
    read_state,
    require_checkpoint,
    save_checkpoint,
    write_atomic,
)


def write(run: Path, step: int, recipe: Recipe) -> Path:
    """Save a fresh model as the checkpoint of a step."""
    torch.manual_seed(step)
    model = create_model("conv_snn_tiny").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    description = Description("conv_snn_tiny", model_config(model), recipe, step, step // 5)
    return save_checkpoint(run, description, model.state_dict(), {"rng": torch.get_rng_state(), "step": step})


@pytest.fixture
def saved(tmp_path: Path, tiny: Recipe) -> Path:
    return write(tmp_path, 5, tiny)


def test_a_checkpoint_comes_back(saved: Path, tiny: Recipe) -> None:
    assert sorted(file.name for file in saved.iterdir()) == ["config.json", "model.safetensors", "state.pt"]
    model, description = load_model(saved)
    torch.manual_seed(5)
    expected = create_model("conv_snn_tiny").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert (description.recipe, description.step, description.epoch) == (tiny, 5, 1)
    assert read_state(saved)["step"] == 5


def test_it_is_found_by_run_folder_by_itself_and_by_its_weights(saved: Path) -> None:
    for path in (saved, saved.parent, saved / "model.safetensors"):
        assert find_checkpoint(path) == saved
    assert find_checkpoint(saved.parent / "nothing") is None


def test_a_new_checkpoint_replaces_the_old_one(saved: Path, tiny: Recipe) -> None:
    newer = write(saved.parent, 1_000_010, tiny)  # beyond the six digits of a name: numbers are compared, not text
    assert not saved.exists()
    assert require_checkpoint(saved.parent) == newer


def test_the_newest_of_several_counts(saved: Path, tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda path: None)  # as if killed before the old one was deleted
    newer = write(saved.parent, 1_000_010, tiny)
    assert saved.exists()
    assert require_checkpoint(saved.parent) == newer


@pytest.mark.parametrize("step", ["save_file", "rename"])
def test_an_interrupted_write_leaves_the_old_checkpoint(
    saved: Path, tiny: Recipe, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files if step == "save_file" else os, step, fail)
        with pytest.raises(KeyboardInterrupt):
            write(saved.parent, 10, tiny)
    assert require_checkpoint(saved.parent) == saved
    assert load_model(saved.parent)[1].step == 5
    write(saved.parent, 10, tiny)
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint-000010"]  # nothing is left of the attempt


def test_write_atomic_keeps_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_atomic(file, "old")

    def fail(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "config.json"])
@pytest.mark.parametrize("damage", ["missing", "cut off", "empty"])
def test_a_damaged_file_is_named(saved: Path, name: str, damage: str) -> None:
    file = saved / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "cut off" else b"")
    with pytest.raises(
        CheckpointError, match=r"is missing; a checkpoint has|is no checkpoint|damaged or cut off|cannot be read"
    ) as raised:
        read_state(saved) if name == "state.pt" else load_model(saved)
    assert str(saved) in str(raised.value)


def test_no_pickled_objects_are_loaded(saved: Path) -> None:
    torch.save({"path": Path("x")}, saved / "state.pt")
    with pytest.raises(CheckpointError, match="damaged"):
        read_state(saved)


def test_a_configuration_of_another_kind_is_refused(saved: Path) -> None:
    (saved / "config.json").write_text(json.dumps({"model": "conv_snn_tiny"}))
    with pytest.raises(CheckpointError, match="lacks the entry"):
        load_model(saved)


def test_weights_of_another_model_are_refused(saved: Path) -> None:
    small = create_model("conv_snn_small")
    with pytest.raises(CheckpointError, match=r"holds another model: stages.2.conv.weight is missing; .* and \d+ more"):
        load_weights(small, load_file(saved / "model.safetensors"), saved)
    other = create_model("conv_snn_tiny", num_classes=3)
    with pytest.raises(CheckpointError, match=r"head.weight is \[10, 1296\], the model's is \[3, 1296\]"):
        load_weights(other, load_file(saved / "model.safetensors"), saved)


def test_an_unknown_model_gives_the_nearest(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "model": "conv_snn_teeny"}))
    with pytest.raises(ValueError, match="no model 'conv_snn_teeny'"):
        load_model(saved)


def test_a_path_without_checkpoint_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is nothing at"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"it holds nothing"):
        load_model(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"it holds notes.txt"):
        load_model(tmp_path)
