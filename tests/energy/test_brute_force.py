"""The counter against loops over input elements and kernel taps, on small random sparse inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from spikeloom_tests.energy import brute_force as brute
from spikeloom_tests.energy.small import VALUES, B, Call, Folded, T, counted, sparse
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.energy.counts import Layer, PoolCount

NUMPY_PADS = {"circular": "wrap", "reflect": "reflect", "replicate": "edge"}


def prune(layer: Any, seed: int = 0) -> Any:
    """Random weights, a third of them zero."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=random))
        layer.weight[torch.rand(layer.weight.shape, generator=random) < 0.33] = 0
    return layer.double()


def each(function: Callable[..., Any], *tensors: Tensor) -> list[list[Any]]:
    """`function` of every step and sample, [T][B]."""
    return [[function(*(x[t, b].numpy() for x in tensors)) for b in range(B)] for t in range(T)]


def expect(layer: Layer, found: list[list[Any]], *names: str) -> None:
    """The named fields of a layer's counts, and its dense terms."""
    assert layer.assigned
    for name in names:
        assert getattr(layer, name).tolist() == [[getattr(c, name) for c in row] for row in found], name
    assert {c.dense_exact for row in found for c in row} == {layer.dense_exact}


def expect_param(layer: Layer, x: Tensor, terms: dict[brute.Index, list[float]], kind: str) -> None:
    """All counts of a layer with weights."""
    assert (layer.operands, layer.kind, layer.quantum) == ("param", kind, 1.0)
    unit = [] if kind == "float" else ["sop_unit"]
    expect(layer, each(lambda v: brute.count_terms(v, terms), x), "sop", "sop_nonzero_weight", "events", *unit)
    assert (layer.sop_unit is None) == (kind == "float")
    assert layer.in_numel == x[0, 0].numel()


def expect_conv(layer: nn.Module, x: Tensor, kind: str, inference: bool) -> None:
    """A convolution module against the loops."""
    conv: Any = layer
    (found,) = counted(Folded(layer), x, inference=inference).layers
    out = layer(x[0].detach()).shape
    dims = len(out) - 2
    pads, read = (tuple(conv.padding), x) if conv.padding != "same" else (same_pads(conv), x)
    if conv.padding_mode != "zeros":
        wide = [(0, 0)] * 3 + [(p, p) for p in pads]
        read, pads = torch.from_numpy(np.pad(x.numpy(), wide, mode=NUMPY_PADS[conv.padding_mode])), (0,) * dims
    geometry = brute.Conv(conv.stride, pads, conv.dilation, tuple(out[2:]), conv.groups, conv.transposed)
    terms = brute.conv_terms(tuple(read.shape[2:]), conv.weight.detach().numpy(), geometry)
    expect_param(found, read, terms, kind)
    taps, c_in, c_out = int(np.prod(conv.kernel_size)), conv.in_channels, conv.out_channels
    outputs = int(np.prod(out[1:]))
    inputs = read[0, 0].numel() * (c_out // conv.groups)
    assert found.op == f"conv{'_transpose' if conv.transposed else ''}{dims}d"
    assert found.dense_nominal == taps * (inputs if conv.transposed else outputs * (c_in // conv.groups))
    assert found.out_numel == outputs
    assert found.bias_adds == (outputs if conv.bias is not None else 0)
    assert found.name == "layer"


def same_pads(conv: Any) -> tuple[int, ...]:
    """Zeros in front of each dimension for padding="same"."""
    return tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))


# classes, input [C, *size], out channels, kernel, and further arguments
CONVS: dict[str, tuple[type[nn.Module], tuple[int, ...], int, Any, dict[str, Any]]] = {
    "1d": (nn.Conv1d, (2, 7), 3, 3, {"padding": 1}),
    "1d strided even dilated": (nn.Conv1d, (2, 9), 3, 4, {"padding": 3, "stride": 2, "dilation": 2}),
    "1d depthwise": (nn.Conv1d, (3, 6), 6, 2, {"padding": 1, "groups": 3}),
    "1d same even": (nn.Conv1d, (2, 6), 3, 4, {"padding": "same"}),
    "1d circular": (nn.Conv1d, (2, 6), 3, 3, {"padding": 2, "padding_mode": "circular"}),
    "1x1 strided": (nn.Conv2d, (3, 5, 4), 2, 1, {"stride": 2}),
    "2d": (nn.Conv2d, (2, 5, 4), 3, 3, {"padding": 1}),
    "2d no bias": (nn.Conv2d, (2, 5, 4), 3, 3, {"padding": 1, "bias": False}),
    "2d leaves a border out": (nn.Conv2d, (1, 6, 6), 2, 2, {"stride": 3}),
    "2d uneven": (nn.Conv2d, (2, 5, 6), 2, (3, 5), {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 1)}),
    "2d groups dilated": (nn.Conv2d, (4, 6, 5), 6, 3, {"padding": 2, "dilation": 2, "groups": 2}),
    "2d wide padding": (nn.Conv2d, (1, 3, 3), 2, 2, {"padding": 2}),
    "2d same": (nn.Conv2d, (2, 4, 5), 2, (3, 2), {"padding": "same"}),
    "2d same dilated": (nn.Conv2d, (2, 6, 5), 2, 2, {"padding": "same", "dilation": (3, 1)}),
    "2d valid": (nn.Conv2d, (2, 4, 5), 2, 3, {"padding": "valid"}),
    "2d circular": (nn.Conv2d, (2, 4, 5), 2, 3, {"padding": (1, 2), "padding_mode": "circular"}),
    "2d reflect": (nn.Conv2d, (2, 4, 5), 2, 3, {"padding": 1, "padding_mode": "reflect", "stride": 2}),
    "2d replicate": (nn.Conv2d, (2, 4, 5), 2, 3, {"padding": 2, "padding_mode": "replicate"}),
    "3d": (nn.Conv3d, (2, 3, 4, 3), 2, 2, {"padding": 1}),
    "3d uneven": (nn.Conv3d, (2, 4, 3, 3), 4, (2, 3, 1), {"stride": (1, 2, 1), "padding": (1, 0, 1), "groups": 2}),
    "3d circular": (nn.Conv3d, (1, 3, 3, 3), 2, 3, {"padding": 1, "padding_mode": "circular"}),
    "transposed 1d": (nn.ConvTranspose1d, (2, 5), 3, 3, {"stride": 2, "padding": 1, "output_padding": 1}),
    "transposed 2d": (nn.ConvTranspose2d, (2, 3, 4), 3, 3, {"stride": 2, "padding": 1, "output_padding": 1}),
    "transposed 2d groups": (nn.ConvTranspose2d, (4, 3, 3), 2, (2, 3), {"stride": (3, 1), "groups": 2, "dilation": 2}),
    "transposed 2d crops": (nn.ConvTranspose2d, (1, 4, 4), 2, 3, {"padding": 2, "bias": False}),
    "transposed 3d": (nn.ConvTranspose3d, (2, 2, 3, 2), 2, 2, {"stride": 2, "padding": (0, 1, 0)}),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("name", CONVS)
def test_convolution(name: str, inference: bool) -> None:
    cls, shape, channels, kernel, more = CONVS[name]
    seed = list(CONVS).index(name)
    kind = list(VALUES)[seed % len(VALUES)]
    layer = prune(cls(shape[0], channels, kernel, **more), seed)  # type: ignore[arg-type]
    if layer.padding == "valid":
        expect_valid(layer, sparse(shape, kind, seed=seed), inference)
    else:
        expect_conv(layer, sparse(shape, kind, seed=seed), kind, inference)


def expect_valid(layer: Any, x: Tensor, inference: bool) -> None:
    """padding="valid" is padding=0."""
    (found,) = counted(Folded(layer), x, inference=inference).layers
    layer.padding = (0,) * len(layer.kernel_size)
    (wanted,) = counted(Folded(layer), x).layers
    assert found.sop.tolist() == wanted.sop.tolist()
    assert (found.dense_exact, found.dense_nominal) == (wanted.dense_exact, wanted.dense_nominal)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), transposed=st.booleans(), dims=st.sampled_from([1, 2, 2]))
def test_any_convolution(data: st.DataObject, transposed: bool, dims: int) -> None:
    def draw(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(dims))

    groups, per_group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    size, kernel, stride, dilation = draw(1, 6), draw(1, 4), draw(1, 3), draw(1, 3)
    pad, extra = draw(0, 3), draw(0, 2)
    channels = groups * per_group, groups * data.draw(st.integers(1, 2))
    arguments: dict[str, Any] = {"stride": stride, "padding": pad, "dilation": dilation, "groups": groups}
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if transposed:
        assume(all(e < max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)))
        out = [(n - 1) * s - 2 * p + r + e + 1 for n, s, p, r, e in zip(size, stride, pad, reach, extra, strict=True)]
        arguments["output_padding"] = extra
    else:
        out = [n + 2 * p - r for n, p, r in zip(size, pad, reach, strict=True)]
    assume(all(o >= 1 for o in out))
    cls: Any = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    kind = data.draw(st.sampled_from(list(VALUES)))
    seed = data.draw(st.integers(0, 2**16))
    layer = prune(cls(channels[0], channels[1], kernel, **arguments), seed)
    x = sparse((channels[0], *size), kind, seed=seed)
    assume(x[0, 0].numel() >= len(VALUES[kind]))
    expect_conv(layer, x, kind, data.draw(st.booleans()))


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_linear(shape: tuple[int, ...], kind: str, bias: bool, inference: bool) -> None:
    layer = prune(nn.Linear(5, 4, bias=bias))
    x = sparse(shape, kind)
    (found,) = counted(Folded(layer), x, inference=inference).layers
    expect_param(found, x, brute.linear_terms(shape, layer.weight.detach().numpy()), kind)
    outputs = x[0, 0].numel() // 5 * 4
    assert (found.name, found.op, found.out_numel, found.dense_nominal) == ("layer", "linear", outputs, outputs * 5)
    assert found.bias_adds == (outputs if bias else 0)


# shapes [...] of the two operands behind [T, B], the function
PRODUCTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], Callable[[Tensor, Tensor], Tensor]]] = {
    "matmul": ((3, 4), (4, 2), torch.matmul),
    "heads": ((2, 3, 4), (2, 4, 5), torch.matmul),
    "@": ((2, 3, 4), (2, 4, 5), lambda a, b: a @ b),
    "broadcast first": ((1, 3, 4), (3, 4, 2), torch.matmul),
    "broadcast second": ((3, 2, 4), (1, 4, 3), torch.matmul),
    "bmm": ((3, 4), (4, 2), lambda a, b: torch.bmm(a.flatten(0, 1), b.flatten(0, 1))),
    "einsum": ((2, 3, 4), (2, 4, 5), lambda a, b: torch.einsum("tbhmk,tbhkn->tbhmn", a, b)),
    "transposed": ((2, 3, 4), (2, 4, 5), lambda a, b: a @ b.transpose(-1, -2).contiguous().transpose(-1, -2)),
}


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_product_of_activations(name: str, inference: bool) -> None:
    first, second, function = PRODUCTS[name]
    a, b = sparse(first, "binary", 0.4, seed=1), sparse(second, "integer", 0.4, seed=2)
    (found,) = counted(Call(function), a, b, inference=inference).layers
    products = each(brute.count_matmul, a, b)
    expect(found, products, "sop", "sop_a", "sop_b", "events", "events_b")
    assert (found.operands, found.op, found.kind, found.kind_b) == ("activation", "matmul", "binary", "integer")
    assert found.dense_nominal == found.dense_exact


def test_scores_by_einsum() -> None:
    """Q K^T over the last axis of both, as attention writes it."""
    q, k = sparse((2, 3, 4), seed=1), sparse((2, 5, 4), seed=2)
    (found,) = counted(Call(lambda q, k: torch.einsum("tbhqd,tbhkd->tbhqk", q, k)), q, k).layers
    wanted = each(brute.count_matmul, q, k.transpose(-1, -2))
    expect(found, wanted, "sop", "sop_a", "sop_b", "events", "events_b")


def test_einsum_with_a_weight_is_a_layer() -> None:
    x = sparse((3, 4), "binary")
    net = Call(torch.einsum)
    net.weight = nn.Parameter(torch.randn(4, 5, dtype=torch.float64))
    net.function = lambda x: torch.einsum("tbnd,de->tbne", x, net.weight)
    (found,) = counted(net, x).layers
    expect_param(found, x, brute.linear_terms((3, 4), net.weight.detach().numpy().T), "binary")


# input [C, *size], the pool, windows per dimension as (size, out) -> list
Pool = tuple[tuple[int, ...], Callable[[Tensor], Tensor], Callable[[int, int], list[list[int]]]]


def plain_windows(kernel: int, stride: int, pad: int = 0, dilation: int = 1) -> Callable[[int, int], list[list[int]]]:
    """Windows of a pool that is the same in each dimension."""
    return lambda size, out: brute.windows(size, kernel, stride, pad, out, dilation)


POOLS: dict[str, Pool] = {
    "avg 1d": ((2, 7), nn.AvgPool1d(3, 2, 1), plain_windows(3, 2, 1)),
    "avg 2d": ((2, 6, 4), nn.AvgPool2d(2), plain_windows(2, 2)),
    "avg 2d overlapping": ((2, 6, 5), nn.AvgPool2d(3, 1), plain_windows(3, 1)),
    "avg 2d padded": ((2, 6, 5), nn.AvgPool2d(3, 2, 1), plain_windows(3, 2, 1)),
    "avg 2d padded apart": ((2, 6, 5), nn.AvgPool2d(3, 2, 1, count_include_pad=False), plain_windows(3, 2, 1)),
    "avg 2d ceil": ((1, 6, 5), nn.AvgPool2d(3, 2, ceil_mode=True), plain_windows(3, 2)),
    "avg 2d ceil padded": ((1, 5, 4), nn.AvgPool2d(3, 2, 1, ceil_mode=True), plain_windows(3, 2, 1)),
    "avg 2d leaves a border out": ((1, 5, 7), nn.AvgPool2d(2, 3), plain_windows(2, 3)),
    "avg 3d": ((1, 4, 4, 3), nn.AvgPool3d(2, 1), plain_windows(2, 1)),
    "max 1d": ((2, 7), nn.MaxPool1d(3, 2, 1), plain_windows(3, 2, 1)),
    "max 2d": ((2, 6, 4), nn.MaxPool2d(2), plain_windows(2, 2)),
    "max 2d overlapping": ((2, 6, 5), nn.MaxPool2d(3, 2, 1), plain_windows(3, 2, 1)),
    "max 2d ceil": ((1, 6, 5), nn.MaxPool2d(2, 2, ceil_mode=True), plain_windows(2, 2)),
    "max 2d dilated": ((1, 6, 6), nn.MaxPool2d(2, 1, dilation=2), plain_windows(2, 1, 0, 2)),
    "max 3d": ((1, 4, 4, 3), nn.MaxPool3d(2, 2), plain_windows(2, 2)),
    "adaptive avg 1d": ((2, 7), nn.AdaptiveAvgPool1d(3), brute.adaptive_windows),
    "adaptive avg 2d": ((2, 5, 7), nn.AdaptiveAvgPool2d((2, 3)), brute.adaptive_windows),
    "global avg 2d": ((2, 5, 4), nn.AdaptiveAvgPool2d(1), brute.adaptive_windows),
    "adaptive avg 3d": ((1, 3, 4, 5), nn.AdaptiveAvgPool3d(2), brute.adaptive_windows),
    "adaptive max 2d": ((2, 5, 7), nn.AdaptiveMaxPool2d((2, 3)), brute.adaptive_windows),
    "functional": ((2, 6, 4), lambda x: F.avg_pool2d(x, 2), plain_windows(2, 2)),
}


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("name", POOLS)
def test_pool(name: str, inference: bool) -> None:
    shape, pool, windows = POOLS[name]
    x = sparse(shape, "binary", 0.3, seed=len(name))
    found = counted(Folded(pool), x, inference=inference)
    assert not found.layers
    (entry,) = found.aux
    assert isinstance(entry, PoolCount)
    out = pool(x[0]).shape
    per_dimension = [windows(size, o) for size, o in zip(shape[1:], out[2:], strict=True)]
    wanted = np.array(each(lambda frame: brute.count_pool(frame, per_dimension), x))
    assert entry.incidences.tolist() == wanted[..., 0].tolist()
    assert {entry.dense} == set(wanted[..., 1].flat)
    assert entry.out_numel == int(np.prod(out[1:]))
    kind, dims = "max" if "max" in name else "avg", len(shape) - 1
    assert entry.op in (f"{kind}_pool{dims}d", f"{kind}_pool{max(dims, 2)}d")  # torch runs 1-D pools as 2-D ones
    if "max" in name:
        assert entry.out_kind == "binary"
