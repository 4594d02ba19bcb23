"""Converted networks as NIR graphs: an interpreter of NIR's own equations, files, and the way back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spikeloom_tests.conversion.nets import mixed, settled
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.conversion import ConvertedNet, convert, from_nir, to_nir

nir = pytest.importorskip("nir")


def settle(net: nn.Module, *shape: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    images = torch.randn(64, *shape, dtype=torch.float64)
    return settled(net.double(), images), images


def mlp() -> tuple[nn.Module, Tensor]:
    layers = [nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4, bias=False)]
    return settle(nn.Sequential(*layers), 1, 4, 4)


def vgg() -> tuple[nn.Module, Tensor]:
    def block(i: int, o: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]

    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)]
    return settle(nn.Sequential(*block(3, 5), nn.AvgPool2d(2), *block(5, 6), nn.AvgPool2d(2), *tail), 3, 8, 8)


class Residual(nn.Module):
    """One block with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, 4, 3, padding=1) for i in (2, 4, 4))
        self.last = nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = F.relu(x + self.c(F.relu(self.b(x))))
        logits: Tensor = self.last(x.flatten(1))
        return logits


NETS = {"mlp": mlp, "vgg": vgg, "residual": lambda: settle(Residual(), 2, 6, 6)}


def run(graph: Any, images: Tensor, T: int) -> Tensor:
    """What NIR's definitions say, with unit time steps: `[T, B, K]`. Values of a loop are those of the step before."""
    nodes, back = graph.nodes, {source for source, _ in graph.edges if isinstance(graph.nodes[source], nir.Scale)}
    late = {name: torch.zeros(()) for name in back if np.all(nodes[name].scale < 0)}
    integrals: dict[str, Any] = {}
    outputs = []

    def value(name: str, known: dict[str, Tensor]) -> Tensor:
        if name not in known:
            sources = [source for source, target in graph.edges if target == name]
            x: Any = images if not sources else sum(late[s] if s in late else value(s, known) for s in sources)
            known[name] = step(name, nodes[name], x)
        return known[name]

    def step(name: str, node: Any, x: Tensor) -> Tensor:
        if isinstance(node, nir.I):
            integrals[name] = integrals.get(name, 0.0) + torch.from_numpy(node.r) * x
            return integrals[name]
        if isinstance(node, nir.Threshold):
            return (x > torch.from_numpy(node.threshold)).to(x)
        if isinstance(node, nir.Scale):
            return x * torch.from_numpy(node.scale)
        if isinstance(node, nir.Affine):
            return x @ torch.from_numpy(node.weight).T + torch.from_numpy(node.bias)
        if isinstance(node, nir.Conv2d):
            sizes = [tuple(int(i) for i in v) for v in (node.stride, node.padding, node.dilation)]
            return F.conv2d(x, torch.from_numpy(node.weight), torch.from_numpy(node.bias), *sizes)
        if isinstance(node, nir.AvgPool2d):
            return F.avg_pool2d(x, tuple(int(i) for i in node.kernel_size), tuple(int(i) for i in node.stride))
        if isinstance(node, nir.Flatten):
            return x.flatten(1)
        assert isinstance(node, (nir.Input, nir.Output))
        return x

    for _ in range(T):
        known: dict[str, Tensor] = {}
        (last,) = graph.outputs
        outputs.append(value(last, known))
        late |= {name: value(name, known) for name in late}
    return torch.stack(outputs)


class Integral(nn.Module):
    """nir.I."""

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        v = x if state is None else state + x
        return v, v


class Exceeds(nn.Module):
    """nir.Threshold, and nir.Scale."""

    def __init__(self, level: Any, factor: Any = None) -> None:
        super().__init__()
        self.level, self.factor = level, factor

    def forward(self, x: Tensor) -> Tensor:
        if self.factor is not None:
            return x * torch.from_numpy(self.factor)
        return (x > torch.from_numpy(self.level)).to(x)


def linear(node: Any) -> nn.Module:
    layer = nn.Linear(node.weight.shape[1], len(node.weight), dtype=torch.float64)
    layer.load_state_dict({"weight": torch.from_numpy(node.weight), "bias": torch.from_numpy(node.bias)})
    return layer


def test_nirtorch_runs_the_loops_alike() -> None:
    nirtorch = pytest.importorskip("nirtorch")
    net, images = made("mlp", method="channel_max")
    modules = {
        nir.I: lambda node: Integral(),
        nir.Threshold: lambda node: Exceeds(node.threshold),
        nir.Scale: lambda node: Exceeds(None, node.scale),
        nir.Affine: linear,
        nir.Flatten: lambda node: nn.Flatten(),
    }
    other = nirtorch.nir_to_torch(to_nir(net, images.shape[1:]), modules, dtype=torch.float64)
    state, found = None, []
    with torch.no_grad():
        for _ in range(6):
            y, state = other(images, state)
            found.append(y)
        torch.testing.assert_close(torch.stack(found), net(images), rtol=0, atol=1e-12)


def made(name: str, **choices: Any) -> tuple[ConvertedNet, Tensor]:
    ann, images = NETS[name]()
    return convert(ann, images.split(4), T=6, **choices), images[:5]


@pytest.mark.parametrize(
    ("name", "method"), [(n, "channel_max") for n in NETS] + [("mlp", "advanced"), ("vgg", "light")]
)
def test_nir_says_what_the_network_computes(name: str, method: str, tmp_path: Path) -> None:
    net, images = made(name, method=method)
    nir.write(tmp_path / "net.nir", to_nir(net, images.shape[1:]))
    graph = nir.read(tmp_path / "net.nir")
    with torch.no_grad():
        expected = net(images)
        assert expected.std() > 0
        torch.testing.assert_close(run(graph, images, 6), expected, rtol=0, atol=1e-9)
        again = from_nir(tmp_path / "net.nir")
        assert (again.T, again.input_ndim) == (6, images.ndim)
        torch.testing.assert_close(again(images), expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(again(images.expand(6, *images.shape)), expected, rtol=0, atol=1e-9)


def test_spikes_at_the_threshold_itself() -> None:
    ann = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for parameter, number in zip(ann.parameters(), (1.0, 0.0, 1.0, 0.0), strict=True):
            parameter.fill_(number)
    images = torch.linspace(0, 1, 17, dtype=torch.float64)[:, None]
    net = convert(ann, [images], method="max", T=8)
    with torch.no_grad():
        expected = net(images)
        assert torch.equal(run(to_nir(net, (1,)), images, 8), expected)
        assert torch.equal(from_nir(to_nir(net, (1,)))(images), expected)


def test_what_nir_lacks_is_named() -> None:
    ann, images = mixed()
    net = convert(ann, images.split(4))
    with pytest.raises(
        ValueError, match=r"(?s)6 operations.*side .*grouped.*again.*no shift.*no concat.*CountMaxPool.*no max"
    ):
        to_nir(net, (3, 8, 8))
    net, images = made("residual", method="advanced")
    with pytest.raises(ValueError, match=r"1 operations.*\n  relu_2 .*a current of its own in every step"):
        to_nir(net, images.shape[1:])
    ann, images = mlp()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "local threshold", UserWarning)
        net = convert(ann, [images], method="cos")
    with pytest.raises(ValueError, match=r"2 operations of this network:\n  _2 .OffsetIF"):
        to_nir(net, images.shape[1:])


def test_other_graphs_are_refused() -> None:
    def graph(*nodes: Any) -> Any:
        return nir.NIRGraph.from_list(nir.Input(np.array([3])), *nodes, nir.Output(np.array([3])))

    with pytest.raises(ValueError, match="no number of time steps"):
        from_nir(graph(nir.Scale(np.ones(3))))
    with pytest.raises(ValueError, match=r"if is nir.IF, which is no part"):
        from_nir(graph(nir.IF(np.ones(3), np.ones(3))), T=4)
    with pytest.raises(ValueError, match="i is an integrator without a threshold"):
        from_nir(graph(nir.I(np.ones(3))), T=4)
