"""Counts as JSON: written once, read back exactly, priced as often as one likes.

    {"format": "spikeloom-energy-counts", "version": 1, "T": 4, "samples": 3, "layers": [...], "aux": [...], ...}

Counts are JSON integers. A path that ends in `.gz` is compressed. Files are written under another name and renamed, so
that a reader never meets half of one.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from spikeloom.energy import counts as entries
from spikeloom.energy.counts import Counts, Geometry, IntArray, Layer, Uncounted

FORMAT, VERSION = "spikeloom-energy-counts", 1
REPORT_FORMAT = "spikeloom-energy-report"
"""A report's file; it holds counts under "counts"."""

_AUX = {
    "neuron": entries.NeuronCount,
    "norm": entries.NormCount,
    "pair": entries.PairCount,
    "pool": entries.PoolCount,
    "sum": entries.SumCount,
    "map": entries.MapCount,
}
_ENTRY_OF = {kind: name for name, kind in _AUX.items()}


class StoreError(ValueError):
    """A file is missing something, damaged, of another version, or none of ours."""


def to_dict(counts: Counts) -> dict[str, Any]:
    """Counts as plain dicts, lists, strings and integers. Values of `setting` that JSON lacks become text."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "T": int(counts.T),
        "samples": int(counts.samples),
        "max_levels": int(counts.max_levels),
        "setting": json.loads(json.dumps(counts.setting, default=str)),
        "layers": [_plain(layer) for layer in counts.layers],
        "aux": [{"entry": _ENTRY_OF[type(entry)], **_plain(entry)} for entry in counts.aux],
        "uncounted": [_plain(entry) for entry in counts.uncounted],
    }


def from_dict(data: Any, where: str = "the counts") -> Counts:
    """What `to_dict` gave, checked; `where` names the place in messages.

    Raises:
        StoreError: another format or version, a missing or unknown field, or an array that is not [T, N].
    """
    check_format(data, FORMAT, VERSION, where)
    try:
        shape = (_whole(data, "T", where), _whole(data, "samples", where))
        layers = [_layer(item, shape, f"{where}: layers[{i}]") for i, item in enumerate(data["layers"])]
        aux = [_aux(item, shape, f"{where}: aux[{i}]") for i, item in enumerate(data["aux"])]
        uncounted = [
            _build(Uncounted, item, shape, f"{where}: uncounted[{i}]") for i, item in enumerate(data["uncounted"])
        ]
        return Counts(*shape, layers, aux, uncounted, _whole(data, "max_levels", where), dict(data["setting"]))
    except KeyError as error:
        raise StoreError(f"{where} lacks the entry {error}; it was cut, or edited by hand. Count again.") from error


def check_format(data: Any, wanted: str, version: int, where: str) -> None:
    """Raise StoreError unless `data` is a dict of that format and version."""
    if not isinstance(data, Mapping) or data.get("format") != wanted:
        found = f"format {data.get('format')!r}" if isinstance(data, Mapping) else f"a {type(data).__name__}"
        raise StoreError(f"{where} is {found}; expected {wanted!r}, as `report.to_json(path)` or `save` writes it.")
    if data.get("version") != version:
        raise StoreError(
            f"{where} has version {data.get('version')!r} of {wanted}; this spikeloom reads version {version}. "
            "Read it with the spikeloom that wrote it, or count again."
        )


def save(counts: Counts, path: str | Path) -> Path:
    """Write counts to a JSON file (compressed if the name ends in .gz); returns the path."""
    return write_json(path, to_dict(counts))


def load(path: str | Path) -> Counts:
    """Read counts from a file of `save`, or from a report's JSON, which holds them.

    Raises:
        StoreError: no JSON, another format or version, damaged entries.
        FileNotFoundError: there is no such file.
    """
    data = read_json(path)
    if isinstance(data, Mapping) and data.get("format") == REPORT_FORMAT:
        data = data.get("counts")
    return from_dict(data, str(path))


def write_json(path: str | Path, data: Mapping[str, Any]) -> Path:
    """Write compact JSON, whole or not at all."""
    target = Path(path)
    raw = (json.dumps(data, separators=(",", ":"), allow_nan=False) + "\n").encode()
    write_bytes(target, gzip.compress(raw, mtime=0) if target.suffix == ".gz" else raw)
    return target


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it holds either the old content or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.part-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)  # mkstemp makes files for their owner alone
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def check_writable(path: str | Path) -> None:
    """Raise unless a file of that name can be written; what is not there yet of its folders is made with it.

    Raises:
        ValueError: it is a folder, or no file can be made where it would stand.
    """
    target = Path(path)
    if target.is_dir():
        raise ValueError(f"{path} is a folder; expected the name of a file to write.")
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = "it is no folder" if not folder.is_dir() else error.strerror or type(error).__name__
        raise ValueError(f"{path} cannot be written: no file can be made in {folder} ({reason}).") from error


def read_json(path: str | Path) -> Any:
    """Read JSON, compressed or not.

    Raises:
        StoreError: the file is no JSON, or cut off.
    """
    raw = Path(path).read_bytes()
    try:
        return json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    except (ValueError, EOFError, OSError) as error:
        raise StoreError(f"{path} is no JSON file or was cut off ({error}); expected stored counts.") from error


def _plain(value: Any) -> Any:
    """Dataclasses, arrays and tuples as JSON; floats without fraction as integers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist()) if value.ndim == 0 else value.tolist()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _whole(data: Mapping[str, Any], name: str, where: str) -> int:
    value = data[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise StoreError(f"{where}: {name} is {value!r}; expected an integer >= 0.")
    return value


def _layer(data: Any, shape: tuple[int, int], where: str) -> Layer:
    unassigned = isinstance(data, Mapping) and not data.get("assigned", True)
    layer = _build(Layer, data, (1, 1) if unassigned else shape, where)
    for needed in ("sop", "events"):
        if not isinstance(getattr(layer, needed), np.ndarray):
            raise StoreError(f"{where}.{needed} is {getattr(layer, needed)!r}; expected counts [T, N].")
    for kind in (layer.kind, layer.kind_b or layer.kind):
        if kind not in entries.KINDS:
            raise StoreError(f"{where} has kind {kind!r}; expected one of {', '.join(entries.KINDS)}.")
    return layer


def _aux(data: Any, shape: tuple[int, int], where: str) -> entries.Aux:
    kind = data.get("entry") if isinstance(data, Mapping) else None
    if kind not in _AUX:
        raise StoreError(f"{where} is an entry {kind!r}; expected one of {', '.join(_AUX)}.")
    fields = {name: value for name, value in data.items() if name != "entry"}
    arrays = [value for value in fields.values() if isinstance(value, list)]
    unassigned = bool(arrays) and all(  # sums over the run, as of layers
        len(value) == 1 and isinstance(value[0], list) and len(value[0]) == 1 for value in arrays
    )
    entry: entries.Aux = _build(_AUX[kind], fields, (1, 1) if unassigned else shape, where)
    return entry


def _build(cls: type, data: Any, shape: tuple[int, int], where: str) -> Any:
    """A dataclass from its fields; lists in the place of arrays become int64 arrays of that shape."""
    if not isinstance(data, Mapping):
        raise StoreError(f"{where} is a {type(data).__name__}; expected the fields of {cls.__name__}.")
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise StoreError(f"{where} has the unknown field {unknown[0]!r}; expected {', '.join(fields)}.")
    values: dict[str, Any] = {}
    for name, value in data.items():
        if hints[name] in (IntArray, IntArray | None) and value is not None:
            values[name] = _array(value, shape, f"{where}.{name}")
        elif hints[name] is Geometry:
            geometry = _build(Geometry, value, shape, f"{where}.{name}")
            values[name] = dataclasses.replace(geometry, kernel=tuple(geometry.kernel), stride=tuple(geometry.stride))
        else:
            values[name] = value
    try:
        return cls(**values)
    except TypeError as error:  # a field without default is missing
        raise StoreError(f"{where}: {error}; the file was cut, or edited by hand. Count again.") from error


def _array(value: Any, shape: tuple[int, int], where: str) -> IntArray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise StoreError(f"{where} is ragged; expected counts of shape {list(shape)} [T, N].") from error
    if array.shape != shape and not (array.size == 0 and 0 in shape):
        raise StoreError(f"{where} has shape {list(array.shape)}; expected {list(shape)} [T, N].")
    signed = where.endswith("spike_units")  # ternary neurons emit -1
    if array.size and (array.dtype.kind not in "iu" or (int(array.min()) < 0 and not signed)):
        raise StoreError(f"{where} holds a number that is no count; expected integers >= 0.")
    return array.astype(np.int64).reshape(shape)
