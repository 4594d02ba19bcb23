"""Networks of timm with random weights: those that convert approach their ANN, the others say why not."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from spikeloom_tests.conversion.nets import settled
from torch import nn

from spikeloom.cli import main
from spikeloom.conversion import NotConvertibleError, convert, load_converted

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    timm = pytest.importorskip("timm")
pytestmark = pytest.mark.filterwarnings("ignore:the thresholds are from:UserWarning", "ignore::FutureWarning")

CONVERT = ("resnet18", "resnet26d", "resnet50", "resnext50_32x4d", "regnetx_002", "mobilenetv2_100", "densenet121")
SLOW = ("mobilenetv2_100",)  # needs some thousand steps
REFUSED = {
    "efficientnet_b0": "SiLU",
    "regnety_002": "squeeze-and-excitation",
    "vgg11_bn": r"vgg.py:\d+: if x.shape",
    "convnext_tiny": "layer_norm",
}


def model(name: str) -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = timm.create_model(name, pretrained=False, num_classes=10)
    return settled(net, torch.randn(8, 3, 64, 64))


@pytest.mark.parametrize("name", CONVERT)
def test_approaches_its_ann(name: str) -> None:
    size, steps = (32, (128, 2048)) if name in SLOW else (64, (16, 256))
    ann, x = model(name), torch.randn(1, 3, size, size)
    net = convert(ann, [x], method="channel_max", T=2)
    errors = []
    with torch.no_grad():
        expected = ann(x)
        for T in steps:
            net.T = T
            errors.append(((net(x).mean(0) - expected).abs().max() / expected.abs().max()).item())
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.2


@pytest.mark.parametrize("name", REFUSED)
def test_says_why_not(name: str) -> None:
    with pytest.raises(NotConvertibleError, match=REFUSED[name]):
        convert(timm.create_model(name, pretrained=False), [torch.randn(1, 3, 64, 64)])


def test_a_local_checkpoint(tmp_path: Path) -> None:
    ann, images = model("resnet18"), torch.randn(4, 3, 64, 64)
    torch.save(ann.state_dict(), tmp_path / "net.pth")
    torch.save(images, tmp_path / "images.pt")
    line = ["convert", "timm/resnet18", "--classes", "10", "--weights", f"{tmp_path}/net.pth", "--T", "256"]
    assert main([*line, "--images", f"{tmp_path}/images.pt", "--method", "channel_max", "--out", f"{tmp_path}/s"]) == 0
    with torch.no_grad():
        expected = ann(images)
        found = load_converted(tmp_path / "s")(images[:1]).mean(0)
        assert (found - expected[:1]).abs().max() < 0.1 * expected.abs().max()
