"""Networks of torchvision with random weights: those that convert approach their ANN, the others say why not."""

from __future__ import annotations

import pytest
import torch
from spikeloom_tests.conversion.nets import settled
from torch import Tensor, nn

from spikeloom.conversion import NotConvertibleError, convert
from spikeloom.energy import count

torchvision = pytest.importorskip("torchvision")
pytestmark = [
    pytest.mark.filterwarnings("ignore:the thresholds are from:UserWarning"),  # few images do here
    pytest.mark.usefixtures("one_thread"),
]

CONVERT = {
    "alexnet": 64,
    "densenet121": 32,
    "googlenet": 32,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "regnet_x_400mf": 32,
    "resnet18": 32,
    "resnet34": 32,
    "resnet50": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "vgg11": 32,
    "vgg11_bn": 32,
    "wide_resnet50_2": 32,
}
"""Model -> height and width of the images."""
SLOW = ("alexnet", "vgg11", "vgg11_bn", "wide_resnet50_2", "resnet34")
REFUSED = {
    "convnext_tiny": "GELU",
    "efficientnet_b0": "SiLU",
    "mobilenet_v3_small": "Hardswish",
    "regnet_y_400mf": "squeeze-and-excitation",
    "vit_b_16": "VisionTransformer does not convert",
}


def model(name: str) -> nn.Module:
    torch.manual_seed(0)
    extra = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=10, **extra)
    for module in net.modules():
        if isinstance(module, nn.Linear) and max(module.weight.shape) == 4096:
            nn.init.normal_(module.weight, std=0.02)
    return net


def errors(name: str, size: int, steps: tuple[int, ...]) -> list[float]:
    """Largest difference of mean logits for each T, relative to the largest logit."""
    ann = model(name)
    settled(ann, torch.randn(8, 3, max(size, 64), max(size, 64)))
    x: Tensor = torch.randn(1, 3, size, size)
    net = convert(ann, [x], method="channel_max", T=2)
    found = []
    with torch.no_grad():
        expected = ann(x)
        for T in steps:
            net.T = T
            found.append(((net(x).mean(0) - expected).abs().max() / expected.abs().max()).item())
        net.T = 2
        with count(net, T=2, strict=True):
            net(x)
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else []) for name in CONVERT], ids=str
)
def test_approaches_its_ann(name: str) -> None:
    few, many = errors(name, CONVERT[name], (32, 512))
    assert many < 0.5 * few
    assert many < 0.2


@pytest.mark.parametrize("name", REFUSED)
def test_says_why_not(name: str) -> None:
    with pytest.raises(NotConvertibleError, match=REFUSED[name]):
        convert(torchvision.models.get_model(name, weights=None), [torch.randn(1, 3, 64, 64)])
