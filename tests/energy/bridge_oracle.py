"""An independent count of a network of modules: what its layers read and its neurons gave, recorded by hooks of each
module in an ordinary run, and terms counted by convolutions with a kernel of ones in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from spikeloom.energy import Counts, Run, count
from spikeloom.energy.counts import NeuronCount

IntArray = NDArray[np.int64]
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class Recording:
    """Inputs of linear modules and outputs of neurons by name, one entry per call."""

    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    spikes: dict[str, list[Tensor]] = field(default_factory=dict)


def record(net: nn.Module, neurons: tuple[type, ...], call: Callable[[], Any]) -> tuple[Recording, Any]:
    """Call a network with hooks on its modules; returns the recording and what the call returned."""
    found, handles = Recording(), []
    for name, module in net.named_modules():
        if isinstance(module, LINEAR):
            found.modules[name], found.inputs[name] = module, []
            handles.append(
                module.register_forward_pre_hook(lambda _, x, kept=found.inputs[name]: kept.append(x[0].clone()))
            )
        if isinstance(module, neurons):
            found.spikes[name] = []
            handles.append(
                module.register_forward_hook(
                    lambda _, __, out, kept=found.spikes[name]: kept.append(first(out).clone())
                )
            )
    with torch.no_grad():
        result = call()
    for handle in handles:
        handle.remove()
    return found, result


def first(output: Any) -> Tensor:
    """A module's output, or the first of several."""
    return output[0] if isinstance(output, tuple) else output


def terms(module: nn.Module, x: Tensor) -> Tensor:
    """Terms of the non-zero elements of x [rows, ...] in a linear module, per row, int64."""
    there = (x != 0).double()
    if isinstance(module, nn.Linear):
        return there.flatten(1).sum(1).long() * module.out_features
    assert isinstance(module, nn.modules.conv._ConvNd)
    ones = torch.ones_like(module.weight, dtype=torch.float64)
    conv = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}[x.dim()]
    out = conv(there, ones, None, module.stride, module.padding, module.dilation, module.groups)
    return out.flatten(1).sum(1).round().long()


def per_step(rows: list[Tensor], T: int, B: int) -> IntArray:
    """Counts per row of all calls as [T, B]: one call of [T B r] rows, or m calls of [B r] rows in each step."""
    if len(rows) == 1:
        return rows[0].reshape(T, B, -1).sum(2).numpy()
    steps = torch.stack([call.reshape(B, -1).sum(1) for call in rows])
    return steps.reshape(T, -1, B).sum(1).numpy()


def rows_of(module: nn.Module, x: Tensor) -> Tensor:
    """A recorded input with all axes that count as batch folded."""
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    assert isinstance(module, nn.modules.conv._ConvNd)
    return x.flatten(0, x.dim() - 2 - len(module.kernel_size))


def check(counts: Counts, found: Recording, T: int, B: int) -> None:
    """Every linear module and every layer of neurons is counted, and exactly as recorded."""
    ran = {name: calls for name, calls in found.inputs.items() if calls}
    layers = {layer.name: layer for layer in counts.layers if layer.is_param}
    assert set(layers) == set(ran)
    for name, calls in ran.items():
        module, layer = found.modules[name], layers[name]
        rows = [rows_of(module, x) for x in calls]
        np.testing.assert_array_equal(layer.sop, per_step([terms(module, x) for x in rows], T, B), name)
        events = [(x != 0).flatten(1).sum(1) for x in rows]
        np.testing.assert_array_equal(layer.events, per_step(events, T, B), name)
        dense = per_step([terms(module, torch.ones_like(x)) for x in rows], T, B)
        assert (dense == layer.dense_exact).all(), name
        assert layer.assigned
    check_neurons(counts, found, T, B)
    assert counts.uncounted == []


def check_neurons(counts: Counts, found: Recording, T: int, B: int) -> None:
    """Spikes and updates of every recorded layer of neurons."""
    neurons = {n.name: n for n in counts.of(NeuronCount)}
    assert set(neurons) == {name for name, calls in found.spikes.items() if calls}
    for name, neuron in neurons.items():
        calls = found.spikes[name]
        if len(calls) == 1:
            fired = (calls[0] != 0).reshape(T, B, -1).sum(2)
        else:
            fired = torch.stack([(x != 0).reshape(B, -1).sum(1) for x in calls])
        np.testing.assert_array_equal(neuron.spikes, fired.numpy(), name)
        assert neuron.updates * T * B == sum(x.numel() for x in calls), name


def same_counts(a: Counts, b: Counts, names: dict[str, str] | None = None) -> None:
    """Equal layers and equal neurons; `names` maps those of a to those of b, None means they are the same."""
    names = names or {}
    assert [names.get(x.name, x.name) for x in a.layers] == [x.name for x in b.layers]
    for mine, other in zip(a.layers, b.layers, strict=True):
        for field_ in ("op", "kind", "quantum", "dense_exact", "bias_adds", "in_numel", "out_numel", "static_input"):
            assert getattr(mine, field_) == getattr(other, field_), f"{field_} of {mine.name}"
        np.testing.assert_array_equal(mine.sop, other.sop, mine.name)
        np.testing.assert_array_equal(mine.events, other.events, mine.name)
    for left, right in zip(a.of(NeuronCount), b.of(NeuronCount), strict=True):
        assert (left.updates, left.states, left.soft_reset) == (right.updates, right.states, right.soft_reset)
        np.testing.assert_array_equal(left.spikes, right.spikes, left.name)
        np.testing.assert_array_equal(left.touched, right.touched, left.name)


def counted(net: nn.Module, call: Callable[[Run], Any], **options: Any) -> tuple[Counts, Any]:
    """Counts of `call(run)` in strict mode, and what it returned."""
    with torch.no_grad(), count(net, strict=True, **options) as run:
        result = call(run)
    return run.counts(), result


def over_time(net: nn.Module, x: Tensor, whole: bool, reset: Callable[[], Any]) -> Callable[..., Tensor]:
    """The call on x [T, B, ...], at once or by a loop over time; under a run, the loop is one batch."""

    def call(run: Run | None = None) -> Tensor:
        reset()
        if whole:
            return first(net(x))
        if run is None:
            return torch.stack([first(net(step)) for step in x])
        with run.batch(T=x.shape[0], B=x.shape[1]):
            return torch.stack([first(net(step)) for step in x])

    return call


def random_spikes(*shape: int, rate: float = 0.4, seed: int = 0) -> Tensor:
    """Zeros and ones."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate).float()
