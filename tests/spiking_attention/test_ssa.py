"""Spiking self-attention: two orders with the same bits, saturation, layouts, batches, streams, operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from spikeloom import Stream
from spikeloom.energy import count
from spikeloom.neurons import LIF
from spikeloom.spiking_attention import SSA
from spikeloom.spiking_attention.layout import split_heads
from spikeloom.spiking_attention.products import Order, product

T, B, C, H, W, HEADS = 4, 3, 16, 2, 3, 4
N = H * W
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def spikes(*shape: int, rate: float = 0.3, seed: int = 0) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def qkv(n: int, d: int, rate: float = 0.3, T: int = 4) -> list[Tensor]:
    """Spikes of two samples and two heads, `[T, 2, 2, n, d]` each."""
    return [spikes(T, 2, 2, n, d, rate=rate, seed=seed) for seed in range(3)]


def fired(mixed: Tensor) -> Tensor:
    result: Tensor = LIF(v_threshold=0.5)(mixed)
    return result


def layer(**options: Any) -> SSA:
    """A layer whose neurons all fire now and then, to evaluate."""
    torch.manual_seed(0)
    module = SSA(C, HEADS, **{"scale": 0.5, **options})
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.7)
        else:
            nn.init.constant_(parameter, 2.5 if name.endswith("fire.weight") else 0.8)
    return module.eval()


class Products(TorchDispatchMode):
    """Result shapes of the batched matrix products that run."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.bmm.default:
            self.shapes.append(tuple(out.shape))
        return out


def stream(batch: int = B, T: int = T, seed: int = 0) -> Tensor:
    """Whole numbers 0, 1, 2: a sum of spikes, `[T, B, N, C]`."""
    return spikes(T, batch, N, C, seed=seed) + spikes(T, batch, N, C, seed=seed + 100)


@pytest.mark.parametrize("scale", [0.125, 0.25, 0.3])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 8), (64, 32), (49, 48), (33, 7)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_orders_have_the_same_bits(dtype: str, n: int, d: int, scale: float) -> None:
    x = [value.to(DTYPES[dtype]) for value in qkv(n, d)]
    left, right = product(*x, scale, "qk_v"), product(*x, scale, "q_kv")
    assert torch.equal(left, right)
    assert torch.equal(fired(left), fired(right))
    whole = torch.einsum("tbhne,tbhme,tbhmf->tbhnf", *x)
    assert torch.equal(left, whole * scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_gives_the_same_bits_and_gradients_in_both_orders(dtype: str) -> None:
    outputs, grads = [], []
    for order in ("qk_v", "q_kv"):
        module = layer(order=order).train().to(DTYPES[dtype])
        x = stream().to(DTYPES[dtype]).requires_grad_()
        y = module(x)
        y.backward(stream(seed=7).to(y))
        outputs.append(y.detach())
        grads.append({"x": x.grad, **{name: p.grad for name, p in module.named_parameters()}})
    assert torch.equal(*outputs)
    assert 0.02 < outputs[0].mean().item() < 0.98
    atol = 1e-12 if dtype == "float64" else 1e-4  # sums of real numbers in another order; biases cancel to noise
    for name, grad in grads[0].items():
        assert grad is not None, name
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-4, atol=atol)


@pytest.mark.parametrize("order", ["qk_v", "q_kv"])
@pytest.mark.parametrize("scale", [0.25, 0.3])
def test_gradients_are_those_of_finite_differences(order: Order, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(1, 2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda q, k, v: product(q, k, v, scale, order), x)


@pytest.mark.parametrize(("n", "d"), [(4, 8), (8, 8), (9, 8), (64, 16)])
def test_auto_takes_keys_and_values_first_where_tokens_are_more_than_channels(n: int, d: int) -> None:
    x = qkv(n, d)
    flops = {}
    for order in ("auto", "qk_v", "q_kv"):
        with FlopCounterMode(display=False) as counter:
            product(*x, 0.125, order)  # type: ignore[arg-type]
        flops[order] = counter.get_total_flops() // (4 * x[0].shape[:3].numel())  # two products of 2 n d k each
    assert flops == {"auto": n * d * min(n, d), "qk_v": n * n * d, "q_kv": n * d * d}


@pytest.mark.parametrize(("n", "order"), [(3, "qk_v"), (4, "qk_v"), (5, "q_kv")])
def test_auto_of_a_layer(n: int, order: Order) -> None:
    """d = 4: shapes of the first product, without values."""
    shapes = {}
    with torch.device("meta"):
        for asked in ("auto", order):
            module = SSA(C, HEADS, order=asked).eval()  # type: ignore[arg-type]
            with torch.no_grad(), Products() as products:
                module(torch.empty(T, B, n, C))
            shapes[asked] = products.shapes
    assert shapes["auto"] == shapes[order]
    assert shapes["auto"][0][-2:] == ((n, n) if order == "qk_v" else (4, 4))


@pytest.mark.parametrize("scale", [0.125, 0.25])
@pytest.mark.parametrize(("n", "d", "steps"), [(576, 32, 4), (64, 32, 16)])
@pytest.mark.parametrize("mean", [2, 6, 300])
def test_counts_may_saturate(mean: int, n: int, d: int, steps: int, scale: float) -> None:
    """A count of 1 / s or more fires from any membrane, so neither a small counter nor bfloat16 changes a spike."""
    x = qkv(n, d, (mean / (n * d)) ** (1 / 3), steps)
    counts = product(*x, 1.0)
    expected = fired(counts * scale)
    assert 0 < expected.mean().item() <= 1
    assert torch.equal(fired(counts.clamp(max=1 / scale) * scale), expected)
    for order in ("qk_v", "q_kv"):
        rounded = product(*(value.bfloat16() for value in x), scale, order)  # type: ignore[arg-type]
        assert torch.equal(fired(rounded).float(), expected)
    if mean == 300:
        assert counts.max().item() > 256, "nothing was rounded"
    else:
        assert ((counts > 0) & (counts < 1 / scale)).any(), "everything saturates"
        assert (counts > 1 / scale).any(), "nothing saturates"


def test_layouts_agree() -> None:
    x = stream()
    expected = layer()(x)
    assert torch.equal(layer(layout="TBCN")(x.transpose(2, 3)), expected.transpose(2, 3))
    frames = x.transpose(2, 3).unflatten(3, (H, W))
    assert torch.equal(layer(layout="TBCHW")(frames), expected.transpose(2, 3).unflatten(3, (H, W)))


def test_the_scale_may_follow_the_width() -> None:
    assert SSA(64, 4, scale="rsqrt_d").scale == 0.25
    assert SSA(32, 4, scale="rsqrt_d").scale == pytest.approx(8**-0.5)
    x = stream()
    assert torch.equal(layer(scale="rsqrt_d")(x), layer(scale=0.5)(x))  # d = 4
    assert not torch.equal(layer(scale=0.125)(x), layer(scale=0.5)(x))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    module, x = layer().double(), stream().double()
    y = module(x)
    order = [2, 0, 1]
    assert torch.equal(module(x[:, order]), y[:, order])
    assert torch.equal(torch.cat([module(part) for part in x.split(1, 1)], 1), y)


def test_batch_leak_is_the_same_for_one_sample_alone() -> None:
    leaking, x = layer(proj_lif="batch_leak").double(), stream().double()
    alone = [layer().double()(part) for part in x.split(1, 1)]
    assert torch.equal(leaking(x[:, :1]), alone[0])
    y = leaking(x)
    assert not torch.equal(y, torch.cat(alone, 1))
    assert not torch.equal(leaking(x.flip(1)).flip(1), y)
    # the neuron takes (t, b) in this order as its time axis: the first sample of the first step sees nothing before it
    assert torch.equal(y[:1, :1], alone[0][:1])


def test_chunks_of_a_stream_are_one_call() -> None:
    module, x = layer(), stream(T=7)
    chunks = Stream(module)
    assert torch.equal(torch.cat([chunks(part) for part in x.split([1, 2, 4])]), module(x))
    assert not torch.equal(torch.cat([module(part) for part in x.split([1, 2, 4])]), module(x))


def nonzero_terms(a: Tensor, b: Tensor) -> Tensor:
    """Terms of a @ b with both operands non-zero, per step and sample: `[T, B]`."""
    return torch.einsum("tbhik,tbhkj->tb", (a != 0).double(), (b != 0).double()).long()


@pytest.mark.parametrize("order", ["qk_v", "q_kv"])
def test_operations_of_the_products_are_counted_exactly(order: Order) -> None:
    module, x = layer(order=order), stream()
    kept: list[Tensor] = []
    handle = module.qkv.register_forward_hook(lambda m, args, y: kept.extend(y.chunk(3, 3)))
    with torch.no_grad(), count(module, strict=True) as run:
        module(x)
    handle.remove()
    q, k, v = (split_heads(y, HEADS) for y in kept)
    middle = q @ k.transpose(-1, -2) if order == "qk_v" else k.transpose(-1, -2) @ v
    pairs = [(q, k.transpose(-1, -2)), (middle, v)] if order == "qk_v" else [(k.transpose(-1, -2), v), (q, middle)]
    found = [entry for entry in run.counts().layers if not entry.is_param]
    assert len(found) == 2
    for entry, (a, b) in zip(found, pairs, strict=True):
        assert torch.equal(torch.as_tensor(entry.sop), nonzero_terms(a, b))
        assert entry.dense_exact == HEADS * a.shape[-2] * a.shape[-1] * b.shape[-1]
    assert int(found[0].sop.sum()) == int(middle.sum())  # spikes meet spikes: every coincidence adds one
    assert [entry.is_param for entry in run.counts().layers] == [True, False, False, True]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((16, 3), {}, r"SSA got dim=16 and num_heads=3; .*divides dim \(dim=16 takes 1, 2, 4, 8, 16\)"),
        ((16, 0), {}, "num_heads=0"),
        ((16, 4), {"order": "kv"}, "order='kv'; expected 'auto', 'qk_v', 'q_kv'"),
        ((16, 4), {"layout": "BTNC"}, "layout='BTNC'; expected 'TBNC'"),
        ((16, 4), {"proj_lif": "batch"}, "proj_lif='batch'; expected 'time'"),
    ],
)
def test_impossible_layers_are_refused(arguments: tuple[int, int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SSA(*arguments, **options)


@pytest.mark.parametrize(
    ("layout", "shape", "wanted"),
    [
        ("TBNC", (4, 2, 6, 8), r"expected \[T, B, N, C=16\] \(layout='TBNC'\)"),
        ("TBCN", (4, 2, 6, 16), r"expected \[T, B, C=16, N\] \(layout='TBCN'\)"),
        ("TBCHW", (4, 2, 16, 6), r"expected \[T, B, C=16, H, W\] \(layout='TBCHW'\)"),
    ],
)
def test_wrong_inputs_are_refused(layout: Any, shape: tuple[int, ...], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        SSA(16, 4, layout=layout)(torch.zeros(shape))
