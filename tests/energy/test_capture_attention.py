"""Attention in all its forms counts as attention written by hand: Q K^T, then probabilities times V."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from spikeloom_tests.energy.small import DATA, B, Call, Folded, T, counted, same_counts, sparse
from spikeloom_tests.golden.energy.compare import Findings, compare_counts
from spikeloom_tests.golden.energy.graph import Case, Node, Plain
from spikeloom_tests.golden.energy.nets import PlainNet
from spikeloom_tests.golden.energy.sums import compare_energies, compare_totals
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.energy import Counts, Totals, count
from spikeloom.energy.counts import MapCount

HEADS, N, D = 2, 5, 4


def hand_written(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(q k^T scale + mask) v, by the letter; a boolean mask is True where there is attention."""
    groups = q.shape[-3] // k.shape[-3]
    k, v = (x.repeat_interleave(groups, -3) if groups > 1 else x for x in (k, v))
    scores = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, -1) @ v


def attended(function: Callable[..., Tensor], heads: int = HEADS, inference: bool = False, **net: Tensor) -> Counts:
    """Counts of a function of q, k, v [T * B, heads, N, D]; tensors by name become buffers."""
    q = sparse((HEADS, N, D), "float", 0.7, seed=1)
    k, v = sparse((heads, N, D), "ternary", 0.6, seed=2), sparse((heads, N, D), "binary", 0.4, seed=3)
    module = Call(lambda *x: function(*(y.flatten(0, 1) for y in x), *net.values()).unflatten(0, (T, B)))
    for name, tensor in net.items():
        module.register_buffer(name, tensor)
    return counted(module, q, k, v, inference=inference)


CAUSAL = torch.ones(N, N, dtype=torch.bool).tril()
HOLES = torch.rand(N, N, generator=torch.Generator().manual_seed(0)) > 0.4
HOLES[range(N), range(N)] = True
FLOATS = torch.where(HOLES, 0.0, -math.inf).double() + 0.1
sdpa = F.scaled_dot_product_attention


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize(
    ("fused", "plain"),
    [
        (sdpa, hand_written),
        (lambda q, k, v: sdpa(q, k, v, is_causal=True), lambda q, k, v: hand_written(q, k, v, CAUSAL)),
        (lambda q, k, v: sdpa(q, k, v, HOLES), lambda q, k, v: hand_written(q, k, v, HOLES)),
        (lambda q, k, v: sdpa(q, k, v, attn_mask=FLOATS), lambda q, k, v: hand_written(q, k, v, FLOATS)),
        (lambda q, k, v: sdpa(q, k, v, scale=3.0), lambda q, k, v: hand_written(q, k, v, scale=3.0)),
    ],
    ids=["plain", "causal", "boolean mask", "float mask", "scale"],
)
def test_fused_attention_counts_as_written(fused: Any, plain: Any, inference: bool) -> None:
    found = attended(fused, inference=inference)
    wanted = attended(plain)
    assert len(wanted.layers) == 2
    same_counts(found, wanted)
    assert found.layers[1].kind == "float"
    softmax = [entry for entry in found.of(MapCount) if "softmax" in entry.op]
    assert [entry.numel for entry in softmax] == [HEADS * N * N]


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
def test_grouped_queries(inference: bool) -> None:
    found = attended(lambda q, k, v: sdpa(q, k, v, enable_gqa=True), heads=1, inference=inference)
    same_counts(found, attended(hand_written, heads=1))


def test_masked_entries_are_zeros_of_the_second_product_alone() -> None:
    """Q K^T is charged in full under a causal mask; the probabilities it masks are zeros of probabilities times V."""
    plain, causal = attended(sdpa), attended(lambda q, k, v: sdpa(q, k, v, is_causal=True))
    assert causal.layers[0].sop.tolist() == plain.layers[0].sop.tolist()
    assert causal.layers[1].events.tolist() == (np.ones((T, B), int) * HEADS * N * (N + 1) // 2).tolist()
    assert plain.layers[1].events.tolist() == (np.ones((T, B), int) * HEADS * N * N).tolist()


def test_underflowed_probabilities_are_zeros() -> None:
    found = attended(lambda q, k, v: sdpa(q * 1e6, k, v))
    same = attended(lambda q, k, v: hand_written(q * 1e6, k, v))
    assert found.layers[1].events.tolist() == same.layers[1].events.tolist()
    assert found.layers[1].events.sum() < HEADS * N * N * T * B


@pytest.mark.parametrize("grad", [False, True])
def test_the_operator_of_a_fused_kernel(grad: bool) -> None:
    """torch calls it for attention on a CPU when gradients flow; other code may call it itself."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    q, k, v = (sparse((HEADS, N, D), kind, 0.6, seed=s) for s, kind in enumerate(("float", "ternary", "binary")))

    def run(function: Callable[..., Tensor]) -> Counts:
        module = Call(lambda *x: function(*(y.flatten(0, 1) for y in x)).unflatten(0, (T, B)))
        with torch.set_grad_enabled(grad), count(module, strict=True) as meter:
            module(*(x.clone().requires_grad_(grad) * 1 for x in (q, k, v)))
        return meter.counts()

    same_counts(run(lambda q, k, v: kernel(q, k, v)[0]), run(hand_written))
    same_counts(run(sdpa), run(hand_written))


def test_golden_attention_with_the_fused_function() -> None:
    """softmax_attention's products, scale and softmax as one call give the golden counts."""
    case = Case.load(DATA / "softmax_attention.safetensors")
    replaced = {"k_t": None, "qk": None, "qk_scaled": None, "probs": None}
    fused: Node = {"name": "av", "op": "sdpa", "inputs": ["q_bn", "k_bn", "v_lif"], "attrs": {}}
    graph = [fused if node["name"] == "av" else node for node in case.golden["graph"] if node["name"] not in replaced]

    class Fused(PlainNet):
        def module(self, node: Node) -> nn.Module:
            return Plain(sdpa) if node["op"] == "sdpa" else super().module(node)

        def norm(self, node: Node, classes: dict[int, type[Any]]) -> nn.Module:
            self._axes = {node["name"]: 4}
            return super().norm(node, classes)

    net = Fused(case)
    net._case = replace(case, golden={**case.golden, "graph": graph})
    net.av = Plain(sdpa)
    with torch.no_grad(), count(net.double().eval(), strict=True) as run:
        net(case.x.double())
    found = Findings()
    compare_counts(found, case.golden, run.counts(), named=False)
    compare_totals(found, case.golden, run.counts())
    compare_energies(found, case.golden, run.counts())
    found.check()


class HandWrittenHeads(nn.Module):
    """nn.MultiheadAttention's mathematics on [..., N, D], with its weights."""

    def __init__(self, layer: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = layer.num_heads
        self.qkv = nn.Parameter(layer.in_proj_weight.detach())
        self.qkv_bias = nn.Parameter(layer.in_proj_bias.detach())
        self.out = layer.out_proj

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.qkv, self.qkv_bias).chunk(3, -1)
        split = [y.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for y in (q, k, v)]
        return F.linear(hand_written(*split).transpose(-2, -3).flatten(-2), self.out.weight, self.out.bias)


def heads_layer(batch_first: bool) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, HEADS, batch_first=batch_first).double().eval()
    with torch.no_grad():
        layer.in_proj_bias.uniform_(-1, 1)
        layer.out_proj.bias.uniform_(-1, 1)
    return layer


def by_sample(counts: Counts) -> dict[str, Any]:
    """What the layers sum to per step and sample."""
    totals = Totals(counts)
    assert len(totals.assigned) == len(counts.layers)
    products = sum(layer.sop for layer in counts.layers if not layer.is_param)
    return {
        "sop": totals.sop.tolist(),
        "products": products.tolist(),
        "ac": totals.ac.tolist(),
        "mac": totals.mac_effective.tolist(),
        "dense": (totals.ann_mac_exact, totals.ann_mac_nominal),
        "bias": totals.bias_adds_own,
    }


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_multihead_attention(batch_first: bool, need_weights: bool, mode: Any) -> None:
    """The default layout has the sequence first, also inside a layer with batch_first."""
    layer = heads_layer(batch_first)
    x = sparse((N, 8), "binary", 0.4)

    def attend(frames: Tensor) -> Tensor:
        given = frames if batch_first else frames.transpose(0, 1)
        y = layer(given, given, given, need_weights=need_weights)[0]
        return y if batch_first else y.transpose(0, 1)

    net = Folded(attend)
    net.inner = layer
    with mode(), count(net, strict=True) as run:
        found = net(x)
    wanted = Call(HandWrittenHeads(layer))
    torch.testing.assert_close(found.detach(), wanted(x).detach())
    assert by_sample(run.counts()) == by_sample(counted(wanted, x))


def test_encoder_layer_counts_the_same_with_and_without_its_fast_path() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, HEADS, 16, batch_first=True, dropout=0.0).double().eval()
    x = sparse((N, 8), "binary", 0.4)
    fast = counted(Folded(layer), x)
    assert torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        slow = counted(Folded(layer), x)
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    same_counts(fast, slow, names=True)
    assert [y.op for y in fast.layers].count("matmul") == 2
    assert len(fast.layers) >= 5


def test_order_of_products_is_the_executed_one() -> None:
    """Q (K^T V) costs other than (Q K^T) V, and both are exact."""
    left = attended(lambda q, k, v: (q @ k.transpose(-1, -2)) @ v)
    right = attended(lambda q, k, v: q @ (k.transpose(-1, -2) @ v))
    assert [y.dense_exact for y in left.layers] == [HEADS * N * N * D] * 2
    assert [y.dense_exact for y in right.layers] == [HEADS * D * N * D] * 2
    assert [y.kind for y in right.layers] == ["ternary", "float"]
