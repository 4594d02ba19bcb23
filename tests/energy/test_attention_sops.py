"""Synaptic operations of spiking attention, counted in both orders of the products, against published layers.

The files hold the spikes of the official attention layers; `sop_counts.json` beside them the operations, summed over
time, samples and heads. The committed subset is in tests/golden/data/spiking_attention.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from spikeloom.energy import count
from spikeloom.energy.counts import Counts, PairCount, SumCount

FOLDER = Path(__file__).parents[1] / "golden" / "data" / "spiking_attention"
COUNTS = json.loads((FOLDER / "sop_counts.json").read_text())
FILES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def heads(spikes: Tensor, case: dict[str, int]) -> Tensor:
    """A layer's spikes as [T, B, heads, N, d]: channels are [heads, d]; tokens come last, in linear layers first."""
    spikes = spikes.flatten(3)
    if spikes.shape[2] != case["heads"] * case["d"]:
        spikes = spikes.transpose(2, 3)
    return spikes.unflatten(2, (case["heads"], case["d"])).transpose(3, 4)


def load(name: str) -> dict[str, Tensor]:
    tensors = load_file(FOLDER / f"{name}.safetensors")
    prefix, suffix = "out.spk.", "_lif"
    found = {k.removeprefix(prefix).removesuffix(suffix): v for k, v in tensors.items() if k.startswith(prefix)}
    return {key: heads(found[key].float(), COUNTS[name]) for key in ("q", "k", "v") if key in found}


def counted(x: dict[str, Tensor], body: object) -> Counts:
    T, B = x["q"].shape[:2]
    with torch.no_grad(), count(strict=True) as run, run.batch(T=T, B=B):
        body(**x)  # type: ignore[operator]
    return run.counts()


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("ssa")])
def test_both_orders_of_the_products(name: str) -> None:
    case, x = COUNTS[name], load(name)
    assert [int(x[key].sum()) for key in "qkv"] == [case[f"nnz_{key}"] for key in "qkv"]
    left = counted(x, lambda q, k, v: (q @ k.transpose(-1, -2)) @ v).layers
    right = counted(x, lambda q, k, v: q @ (k.transpose(-1, -2) @ v)).layers
    assert int(left[0].sop.sum()) == case["qk_coincidences"] == int(x_sum(x))
    assert int(right[0].sop.sum()) == case["kv_coincidences"]
    assert sum(layer.dense_exact for layer in left) * case["T"] * case["B"] == case["dense_macs_(QK^T)V"]
    assert sum(layer.dense_exact for layer in right) * case["T"] * case["B"] == case["dense_macs_Q(K^TV)"]
    assert int(left[1].sop.sum()) == case["Av_accumulates"]
    assert int(right[1].sop.sum()) == case["qG_accumulates"]


def x_sum(x: dict[str, Tensor]) -> Tensor:
    return (x["q"] @ x["k"].transpose(-1, -2)).sum()


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("ssa")])
def test_sums_and_masks(name: str) -> None:
    case, x = COUNTS[name], load(name)
    spikes = load_file(FOLDER / f"{name}.safetensors")
    if "v" in x:  # spike-driven attention: mask, sum over tokens, fire, mask
        gate = spikes["out.spk.talking_heads_lif"].float()
        found = counted(x, lambda q, k, v: ((k * v).sum(-2), gate * q, gate.sum((2, 3, 4))))
        both = [int(pair.both_nonzero.sum()) for pair in found.of(PairCount)]
        assert both == [case["kv_and_nnz"], case["masked_q_nnz"]]
        summed = case["kv_and_nnz"]
    else:  # QK attention: sum over a token's or a channel's queries, fire, mask
        gate = spikes["out.spk.attn_lif"].float()
        token = name.startswith("qk_token")
        gate = gate.flatten(3).unsqueeze(-1) if token else gate.flatten(3).unsqueeze(-2)
        found = counted(x, lambda q, k: (q.sum(-1 if token else -2), gate * k, gate.sum((2, 3, 4))))
        assert [int(pair.both_nonzero.sum()) for pair in found.of(PairCount)] == [case["masked_k_nnz"]]
        summed = case["reduction_accumulates"]
    assert [int(entry.events.sum()) for entry in found.of(SumCount)] == [summed, case["or_ones"]]
    assert not found.layers
