"""The golden networks of tests/ as any counter can see them, and their exact counts.

`ToolNet` is made of torch's own layers and gets all steps and samples in one call. It differs from the golden graph in
two points that concern every counter alike: a bias is added after its layer, because some counters put it into the
layer's operations and others do not; a delay layer is a convolution over time with one non-zero tap per synapse, the
form in which any counter can find a layer at all.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TESTS = Path(__file__).resolve().parents[1] / "tests"
DATA = TESTS / "golden" / "data" / "energy"


def _name_tests_folder() -> None:
    """Make tests/ importable as tests/conftest.py does, where that has not run."""
    if "spikeloom_tests" in sys.modules:
        return
    if not DATA.is_dir():
        raise SystemExit(f"{DATA} is missing: run this comparison in a checkout that has its tests")
    spec = ModuleSpec("spikeloom_tests", None, is_package=True)
    spec.submodule_search_locations = [str(TESTS)]
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)


_name_tests_folder()

from spikeloom_tests.golden.energy.graph import CONVS, Case, Node, module_name  # noqa: E402
from spikeloom_tests.golden.energy.layers import fill, linear  # noqa: E402
from spikeloom_tests.golden.energy.nets import CLASSES, PlainNet  # noqa: E402

Operations = tuple[float, float]
"""AC and MAC of all steps and samples."""
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


SINGLY = ", one sample per call"
"""Ending of the names of cases whose samples come one after the other: for counters that decide call by call."""


def cases() -> list[str]:
    """Names of the golden networks; the one with samples of different kinds also sample by sample."""
    names = sorted(path.stem for path in DATA.glob("*.safetensors"))
    return [*names, f"sticky_kind{SINGLY}"]


def load(name: str) -> Case:
    """A golden network, its input and its counts."""
    kind = Singly if name.endswith(SINGLY) else Case
    return kind.load(DATA / f"{name.removesuffix(SINGLY)}.safetensors")


class Singly(Case):
    """A network that is called once per sample."""


def exact(case: Case) -> dict[str, Operations]:
    """The golden counts by layer: loops over input elements and kernel taps made them (tests/energy/brute_force.py)."""
    return {y["name"]: (sum(map(sum, y["ac"])), sum(map(sum, y["mac"]))) for y in case.golden["layers"]}


class DelayConv(nn.Module):
    """y[t, b, o] = sum_i weight[o, i] x[t - delay[o, i], b, i] as a dense convolution over time, x [T, B, in]."""

    def __init__(self, weight: Tensor, delay: Tensor, longest: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(weight.shape[1], weight.shape[0], longest + 1, bias=False)
        kernel = torch.zeros(*weight.shape, longest + 1)
        kernel.scatter_(2, longest - delay.long().unsqueeze(2), weight.unsqueeze(2))
        fill(self.conv, {"weight": kernel})

    def forward(self, x: Tensor) -> Tensor:
        past = F.pad(x.permute(1, 2, 0), (self.conv.kernel_size[0] - 1, 0))  # [B, in, T + longest]
        return self.conv(past).permute(2, 0, 1)


class ToolNet(PlainNet):
    """The network as other counters see it: see the head of this file."""

    def module(self, node: Node) -> nn.Module:
        values = self._case.parameters(node["name"])
        if node["op"] == "delay_linear":
            return DelayConv(values["weight"], values["delay"], node["attrs"]["max_delay"])
        if node["op"] not in ("linear", *CONVS):
            return super().module(node)
        attrs = {**node["attrs"], "bias": False}
        values.pop("bias", None)
        if node["op"] == "linear":
            return linear(nn.Linear, {**node, "attrs": attrs}, values)
        return fill(getattr(nn, CLASSES[node["op"]])(**attrs), values)

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        out = super().compute(node, *inputs)
        bias = self._case.parameters(node["name"]).get("bias")
        if bias is None or node["op"] == "batchnorm":
            return out
        return out + (bias if node["op"] == "linear" else bias.reshape(-1, *[1] * (out.dim() - 3)))


def run(net: nn.Module, case: Case) -> None:
    """Call a network with all steps and samples, or with all steps of one sample after the other.

    Raises:
        RuntimeError: it does not fire the stored spikes, so counting it would compare different networks.
    """
    inputs = case.x.split(1, 1) if isinstance(case, Singly) else [case.x]
    with torch.no_grad():
        parts = [net(x) for x in inputs]
    for name, wanted in case.expected().items():
        fired = torch.cat([part[name] for part in parts], 1)
        if not wanted.is_floating_point() and not torch.equal(fired, wanted.to(fired.dtype)):
            raise RuntimeError(
                f"{type(net).__name__} of {case.golden['case']}: spikes of {name} differ from the file's"
            )


def holds(layer: str, name: str) -> bool:
    """Is what a counter calls `name` a layer of the golden file, or inside its module?"""
    node, _, inside = layer.partition(".")  # `<node>.ff` is inside the module of a recurrent node
    path = f"{module_name(node)}.{inside}" if inside else module_name(node)
    return name == path or name.startswith(f"{path}.")


def linear_modules(net: nn.Module, case: Case) -> Iterator[tuple[str, nn.Module]]:
    """The layers of the golden file that are modules, with them; products of two activations are none."""
    for layer in exact(case):
        found = [m for name, m in net.named_modules() if isinstance(m, LINEAR) and holds(layer, name)]
        if found:
            (module,) = found
            yield layer, module


def by_layer(net: nn.Module, case: Case, counted: Mapping[nn.Module, Operations]) -> dict[str, Operations]:
    """Counts of modules as counts of the golden file's layers."""
    return {layer: counted[module] for layer, module in linear_modules(net, case) if module in counted}


def is_chain(case: Case) -> bool:
    """Does every node read the node before it, and no other?"""
    names = [case.input, *(node["name"] for node in case.nodes)]
    return all(list(node["inputs"]) == [before] for before, node in zip(names, case.nodes, strict=False))
