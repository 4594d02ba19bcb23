"""`Counts` built from a golden JSON, with no network and no capture: what pricing is tested on."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from spikeloom.energy.counts import (
    Aux,
    Counts,
    Geometry,
    IntArray,
    Layer,
    MapCount,
    NeuronCount,
    NormCount,
    PairCount,
    PoolCount,
    SumCount,
)

FOLDER = Path(__file__).parents[1] / "golden" / "data" / "energy"
CASES = sorted(path.stem for path in FOLDER.glob("*.json"))


def load(case: str, folder: Path = FOLDER) -> dict[str, Any]:
    """The JSON of a case."""
    return json.loads((folder / f"{case}.json").read_text())


def counts_of(case: str, folder: Path = FOLDER) -> Counts:
    """The counts of a case."""
    golden = load(case, folder)
    nodes = {node["name"]: node for node in golden["graph"]}
    totals = golden["totals"]
    layers = [_layer(entry, nodes) for entry in golden["layers"]]
    aux = [_aux(entry) for entry in golden["aux"]]
    return Counts(totals["T"], totals["B"], layers, aux, max_levels=golden["max_levels"], setting={"case": case})


def close(got: Any, golden: Any) -> bool:
    """Golden floats have four decimals: equal within 1e-6 relative, or 5e-5."""
    return bool(np.allclose(got, golden, rtol=1e-6, atol=5e-5))


def _array(values: Any) -> IntArray | None:
    return None if values is None else np.array(values, np.int64)


def _layer(entry: dict[str, Any], nodes: dict[str, Any]) -> Layer:
    arrays = ("sop", "events", "sop_nonzero_weight", "sop_unit", "sop_at_arrival", "events_b", "sop_a", "sop_b")
    plain = ("name", "op", "operands", "kind", "quantum", "dense_exact", "dense_nominal", "out_numel", "bias_adds")
    rest = ("static_input", "dense_exact_whole_run", "kind_b", "quantum_b", "in_numel")
    values = {name: entry[name] for name in (*plain, *rest) if name in entry}
    values |= {name: _array(entry[name]) for name in arrays if name in entry}
    if entry["operands"] == "activation":
        # of [m, k] @ [k, n] an element of A is in n terms, one of B in m; all terms are m k n
        values["in_numel"] = _numel(entry, "sop_a", "events")
        values["in_numel_b"] = _numel(entry, "sop_b", "events_b")
    else:
        node = nodes[entry["name"]] if entry["name"] in nodes else nodes[entry["name"].rsplit(".", 1)[0]]
        values["geometry"] = _geometry(entry, node["attrs"])
    return Layer(**values)


def _numel(entry: dict[str, Any], sop: str, events: str) -> int:
    return round(entry["dense_exact"] * np.sum(entry[events]) / np.sum(entry[sop]))


def _geometry(entry: dict[str, Any], attrs: dict[str, Any]) -> Geometry:
    if "kernel_size" in attrs:
        channels = attrs["in_channels"], attrs["out_channels"]
        kernel, groups = tuple(attrs["kernel_size"]), attrs["groups"]
        weights = channels[0] * channels[1] // groups * prod(kernel)
        biases = channels[1] if attrs["bias"] else 0
        transposed = "transpose" in entry["op"]
        return Geometry(kernel, tuple(attrs["stride"]), groups, *channels, weights, biases, transposed)
    if "hidden" in attrs:
        n_in = attrs["hidden"] if entry["name"].endswith(".rec") else attrs["in_features"]
        return Geometry((), (), 1, n_in, attrs["hidden"], n_in * attrs["hidden"])
    n_in, n_out = attrs["in_features"], attrs["out_features"]
    biases = n_out if attrs.get("bias") else 0
    return Geometry((), (), 1, n_in, n_out, n_in * n_out, biases, max_delay=attrs.get("max_delay"))


def _aux(entry: dict[str, Any]) -> Aux:
    values = {name: _array(v) if isinstance(v, list) else v for name, v in entry.items() if name != "op"}
    op = entry["op"]
    if op == "neuron":
        return NeuronCount(**values)
    if op == "batchnorm":
        return NormCount(**values)
    if op in ("add", "mul"):
        return PairCount(op=op, **values)
    if "pool" in op:
        return PoolCount(op=op, **values)
    if op == "sum":
        return SumCount(**values)
    return MapCount(op=op, **values)
