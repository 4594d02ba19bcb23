"""Models saved and loaded: whole or not there, equal to the last bit, and clear words about every other file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from spikeloom.models import SpikformerConfig, create_model, files, load_model, save_model
from spikeloom.models.files import CheckpointError
from spikeloom.models.registry import default_config, name_of
from spikeloom.training.checkpoint import Description, save_checkpoint
from spikeloom.training.recipe import Data, Recipe

SMALL: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "depth": 1, "mlp_ratio": 1.0, "T": 2}


def build(seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    return create_model("spikformer_cifar_2_256", **{**SMALL, **more})


def images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_model(build(), tmp_path / "models" / "mine")


def test_a_model_comes_back(saved: Path) -> None:
    assert sorted(file.name for file in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(file.name for file in saved.parent.iterdir()) == ["mine"]
    model: Any = load_model(saved)
    assert not model.training
    assert model.config == build().config
    assert torch.equal(model(images()), build().eval()(images()))
    assert torch.equal(load_model(saved / "model.safetensors")(images()), model(images()))
    written = json.loads((saved / "config.json").read_text())
    assert written["model"] == "spikformer_cifar_2_256"
    assert written["model_config"]["embed_dim"] == 16


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_keep_their_type(tmp_path: Path, dtype: torch.dtype) -> None:
    model = build().to(dtype).eval()
    loaded = load_model(save_model(model, str(tmp_path / "mine")))
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert torch.equal(loaded(images(dtype)), model(images(dtype)))


def test_kernels_in_channels_last_order_are_saved(tmp_path: Path) -> None:
    model = build().to(memory_format=torch.channels_last)
    loaded = load_model(save_model(model, tmp_path / "mine")).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_entries_that_no_forward_reads_come_back(tmp_path: Path) -> None:
    model = build(legacy_keys=True, legacy_positions=4)
    loaded = load_model(save_model(model, tmp_path / "mine")).state_dict()
    assert {"pos_embed", "norm.weight", "blocks.0.norm1.weight"} <= loaded.keys()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_overrides_replace_fields(saved: Path) -> None:
    model: Any = load_model(saved, T=5, order="qk_v")
    assert (model.config.T, model.config.order, model.config.embed_dim) == (5, "qk_v", 16)
    assert model(images()).shape == (5, 2, 10)
    with pytest.raises(ValueError, match="no field 'dept'"):
        load_model(saved, dept=3)
    with pytest.raises(
        CheckpointError, match=r"head.weight is \[10, 16\], the model's is \[3, 16\].*reset_classifier changes"
    ):
        load_model(saved, num_classes=3)


def test_a_saved_model_is_replaced(saved: Path) -> None:
    save_model(build(1, depth=2), saved)
    model: Any = load_model(saved)
    assert model.config.depth == 2
    assert sorted(file.name for file in saved.parent.iterdir()) == ["mine"]


@pytest.mark.parametrize("fail_at", ["save_file", "sync", "first rename", "second rename"])
def test_an_interrupted_write_loses_nothing(saved: Path, fail_at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rename, calls = load_file(saved / "model.safetensors"), os.rename, []

    def fail(*args: Any) -> None:
        if "rename" in fail_at:
            calls.append(args)
            if len(calls) != (1 if fail_at == "first rename" else 2):
                return rename(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "rename") if "rename" in fail_at else (files, fail_at)), fail)
        with pytest.raises(KeyboardInterrupt):
            save_model(build(1), saved)
    after = load_file(saved / "model.safetensors")
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [file.name for file in saved.parent.iterdir()] == ["mine"]
    load_model(saved)


def test_a_folder_with_other_things_is_left_alone(saved: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other things too \(notes.txt\)"):
        save_model(build(1), saved)
    assert (saved / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        save_model(build(1), saved / "notes.txt")


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    load_model(save_model(build(), tmp_path))


def test_a_checkpoint_of_a_training_is_read(tmp_path: Path) -> None:
    model = build().eval()
    config = files.model_config(model)
    recipe = Recipe(model="spikformer_cifar_2_256", data=Data("saccade_mnist", T=2))
    folder = save_checkpoint(
        tmp_path, Description("spikformer_cifar_2_256", config, recipe, 3, 1), model.state_dict(), {"step": 3}
    )
    assert torch.equal(load_model(folder)(images()), model(images()))
    with pytest.raises(ValueError, match=r"holds other things too \(state.pt\)"):
        save_model(model, folder)
    with pytest.raises(CheckpointError, match=r"it holds checkpoint-000003; expected model\.safetensors"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["missing", "cut off", "empty"])
def test_a_damaged_file_is_named(saved: Path, name: str, damage: str) -> None:
    content = (saved / name).read_bytes()
    if damage == "missing":
        (saved / name).unlink()
    else:
        (saved / name).write_bytes(content[: len(content) // 2] if damage == "cut off" else b"")
    words = "is missing; a checkpoint has" if damage == "missing" else "damaged or cut off|cannot be read"
    with pytest.raises(CheckpointError, match=words) as raised:
        load_model(saved)
    assert str(saved / name) in str(raised.value)


def test_no_model_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere is no saved model: there is nothing; expected model\."):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="it holds nothing"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"model": 3, "model_config": {}}', '{"model": "spikformer_8_768"}'])
def test_a_configuration_of_another_kind_is_refused(saved: Path, content: str) -> None:
    (saved / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="does not describe a model; expected the entries 'model'"):
        load_model(saved)


def test_an_unknown_model_gives_the_nearest(saved: Path) -> None:
    (saved / "config.json").write_text(json.dumps({"model": "spikformer_cifar", "model_config": {}}))
    with pytest.raises(ValueError, match=r"no model 'spikformer_cifar' \(nearest: "):
        load_model(saved)


def test_weights_that_do_not_fit_are_listed(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    weights["extra"] = torch.zeros(1)
    del weights["head.bias"]
    weights["head.weight"] = torch.zeros(3, 16)
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds another model: ") as raised:
        load_model(saved)
    for words in (
        "head.bias is missing",
        "extra is not in the model",
        "head.weight is [3, 16], the model's is [10, 16]",
    ):
        assert words in str(raised.value)


def test_a_model_that_is_not_registered_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Linear is no registered model; expected one of ConvSNN, .*Spikformer"):
        save_model(nn.Linear(2, 2), tmp_path / "mine")
    compiled: Any = torch.compile(build(), backend="eager")
    with pytest.raises(ValueError, match=r"model\._orig_mod"):
        save_model(compiled, tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("spikformer_cifar_4_384", {"num_classes": 100, "T": 6}),
        ("spikformer_8_512", {"num_classes": 0}),
        ("spikformer_dvs_2_256", {"T": 10, "num_classes": 11}),
        ("conv_snn_tiny", {"dropout": 0.5}),
    ],
)
def test_the_name_is_that_of_the_nearest_configuration(name: str, overrides: dict[str, Any]) -> None:
    with torch.device("meta"):
        assert name_of(create_model(name, **overrides)) == name


def test_default_configurations() -> None:
    assert default_config("spikformer_cifar_4_384") == SpikformerConfig()
    assert default_config("conv_snn_tiny").widths == (8, 16)
