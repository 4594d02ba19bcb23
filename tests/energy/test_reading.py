"""How a network's input is read as steps and samples: what is not one must not be counted as one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spikeloom import synapses
from spikeloom.energy import count


def counted(net: nn.Module, x: Tensor, **options: int) -> tuple[int, int, list[int]]:
    with torch.no_grad(), count(net, **options) as run:  # type: ignore[arg-type]
        net(x)
    found = run.counts()
    return found.T, found.samples, [int(layer.sop.sum()) for layer in found.layers]


IMAGES = torch.ones(12, 3, 5, 5)
ANNS: dict[str, tuple[nn.Module, Tensor, str]] = {
    "conv2d": (nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), IMAGES, "Conv2d"),
    "conv1d": (nn.Sequential(nn.Conv1d(3, 2, 3)), torch.ones(12, 3, 7), "Conv1d"),
    "grey images": (nn.Sequential(nn.Conv2d(1, 2, 3)), IMAGES[:, :1], "Conv2d"),
    "vectors": (nn.Sequential(nn.Linear(4, 2)), torch.ones(7, 4), "Linear"),
    "flattened": (nn.Sequential(nn.Flatten(), nn.Linear(75, 2)), IMAGES, "Flatten"),
    "grey, flattened": (nn.Sequential(nn.Flatten(), nn.Linear(25, 2)), IMAGES[:, :1], "Flatten"),
}


@pytest.mark.parametrize("name", ANNS)
def test_samples_without_a_time_axis_are_refused_unless_the_steps_are_said(name: str) -> None:
    net, x, layer = ANNS[name]
    with pytest.raises(
        ValueError, match=rf"was taken for T = {len(x)} .* {layer} adds up its second .*count\(model, T=1"
    ):
        counted(net, x)
    T, samples, sop = counted(net, x, T=1)
    assert (T, samples) == (1, len(x))
    assert sop[0] == len(x) * net(x)[0].numel() * next(m for m in net if hasattr(m, "weight")).weight[0].numel()


class Flat(nn.Module):
    """Flattens by hand, so that the linear layer is the first to be asked."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(75, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(x.flatten(1))
        return y


def test_a_flattened_view_is_the_network_s_input() -> None:
    with pytest.raises(ValueError, match="Linear adds up its second axis: these are 12 samples"):
        counted(Flat(), IMAGES)


def test_the_steps_of_one_sample_can_be_said() -> None:
    net, x, _ = ANNS["grey, flattened"]
    with pytest.raises(ValueError, match=r"`with run.batch\(T=12, B=1\):` around the call for the steps of one"):
        counted(net, x)
    with torch.no_grad(), count(net) as run, run.batch(T=12, B=1):
        net(x)
    found = run.counts()
    assert (found.T, found.samples) == (12, 1)
    assert found.layers[0].sop.tolist() == [[50]] * 12


class Stepped(nn.Module):
    """A loop over time inside, whose layers see shapes that happen to be that of the network's input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.b(self.a(step.unsqueeze(1))) for step in x])


def test_an_equal_shape_by_chance_is_none_of_it() -> None:
    assert counted(Stepped(), torch.ones(4, 4, 5, 5))[:2] == (4, 4)


class Turned(nn.Module):
    """Brings the samples in front and takes the time steps for channels."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x.transpose(0, 1))
        return y


@pytest.mark.parametrize("B", [4, 6])
def test_time_as_channels_is_no_sum_over_samples(B: int) -> None:
    assert counted(Turned(nn.Conv2d(4, 2, 3)), torch.ones(4, B, 5, 5))[:2] == (4, B)
    assert counted(Turned(nn.Sequential(nn.Flatten(), nn.Linear(20, 2))), torch.ones(4, B, 5))[:2] == (4, B)
    assert counted(Turned(nn.Linear(4, 2)), torch.ones(4, B))[:2] == (4, B)


def test_layers_that_keep_time_are_taken_as_they_are() -> None:
    net = nn.Sequential(synapses.Conv2d(3, 2, 3), synapses.Flatten(), synapses.Linear(18, 4))
    assert counted(net, torch.ones(6, 2, 3, 5, 5))[:2] == (6, 2)
    assert counted(nn.Sequential(nn.Linear(4, 2)), torch.ones(6, 2, 4))[:2] == (6, 2)
    net = nn.Sequential(nn.Flatten(0, 1), nn.Conv2d(3, 2, 3))
    assert counted(net, torch.ones(6, 2, 3, 5, 5))[:2] == (6, 2)


def test_a_model_is_a_module() -> None:
    with pytest.raises(TypeError, match=r'takes the nn.Module .* got a str; .* create_model\("NAME"\)'):
        count("conv_snn_tiny")  # type: ignore[arg-type]
