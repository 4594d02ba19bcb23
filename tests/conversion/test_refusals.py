"""What does not convert says so: operations, control flow, calibration sets."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from spikeloom_tests.conversion.nets import mixed
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.conversion import NotConvertibleError, convert
from spikeloom.models import create_model


class Net(nn.Module):
    """Convolution, something, linear."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 2, 3), nn.Linear(2, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.conv(x))
        logits: Tensor = self.last(x.mean((2, 3)))
        return logits


IMAGES = [torch.randn(4, 1, 6, 6)]


@pytest.mark.parametrize(
    ("between", "says"),
    [
        (nn.GELU(), r"GELU 'between' \(.*test_refusals.py:\d+: x = self.between.*ReLU or spikeloom.conversion.QCFS"),
        (nn.SiLU(), "in the place of SiLU"),
        (nn.LeakyReLU(), "spikes cannot be negative"),
        (nn.Hardtanh(), "use ReLU, ReLU6, Hardtanh"),
        (lambda x: F.softplus(x), "softplus"),
        (lambda x: x * torch.relu(x), "product of two activations"),
        (lambda x: torch.relu(x) * torch.sigmoid(x), "gate or sigmoid"),
        (lambda x: x.clamp(-1, 1), "clamp"),
        (lambda x: x, "has no activation"),
        (nn.Sequential(nn.ReLU(), nn.InstanceNorm2d(2)), "InstanceNorm2d"),
    ],
    ids=["gelu", "silu", "leaky", "hardtanh", "softplus", "product", "sigmoid", "clamp", "nothing", "instancenorm"],
)
def test_operations(between: Any, says: str) -> None:
    with pytest.raises(NotConvertibleError, match=says):
        convert(Net(between), IMAGES)


def test_all_are_listed() -> None:
    with pytest.raises(NotConvertibleError, match="2 of its operations"):
        convert(Net(nn.Sequential(nn.GELU(), nn.ReLU(), nn.Sigmoid())), IMAGES)


def test_control_flow() -> None:
    def branch(x: Tensor) -> Tensor:
        return torch.relu(x) if x.mean() > 0 else x

    with pytest.raises(NotConvertibleError, match=r"(?s)test_refusals.py:\d+: return torch.relu.*torch.fx.wrap"):
        convert(Net(branch), IMAGES)


def test_in_place_ops_that_a_graph_cannot_hold() -> None:
    def reads_again(x: Tensor) -> Tensor:
        y = F.relu(x, inplace=True)
        return x + y

    with pytest.raises(NotConvertibleError, match="do not compute what Net computes"):
        convert(Net(reads_again), IMAGES)


def test_spiking_already() -> None:
    ann, images = mixed()
    with pytest.raises(NotConvertibleError, match="spiking neurons already"):
        convert(convert(ann, images.split(4)), images.split(4))
    with pytest.raises(NotConvertibleError, match="spiking neurons already"):
        convert(create_model("conv_snn_tiny"), images.split(4))


@pytest.mark.parametrize(
    ("loader", "says"),
    [
        ([], "calibration set is empty"),
        (None, "calibration set is empty"),
        (torch.randn(4, 1, 6, 6), "is a tensor"),
        ([torch.zeros(4, 1, 6, 6, dtype=torch.uint8)], "floating-point images"),
        (["images"], "a calibration batch is str"),
    ],
    ids=["empty", "none", "tensor", "bytes", "text"],
)
def test_calibration_sets(loader: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        convert(Net(nn.ReLU()), loader)


def test_few_batches_and_another_range_warn() -> None:
    ann, images = mixed()
    with pytest.warns(UserWarning, match="saw 2 calibration batches"):
        convert(ann, images.split(32))
    with pytest.warns(UserWarning, match=r"not in the range.*gets 25\d"):
        convert(ann, [(255 * part, 0) for part in images.split(4)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(ann, [(part, 0) for part in images.split(4)])


def test_thresholds_that_are_not_there() -> None:
    with pytest.raises(NotConvertibleError, match="with_qcfs"):
        convert(Net(nn.ReLU()), IMAGES, method="qcfs")


def test_max_pools_may_be_refused() -> None:
    ann, images = mixed()
    with pytest.raises(NotConvertibleError, match="the network has 2"):
        convert(ann, images.split(4), max_pool="refuse")
