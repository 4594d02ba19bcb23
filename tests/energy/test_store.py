"""Counts on disk: exact round trips, and files that are not ours."""

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spikeloom.energy import store
from spikeloom.energy.counts import Counts, Layer
from spikeloom.energy.store import StoreError

Build = Callable[..., Counts]


def equal(a: Any, b: Any) -> bool:
    """Dataclasses that hold arrays."""
    if dataclasses.is_dataclass(a) and not isinstance(a, type):
        return type(a) is type(b) and all(equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("name", ["counts.json", "counts.json.gz"])
def test_a_round_trip_changes_nothing(build: Build, tmp_path: Path, name: str) -> None:
    counts = build(gaps=True)
    counts.layers[1].sop[0, 0] = 2**53 + 1  # a float would lose it
    path = store.save(counts, tmp_path / name)
    assert equal(store.load(path), counts)
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == name.endswith("gz")


def test_counts_are_json_integers(build: Build) -> None:
    data = store.to_dict(build())
    assert (data["format"], data["version"]) == ("spikeloom-energy-counts", 1)
    text = json.dumps(data["layers"])
    assert ".0" not in text.replace("block.0", "").replace("matmul.0", "")
    assert all(type(value) is int for row in data["layers"][0]["sop"] for value in row)


def test_fractions_stay(build: Build, tmp_path: Path) -> None:
    counts = build()
    counts.layers[0].dense_exact = 17.25  # a delay layer's average over the run
    assert store.load(store.save(counts, tmp_path / "a.json")).layers[0].dense_exact == 17.25


def test_settings_that_json_lacks_become_text(build: Build) -> None:
    counts = build()
    counts.setting["where"] = Path("runs/one")
    assert store.to_dict(counts)["setting"]["where"] == "runs/one"


def test_negative_units_of_ternary_neurons_are_kept(build: Build) -> None:
    counts = build()
    neuron = next(entry for entry in counts.aux if hasattr(entry, "spike_units"))
    neuron.spike_units = np.full((4, 6), -3, np.int64)
    assert equal(store.from_dict(store.to_dict(counts)), counts)


def change(data: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """Set `layers.0.sop` and the like; `...` deletes."""
    *path, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    inner: Any = data
    for part in path:
        inner = inner[part]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return data


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("format", "something", "expected 'spikeloom-energy-counts'"),
        ("version", 2, "version 2 of spikeloom-energy-counts; this spikeloom reads version 1"),
        ("layers", ..., "lacks the entry 'layers'"),
        ("layers.0.sop", [[1, 2], [3]], r"layers\[0\].sop is ragged; expected counts of shape \[4, 6\]"),
        ("layers.0.sop", [[1]], r"layers\[0\].sop has shape \[1, 1\]; expected \[4, 6\] \[T, N\]"),
        ("layers.0.sop", [[0.5] * 6] * 4, "holds a number that is no count"),
        ("layers.0.sop", [[-1] * 6] * 4, "holds a number that is no count"),
        ("layers.0.sop", None, "expected counts"),
        ("layers.0.kind", ..., "missing 1 required positional argument: 'kind'"),
        ("layers.0.sops", 1, "unknown field 'sops'"),
        ("layers.0.geometry", {"taps": 3}, "unknown field 'taps'"),
        ("layers.0", 3, "is a int; expected the fields of Layer"),
        ("aux.0.entry", "spline", "is an entry 'spline'; expected one of neuron"),
        ("layers.0.kind", "spiky", "has kind 'spiky'; expected one of zero, binary"),
        ("T", "four", "T is 'four'; expected an integer >= 0"),
    ],
)
def test_what_is_wrong_is_said(build: Build, place: str, value: Any, message: str) -> None:
    data = change(store.to_dict(build()), place, value)
    with pytest.raises(StoreError, match=message):
        store.from_dict(data)


@pytest.mark.parametrize("content", [b"", b"{", b"not json", gzip.compress(b'{"a": 1}', mtime=0)[:-9], b"\x1f\x8b"])
def test_files_that_are_no_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "counts.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"counts\.json is no JSON file or was cut off"):
        store.load(path)


def test_foreign_json(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text("[1, 2]")
    with pytest.raises(StoreError, match="is a list; expected 'spikeloom-energy-counts'"):
        store.load(path)
    with pytest.raises(FileNotFoundError):
        store.load(tmp_path / "nothing.json")


def test_a_failed_write_leaves_the_old_file(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.save(build(), tmp_path / "counts.json")
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(store.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        store.save(build(seed=1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_unassigned_layers_are_sums_over_the_run(build: Build) -> None:
    counts = build(gaps=True)
    lost: Layer = store.from_dict(store.to_dict(counts)).layers[-1]
    assert not lost.assigned
    assert lost.sop.shape == (1, 1)
