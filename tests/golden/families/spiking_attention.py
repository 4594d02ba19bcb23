"""Golden spiking attention: layers and whole models (`golden/attention/`), and the operations of attention products.

A file is dispatched on the longest prefix of its name that a table `CASES` knows. `sop_counts.json` beside the files
holds, per evaluated attention layer, the operations summed over time, samples and heads; they are counted here on the
layer's stored spikes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from spikeloom_tests.golden.attention import qk, sdsa, spikformer, v3
from spikeloom_tests.golden.attention.rebuilt import File, Rebuilt, compare, read
from torch import Tensor

from spikeloom.energy import count
from spikeloom.energy.counts import Counts, PairCount, SumCount


def _counts(path: Path) -> dict[str, Any]:
    """The operations of the file's layer; empty if none are stored."""
    beside = path.with_name("sop_counts.json")
    found: dict[str, Any] = json.loads(beside.read_text()).get(path.stem, {}) if beside.exists() else {}
    return found


LAYERS = ("ssa", "qk", "sdsa", "e_sdsa")
CASES: dict[str, Callable[[File], Rebuilt]] = {**spikformer.CASES, **qk.CASES, **sdsa.CASES, **v3.CASES}


def variants(path: Path) -> list[str]:
    """In both precisions; attention layers on a GPU too; and their operations where they are stored."""
    if path.suffix == ".json":
        return ["files"]
    gpu = ["cuda"] if path.stem.startswith(LAYERS) else []
    return ["float64", "float32", *gpu, *(["operations"] if _counts(path) else [])]


def check(path: Path, variant: str) -> None:
    """Compare a file in one way."""
    if variant == "operations":
        check_operations(path)
    elif variant == "files":
        assert json.loads(path.read_text()).keys() & {other.stem for other in path.parent.glob("*.safetensors")}
    else:
        file = read(path)
        build = CASES[max((prefix for prefix in CASES if path.stem.startswith(prefix)), key=len)]
        dtype = torch.float64 if variant == "float64" else torch.float32
        compare(file, build(file), dtype, "cuda" if variant == "cuda" else "cpu")


def check_operations(path: Path) -> None:
    """The operations of the products, on the stored spikes."""
    case, spikes = _counts(path), load_file(path)
    tokens_first = "linear" in path.stem
    names = {key: f"out.spk.{key}_lif" for key in "qkv" if f"out.spk.{key}_lif" in spikes}
    x = {key: heads(spikes[name].float(), case, tokens_first) for key, name in names.items()}
    assert {f"nnz_{key}": int(value.sum()) for key, value in x.items()} == {
        key: value for key, value in case.items() if key.startswith("nnz_")
    }
    if "qk_coincidences" in case:
        check_products(case, x)
    elif "kv_and_nnz" in case or "masked_k_nnz" in case:
        check_masks(case, x, spikes)


def heads(spikes: Tensor, case: dict[str, Any], tokens_first: bool) -> Tensor:
    """A layer's spikes as [T, B, heads, N, d]: channels are [heads, d]; tokens come last, in linear layers first."""
    spikes = spikes.flatten(3)
    if tokens_first:
        spikes = spikes.transpose(2, 3)
    return spikes.unflatten(2, (case["heads"], case["d"])).transpose(3, 4)


def counted(x: dict[str, Tensor], body: Callable[..., Any]) -> Counts:
    """What code on q, k (and v) counts."""
    T, B = x["q"].shape[:2]
    with torch.no_grad(), count(strict=True) as run, run.batch(T=T, B=B):
        body(**x)
    return run.counts()


def check_products(case: dict[str, Any], x: dict[str, Tensor]) -> None:
    """(Q K^T) V and Q (K^T V)."""
    left = counted(x, lambda q, k, v: (q @ k.transpose(-1, -2)) @ v).layers
    right = counted(x, lambda q, k, v: q @ (k.transpose(-1, -2) @ v)).layers
    assert int(left[0].sop.sum()) == case["qk_coincidences"]
    assert int(left[1].sop.sum()) == case["Av_accumulates"]
    assert int(right[0].sop.sum()) == case["kv_coincidences"]
    assert int(right[1].sop.sum()) == case["qG_accumulates"]
    A, G = x["q"] @ x["k"].transpose(-1, -2), x["k"].transpose(-1, -2) @ x["v"]
    out = A @ x["v"]
    sums = {"max_A": A.max(), "max_G": G.max(), "max_out": out.max(), "sum_out": out.double().sum()}
    assert {key: int(value) for key, value in sums.items()} == {key: case[key] for key in sums}
    assert case["nnz_q"] * case["N"] == case["rate_based_estimate_QK"]
    runs = case["T"] * case["B"]
    assert sum(layer.dense_exact for layer in left) * runs == case["dense_macs_(QK^T)V"]
    assert sum(layer.dense_exact for layer in right) * runs == case["dense_macs_Q(K^TV)"]


def check_masks(case: dict[str, Any], x: dict[str, Tensor], spikes: dict[str, Tensor]) -> None:
    """Sums and masks of spike-driven and of query-key attention."""
    if "v" in x:  # mask, sum over tokens, fire, mask
        gate = spikes["out.spk.talking_heads_lif"].float()
        found = counted(x, lambda q, k, v: ((k * v).sum(-2), gate * q, gate.sum((2, 3, 4))))
        both, summed = [case["kv_and_nnz"], case["masked_q_nnz"]], case["kv_and_nnz"]
    else:  # sum over a token's or a channel's queries, fire, mask
        gate = spikes["out.spk.attn_lif"].float()
        token = gate.flatten(3).shape[3] == case["N"] and gate.shape[3] == 1
        gate = gate.flatten(3).unsqueeze(-1 if token else -2)
        found = counted(x, lambda q, k: (q.sum(-1 if token else -2), gate * k, gate.sum((2, 3, 4))))
        both, summed = [case["masked_k_nnz"]], case["reduction_accumulates"]
    assert [int(pair.both_nonzero.sum()) for pair in found.of(PairCount)] == both
    assert [int(entry.events.sum()) for entry in found.of(SumCount)] == [summed, case["or_ones"]]
    assert not found.layers
