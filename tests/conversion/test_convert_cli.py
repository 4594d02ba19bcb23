"""`spikeloom convert`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spikeloom.cli import main
from spikeloom.conversion import load_converted

CODE = """
from torch import nn
def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
"""


def test_a_file_and_a_checkpoint_become_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text(CODE)
    ann = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    torch.save({"state_dict": ann.state_dict()}, tmp_path / "net.pth")
    images = torch.randn(64, 1, 4, 4)
    torch.save({"images": images, "labels": torch.zeros(64)}, tmp_path / "images.pt")
    line = ["convert", f"{tmp_path}/net.py:network", "--images", f"{tmp_path}/images.pt", "--batch", "4", "--T", "64"]
    code = main([*line, "--weights", f"{tmp_path}/net.pth", "--out", f"{tmp_path}/snn", "--method", "channel_max"])
    printed = capsys.readouterr().out
    assert code == 0
    assert "1 activation converted by channel_max; latency 64 steps" in printed
    net = load_converted(tmp_path / "snn")
    with torch.no_grad():
        torch.testing.assert_close(net(images).mean(0), ann(images), rtol=0, atol=0.05)


def test_a_torchvision_checkpoint_of_a_local_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    ann = torchvision.models.squeezenet1_1(weights=None, num_classes=7).eval()
    torch.save(ann.state_dict(), tmp_path / "net.pth")
    images = torch.randn(16, 3, 33, 33)
    save_file({"images": images}, tmp_path / "images.safetensors")
    line = ["convert", "squeezenet1_1", "--classes", "7", "--images", f"{tmp_path}/images.safetensors", "--T", "8"]
    settings = ["--method", "channel_max", "--out", f"{tmp_path}/snn"]
    assert main([*line, *settings, "--weights", f"{tmp_path}/net.pth"]) == 0
    assert "thresholds are from 16 calibration images in 1 batch" in capsys.readouterr().out
    net = load_converted(tmp_path / "snn")
    for name, layer in ann.named_modules():
        if name == "features.0":  # nothing is folded into the first one
            assert torch.equal(dict(net.layers.items())["features_0"].weight, layer.weight)
    net.T = 512
    with torch.no_grad():
        expected = ann(images[:2])
        assert (net(images[:2]).mean(0) - expected).abs().max() < 0.1 * expected.abs().max()
    assert main([*line[:1], "resnet18", *line[4:], "--weights", f"{tmp_path}/net.pth"]) == 1
    assert "does not belong to this network" in capsys.readouterr().err


def test_timm_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("timm") is not None:
        pytest.skip("timm is installed")
    assert main(["convert", "timm/resnet18", "--images", f"{tmp_path}/images.pt"]) == 1
    assert "pip install timm" in capsys.readouterr().err


def test_mistakes_explain_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "images.pt")
    assert main(["convert", "resnet181", "--images", f"{tmp_path}/images.pt"]) == 1
    assert "torchvision has no model 'resnet181'" in capsys.readouterr().err
    assert main(["convert", "squeezenet1_1", "--images", f"{tmp_path}/images.pt"]) == 1
    assert "holds no tensor" in capsys.readouterr().err


def test_files_that_hold_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text(
        CODE + "def sized(classes, width=3):\n    return network()\nbuilt = network()\nsize = 3\n"
    )
    torch.save(torch.randn(64, 1, 4, 4), tmp_path / "images.pt")
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "whole.pt")
    (tmp_path / "text.pt").write_text("no weights at all")

    def said(function: str, *more: str) -> str:
        code = main(["convert", f"{tmp_path}/net.py:{function}", "--images", f"{tmp_path}/images.pt", *more])
        found = capsys.readouterr()
        return found.err if code else found.out

    whole = said("network", "--weights", f"{tmp_path}/whole.pt")
    assert "whole.pt holds more than tensors" in whole
    assert "torch.save(net.state_dict(), PATH)" in whole
    assert "text.pt cannot be read as a file of torch.save" in said("network", "--weights", f"{tmp_path}/text.pt")
    assert "net.py:sized wants arguments (classes); expected a function without any" in said("sized")
    assert "net.py:size is of type int; expected a function" in said("size")
    assert "1 activation converted by ltb" in said("built", "--batch", "4")


def test_a_layer_of_a_container_is_named_by_its_path(tmp_path: Path) -> None:
    from spikeloom.conversion import NotConvertibleError, convert

    net = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(4, 4), nn.GELU()), nn.Linear(4, 2))
    with pytest.raises(
        NotConvertibleError, match=r"1 of its operations has no .*\n  GELU '1\.1' \(module 1\.1\): train it"
    ):
        convert(net.eval(), [torch.zeros(2, 4)])
