"""Value kinds are of the whole run, and weights are told from activations by where they come from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from spikeloom_tests.energy.small import B, Call, Folded, T, counted, golden, in_batches, same_counts, sparse
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.energy import Totals, count


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 0, 2, 1], [2, 3, 1, 0]], ids=str)
def test_kind_is_of_the_whole_run(order: list[int]) -> None:
    """Samples that look binary, or are silent, do not flip a layer, whenever they come."""
    net, x = golden("sticky_kind")
    found = in_batches(net, x[:, order], [1, 1, 1, 1])
    assert found.layer("conv1").kind == "float"
    back = np.argsort(order)
    wanted = Totals(in_batches(net, x, [4]))
    assert Totals(found).mac_effective[:, back].tolist() == wanted.mac_effective.tolist()
    assert Totals(found).ac[:, back].tolist() == wanted.ac.tolist()


def test_sample_that_looks_binary_by_itself_and_the_override() -> None:
    """Run alone it is charged 3672 AC; with the kind given, as in its data set."""
    net, x = golden("sticky_kind")
    alone = in_batches(net, x[:, :1], [1])
    assert alone.layer("conv1").kind == "binary"
    assert Totals(alone).ac.sum() - alone.layer("conv2").sop.sum() == alone.layer("conv1").sop.sum()
    whole = in_batches(net, x, [4])
    for name in ("conv1", "input"):
        given = in_batches(net, x[:, :1], [1], kinds={name: "float"})
        assert given.layer("conv1").kind == "float"
        assert Totals(given).mac_effective.tolist() == Totals(whole).mac_effective[:, :1].tolist()


def test_silent_layer_is_listed_and_free() -> None:
    net, x = golden("silent")
    found = in_batches(net, x, [1, 1])
    layer = found.layer("lin2")
    assert (layer.kind, layer.quantum, layer.sop.sum(), layer.dense_exact) == ("zero", 1.0, 0, 48)
    assert layer.static_input
    assert Totals(found).ac.sum() == found.layer("lin1").sop.sum()


def test_image_of_few_levels_is_no_scaled_spike_until_arithmetic() -> None:
    """{0, 1/2} from the user is analogue, through views and copies too, and scaled spikes behind a pool or product."""
    x = sparse((2, 4, 4)) / 2
    layer = nn.Linear(4, 3).double()
    views: list[Callable[[Tensor], Tensor]] = [
        lambda x: x,
        lambda x: x.flatten(2).unflatten(-1, (2, 4, 4)),
        lambda x: x.transpose(-1, -2).contiguous(),
        lambda x: x.clone(),
        lambda x: x.float().double(),
        lambda x: torch.stack([x[t] for t in range(T)]),
        lambda x: torch.cat([x[:, :, :1], x[:, :, 1:]], 2),
    ]
    for view in views:
        assert counted(Call(lambda x, v=view: layer(v(x))), x).layers[0].kind == "float"
    assert counted(Call(lambda x: layer(x * 0.5)), x).layers[0].kind == "scaled_binary"
    pooled = counted(Folded(lambda x: layer(F.avg_pool2d(x, (2, 1)))), x).layers[0]
    assert (pooled.kind, pooled.quantum) == ("scaled_integer", 0.25)


def test_quantum_is_the_smallest_value_of_the_run() -> None:
    """A batch whose smallest pooled value is 2 quarters is counted in quarters if another batch has one quarter."""
    x = torch.zeros(T, 2, 1, 4, 4, dtype=torch.float64)
    x[:, 0, 0, 0, :2], x[:, 1, 0, 0, 0] = 1, 1  # two spikes in one window; one spike
    net = Folded(nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(1, 3, 1).double()))
    first = in_batches(net, x[:, :1], [1]).layers[0]
    assert (first.kind, first.quantum, first.sop_unit.tolist()) == ("scaled_binary", 0.5, [[3]] * T)
    both = in_batches(net, x, [1, 1]).layers[0]
    assert (both.kind, both.quantum, both.sop_unit.tolist()) == ("scaled_integer", 0.25, [[6, 3]] * T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_of_nested_pools_are_exact(dtype: torch.dtype) -> None:
    """Rounding makes many numbers of few levels; the units are still those of integer arithmetic."""
    spikes = sparse((1, 12, 12), rate=0.4)
    spikes[..., :7, :7] = 0
    spikes[..., 0, 0] = 1  # the one window that it is alone in has the smallest level, 1/81
    net = Folded(nn.Sequential(nn.AvgPool2d(3, 1), nn.AvgPool2d(3, 1), nn.Conv2d(1, 2, 1)).to(dtype))
    found = counted(net, spikes.to(dtype)).layers[0]
    sums = F.avg_pool2d(F.avg_pool2d(spikes.flatten(0, 1), 3, 1, divisor_override=1), 3, 1, divisor_override=1)
    assert sums.max() <= 64
    assert sums[sums > 0].min() == 1
    assert found.kind == "scaled_integer"
    assert found.sop_unit.tolist() == (2 * sums.sum((1, 2, 3)).long()).unflatten(0, (T, B)).tolist()


@pytest.mark.parametrize(("top", "kind"), [(64, "integer"), (65, "float")])
def test_largest_integer(top: int, kind: str) -> None:
    x = sparse((8,))
    x[0, 0, 0] = top
    assert counted(Call(nn.Linear(8, 2).double()), x).layers[0].kind == kind


def test_values_that_meet_no_tap_decide_the_kind_too() -> None:
    """A strided 1x1 convolution skips positions, but what is there belongs to its operand."""
    x = torch.zeros(T, B, 1, 3, 3, dtype=torch.float64)
    x[:, :, 0, 0, 0] = 1
    x[:, :, 0, 1, 1] = 0.37  # between the strides
    (found,) = counted(Folded(nn.Conv2d(1, 2, 1, stride=2).double()), x).layers
    assert (found.kind, found.sop.tolist(), found.events.tolist()) == ("float", [[2] * B] * T, [[2] * B] * T)


def test_weight_of_zeros_and_ones_is_no_spike() -> None:
    x = sparse((6,), "float")
    layer = nn.Linear(6, 3, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_((layer.weight > 0).double())
    net = Call(lambda x: F.linear(x, layer.weight))
    net.register_buffer("pattern", (torch.rand(6, 3) > 0.5).double())
    net.layer = layer
    forms: list[Callable[[Tensor], Tensor]] = [
        lambda x: layer(x),
        lambda x: F.linear(x, layer.weight),
        lambda x: x @ net.pattern,
        lambda x: x @ layer.weight.t(),
        lambda x: torch.einsum("tbi,oi->tbo", x, layer.weight),
    ]
    for form in forms:
        net.function = form
        (found,) = counted(net, x).layers
        assert (found.operands, found.kind) == ("param", "float")
        assert Totals(counted(net, x)).ac.sum() == 0


def test_weights_that_are_computed() -> None:
    """Weight norm, ternarised and built weights are weights, whatever their values."""
    x = sparse((6,), "float")
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4).double())
    plain = nn.Linear(6, 4).double()
    with torch.no_grad():
        plain.weight.copy_(normed.weight)
    wanted = counted(Call(plain), x)
    for mode in (False, True):
        same_counts(counted(Call(normed), x, inference=mode), wanted)
        net = Call(lambda x: F.linear(x, plain.weight.sign() * plain.weight.abs().mean()))
        net.layer = plain
        (found,) = counted(net, x, inference=mode).layers
        assert (found.operands, found.kind, found.sop.tolist()) == ("param", "float", wanted.layers[0].sop.tolist())
    with torch.enable_grad(), count(Call(normed)) as run:
        run.model(x)
    same_counts(run.counts(), wanted)


def test_weights_without_a_module() -> None:
    x, w = sparse((6,)), torch.randn(6, 4, dtype=torch.float64)
    with count(weights=[w], strict=True) as run, run.batch(T=T, B=B):
        F.linear(x, w.t())
    (found,) = run.counts().layers
    assert (found.operands, found.sop.tolist()) == ("param", ((x != 0).sum(-1) * 4).tolist())
