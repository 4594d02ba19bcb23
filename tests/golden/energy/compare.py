"""A run's `Counts` against the counts in a golden file, every field of every entry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from spikeloom_tests.golden.energy.graph import module_name

from spikeloom.energy.counts import (
    Counts,
    Layer,
    MapCount,
    NeuronCount,
    NormCount,
    PairCount,
    PoolCount,
    SumCount,
)
from spikeloom.energy.totals import Policy, layer_ac, layer_mac

Entry = Mapping[str, Any]
CLASSES: dict[str, type] = {
    "neuron": NeuronCount,
    "batchnorm": NormCount,
    "add": PairCount,
    "mul": PairCount,
    "avg_pool2d": PoolCount,
    "max_pool2d": PoolCount,
    "sum": SumCount,
    "scale": MapCount,
    "softmax": MapCount,
}
POLICY = Policy()
DERIVED: dict[str, Callable[[Layer], Any]] = {
    "ac": lambda layer: layer_ac(layer, POLICY),
    "mac": lambda layer: layer_mac(layer, POLICY),
}


@dataclass
class Findings:
    """Differences, in words, so that one failing test shows all of them."""

    lines: list[str] = field(default_factory=list)

    def expect(self, what: str, found: Any, wanted: Any) -> None:
        """Integers, names and None must be equal; floats agree to 1e-6 relative or 5e-5 (the files' digits)."""
        if not same(found, wanted):
            self.lines.append(f"{what}: got {plain(found)}, golden {plain(wanted)}")

    def check(self) -> None:
        """Fail if there is any."""
        assert not self.lines, "\n".join(["", *self.lines])


def plain(value: Any) -> Any:
    """Arrays as lists, for messages."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def same(found: Any, wanted: Any) -> bool:
    """Is a field as stored?"""
    if found is None or wanted is None or isinstance(wanted, str | bool):
        return bool(found == wanted)
    a, b = np.asarray(found), np.asarray(wanted)
    if a.shape != b.shape:
        return False
    if b.dtype.kind in "iu" and a.dtype.kind in "iu":
        return bool((a == b).all())
    return bool(np.allclose(a, b, rtol=1e-6, atol=5e-5))


def compare_counts(found: Findings, golden: Mapping[str, Any], counts: Counts, named: bool) -> None:
    """All layers and auxiliary entries, matched by name (`named`) or by their order."""
    found.expect("T", counts.T, golden["totals"]["T"])
    found.expect("samples", counts.samples, golden["totals"]["B"])
    found.expect("max_levels", counts.max_levels, golden["max_levels"])
    found.expect("uncounted", [f"{u.op} in {u.module}" for u in counts.uncounted], [])
    readers = {name: node["name"] for node in golden["graph"] for name in node["inputs"]} if named else None
    names: dict[str, str] = {}
    for stored, layer in pairs(found, "layer", golden["layers"], counts.layers, readers):
        names[stored["name"]] = layer.name
        compare_layer(found, stored, layer)
    for cls in dict.fromkeys(CLASSES.values()):
        wanted = [entry for entry in golden["aux"] if CLASSES[entry["op"]] is cls]
        for stored, entry in pairs(found, cls.__name__, wanted, counts.of(cls), readers):
            compare_aux(found, stored, entry, names)


def pairs(
    found: Findings, what: str, wanted: Sequence[Entry], entries: Sequence[Any], readers: Mapping[str, str] | None
) -> Iterable[tuple[Entry, Any]]:
    """Stored entries with counted ones, by order if `readers` is None, else by name.

    The counted name is the stored one, or begins with it and a dot. A normalisation may have become part of the neuron
    that reads it, and then has the neuron's name.
    """
    if len(wanted) != len(entries):
        found.lines.append(f"{what}: got {[e.name for e in entries]}, golden {[e['name'] for e in wanted]}")
        if readers is None:
            return
    for index, stored in enumerate(wanted):
        if readers is None:
            yield stored, entries[index]
            continue
        name = stored["name"]
        fitting = called(name, entries)
        if not fitting and stored["op"] == "batchnorm":
            fitting = called(readers.get(name, name), entries)
        if len(fitting) == 1:
            yield stored, fitting[0]
        else:
            found.lines.append(f"{what} {name}: found {[e.name for e in fitting]} of {[e.name for e in entries]}")


def called(name: str, entries: Sequence[Any]) -> list[Any]:
    """The entries of a module, or of what is inside it."""
    first, _, inside = name.partition(".")  # `<name>.ff` is inside the module of a recurrent node
    path = f"{module_name(first)}.{inside}" if inside else module_name(first)
    return [entry for entry in entries if entry.name == path or entry.name.startswith(f"{path}.")]


def compare_layer(found: Findings, stored: Entry, layer: Layer) -> None:
    """Every stored field; a field of the file that this does not know is a difference too."""
    where = f"layer {stored['name']}"
    found.expect(f"{where}.assigned", layer.assigned, True)
    for key, wanted in stored.items():
        if key == "name":
            continue
        if key in DERIVED:
            found.expect(f"{where}.{key}", DERIVED[key](layer), wanted)
        elif key == "dense_exact" and "dense_exact_whole_run" in stored:
            found.expect(f"{where}.{key}", round(layer.dense_exact * len(layer.sop), 6), wanted * len(layer.sop))
        else:
            found.expect(f"{where}.{key}", getattr(layer, key, "no such field"), wanted)


def compare_aux(found: Findings, stored: Entry, entry: Any, names: Mapping[str, str]) -> None:
    """Every stored field; `names` are the counted names of the layers."""
    where = f"{stored['op']} {stored['name']}"
    for key, wanted in stored.items():
        if key == "name" or (key == "op" and not hasattr(entry, "op")):
            continue
        value = getattr(entry, key, "no such field")
        if key == "op":
            found.expect(
                f"{where}.op", value, wanted.removesuffix("2d") if value in ("avg_pool", "max_pool") else wanted
            )
        elif key == "model":
            found.expect(f"{where}.model", value.rstrip("_"), wanted.removesuffix("_soft"))
            found.expect(f"{where}.soft_reset", entry.soft_reset, wanted in ("if_soft", "ilif"))
        elif key == "folds_into":
            found.expect(f"{where}.folds_into", value, names.get(wanted, wanted))
        else:
            found.expect(f"{where}.{key}", value, wanted)
