"""The loops of brute_force.py against the golden counts: they must be right before the counter is held against them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from spikeloom_tests.energy import brute_force as brute
from spikeloom_tests.golden.energy.functional import all_values
from spikeloom_tests.golden.energy.graph import Case, Node
from torch import Tensor

DATA = Path(__file__).parents[1] / "golden" / "data" / "energy"


def geometry_of(node: Node, out: Sequence[int]) -> brute.Conv:
    """A convolution node's geometry."""
    attrs = node["attrs"]
    stride, pad, dilation = (tuple(attrs[key]) for key in ("stride", "padding", "dilation"))
    return brute.Conv(stride, pad, dilation, tuple(out), attrs["groups"], "transpose" in node["op"])


def terms_of(case: Case, node: Node, x: Tensor, y: Tensor) -> dict[brute.Index, list[float]]:
    """The terms of a linear or convolution node."""
    weight = case.parameters(node["name"])["weight"].double().numpy()
    if node["op"] == "linear":
        return brute.linear_terms(tuple(x.shape[2:]), weight)
    return brute.conv_terms(tuple(x.shape[2:]), weight, geometry_of(node, y.shape[3:]))


def each(function, *tensors: Tensor) -> list[list]:
    """`function` of every step and sample, [T][B]."""
    T, B = tensors[0].shape[:2]
    return [[function(*(x[t, b].numpy() for x in tensors)) for b in range(B)] for t in range(T)]


def column(counted: list[list], name: str) -> list[list[int]]:
    """One field of every count."""
    return [[int(getattr(count, name)) for count in row] for row in counted]


@pytest.mark.parametrize("path", sorted(DATA.glob("*.safetensors")), ids=lambda path: path.stem)
def test_layers(path: Path) -> None:
    case = Case.load(path)
    values = all_values(case)
    nodes = {node["name"]: node for node in case.nodes}
    seen = 0
    for layer in case.golden["layers"]:
        node = nodes.get(layer["name"])
        if node is None or node["op"] == "delay_linear":
            continue  # recurrent weights and delays are no single node of the graph
        inputs, y = [values[name] for name in node["inputs"]], values[node["name"]]
        if node["op"] == "matmul":
            counted = each(brute.count_matmul, *inputs)
            names = ("sop", "sop_a", "sop_b", "events", "events_b")
        else:
            terms = terms_of(case, node, *inputs, y)
            counted = each(lambda x, t=terms, q=layer["quantum"]: brute.count_terms(x, t, q), *inputs)
            names = ("sop", "sop_nonzero_weight", "events", *(["sop_unit"] if layer["sop_unit"] is not None else []))
        for name in names:
            assert column(counted, name) == layer[name], (layer["name"], name)
        assert {count.dense_exact for row in counted for count in row} == {layer["dense_exact"]}
        seen += 1
    assert seen


@pytest.mark.parametrize("path", sorted(DATA.glob("*.safetensors")), ids=lambda path: path.stem)
def test_pools(path: Path) -> None:
    case = Case.load(path)
    values = all_values(case)
    nodes = {node["name"]: node for node in case.nodes}
    for entry in case.golden["aux"]:
        if not entry["op"].endswith("pool2d"):
            continue
        attrs, x = nodes[entry["name"]]["attrs"], values[nodes[entry["name"]]["inputs"][0]]
        sizes = zip(x.shape[3:], values[entry["name"]].shape[3:], strict=True)
        geometry = attrs["kernel_size"], attrs["stride"], attrs["padding"]
        per_dimension = [brute.windows(size, *geometry, out) for size, out in sizes]
        counted = each(lambda frame, w=per_dimension: brute.count_pool(frame, w), x)
        assert np.array(counted)[..., 0].tolist() == entry["incidences"]
        assert set(np.array(counted)[..., 1].flat) == {entry["dense"]}
