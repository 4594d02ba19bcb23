"""A converted network as a folder: `model.safetensors` and `config.json`, as every saved model; nothing is unpickled.

    save_converted(net, "my_snn");  net = load_converted("my_snn")

`config.json` lists the operations, which are looked up in the tables of this package, and the layers' options.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.conversion.choices import Settings
from spikeloom.conversion.graph import CALL, Graph, Node, Ref
from spikeloom.conversion.max_pool import CountMaxPool
from spikeloom.conversion.network import ConvertedNet
from spikeloom.conversion.offset import OffsetIF
from spikeloom.conversion.operations import AVERAGES, CALLS, MAXIMA, MOVES, TRANSPOSED, WEIGHTED
from spikeloom.conversion.rate_if import RateIF
from spikeloom.conversion.report import LayerReport, Report
from spikeloom.conversion.scaling import Affine, Constant, Scale
from spikeloom.models.config import from_json, to_json
from spikeloom.models.files import CONFIG, WEIGHTS, CheckpointError, load_weights, read_weights, require_file

_KEY = "converted"
_TORCH = {kind.__name__: kind for kind in (*WEIGHTED, *AVERAGES, *MAXIMA, *MOVES, *TRANSPOSED)}
_SKIPPED = ("self", "device", "dtype", "inplace")


def save_converted(net: ConvertedNet, folder: str | Path) -> Path:
    """Write a converted network; returns the folder.

    Raises:
        ValueError: the folder holds other things too.
    """
    folder = Path(folder)
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "settings": to_json(net.config),
        "T": net.T,
        "input_ndim": net.input_ndim,
        "nodes": [_node(n) for n in net.nodes],
        "layers": {name: _described(module) for name, module in net.layers.items()},
        "report": to_json(net.report),
    }
    from safetensors.torch import save_file

    weights = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in net.state_dict().items()
    }
    save_file(weights, folder / f"{WEIGHTS}.part")
    (folder / f"{CONFIG}.part").write_text(json.dumps({_KEY: description}, indent=1) + "\n")
    for name in (WEIGHTS, CONFIG):
        os.replace(folder / f"{name}.part", folder / name)
    return folder


def check_folder(folder: Path) -> None:
    """Raise unless the folder is new, empty, or holds a saved model alone."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder to write the network into.")
    others = sorted({path.name for path in folder.iterdir()} - {WEIGHTS, CONFIG}) if folder.exists() else []
    if others:
        raise ValueError(f"{folder} holds other things too ({', '.join(others[:8])}). Choose a new folder.")


def is_converted(folder: str | Path) -> bool:
    """Whether a folder (or its model.safetensors) is of `save_converted`."""
    path = Path(folder)
    path = (path.parent if path.name == WEIGHTS else path) / CONFIG
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and _KEY in found


def load_converted(folder: str | Path) -> ConvertedNet:
    """Build the network of a folder that `save_converted` wrote, on the CPU, to evaluate.

    Raises:
        CheckpointError: a file is missing, damaged, or of another kind.
    """
    folder = Path(folder)
    folder = folder.parent if folder.name == WEIGHTS else folder
    require_file(folder / CONFIG)
    try:
        found = json.loads((folder / CONFIG).read_text())[_KEY]
        weights = read_weights(folder)
        layers = {name: _built(y, f"layers.{name}", weights) for name, y in found["layers"].items()}
        nodes = [Node(**{**n, "args": tuple(decode(n["args"])), "kwargs": decode(n["kwargs"])}) for n in found["nodes"]]
        settings = from_json(Settings, found["settings"])
        report = from_json(Report, {k: v for k, v in found["report"].items() if k != "layers"})
        rows = tuple(from_json(LayerReport, row) for row in found["report"]["layers"])
        ndim, T = int(found["input_ndim"]), int(found["T"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{folder} holds no converted network ({type(error).__name__}: {error}); expected what save_converted "
            "wrote. Other models are read by spikeloom.models.load_model."
        ) from error
    known: set[str] = set()
    for node in nodes:
        if missing := [read for read in node.reads() if read not in known]:
            raise CheckpointError(
                f"{folder} is damaged: its operation {node.name} reads {missing[0]}, which is not there."
            )
        known.add(node.name)
    unknown = sorted({n.target for n in nodes if n.kind == CALL} - set(CALLS))
    if unknown:
        raise CheckpointError(f"{folder} uses operations that this version does not have: {', '.join(unknown)}.")
    net = ConvertedNet(Graph(nodes, layers), settings, ndim, dataclasses.replace(report, layers=rows))
    load_weights(net, weights, folder)
    net._steps = T  # without the warning of a change
    return net.eval()


def _node(node: Any) -> dict[str, Any]:
    """An operation, with the name of the file that it comes from: its folder is of the machine that converted."""
    path, colon, rest = node.where.partition(":")
    where = f"{Path(path).name}{colon}{rest}" if colon else node.where
    return {**dataclasses.asdict(node), "args": encode(node.args), "kwargs": encode(node.kwargs), "where": where}


def _described(module: nn.Module) -> dict[str, Any]:
    """A layer's class and options; tensors are in the weights."""
    name = type(module).__name__
    if isinstance(module, CountMaxPool):
        return {"kind": name, "pool": _described(module.pool)}
    if isinstance(module, RateIF):
        return {"kind": name, **{k: _number(getattr(module, k)) for k in ("v_threshold", "v_init", "shift")}}
    if isinstance(module, OffsetIF):
        return {"kind": name, "rho": module.rho, "mode": module.mode, "v_threshold": _number(module.v_threshold)}
    if isinstance(module, Scale):
        return {"kind": name, "axis": module.axis, "flat": module.flat}
    if isinstance(module, (Affine, Constant)):
        return {"kind": name}
    options = {key: getattr(module, key) for key in inspect.signature(type(module)).parameters if key not in _SKIPPED}
    if "bias" in options:
        options["bias"] = options["bias"] is not None
    return {"kind": name, "options": encode(options)}


def _number(value: Any) -> Any:
    return None if isinstance(value, Tensor) else value


def _built(described: Mapping[str, Any], name: str, weights: Mapping[str, Tensor]) -> nn.Module:
    """A layer of that description, with room for its weights."""
    kind, given = described["kind"], dict(described)
    if kind == "CountMaxPool":
        return CountMaxPool(_built(given["pool"], f"{name}.pool", weights))
    if kind == "RateIF":
        values: dict[str, Any] = {
            k: weights[f"{name}.{k}"] if given[k] is None else given[k] for k in ("v_threshold", "v_init", "shift")
        }
        return RateIF(**values)
    if kind == "OffsetIF":
        theta = weights[f"{name}.fire.v_threshold"] if given["v_threshold"] is None else given["v_threshold"]
        return OffsetIF(theta, given["rho"], given["mode"])
    if kind == "Scale":
        return Scale(weights[f"{name}.factor"], given["axis"], given.get("flat", False))
    if kind == "Affine":
        return Affine(weights[f"{name}.weight"], weights[f"{name}.bias"])
    if kind == "Constant":
        return Constant(weights[f"{name}.value"])
    module: nn.Module = _TORCH[kind](**decode(given["options"]))
    if f"{name}.weight" in weights:
        module.to(weights[f"{name}.weight"].dtype)
    return module.requires_grad_(False)


def encode(value: Any) -> Any:
    """Arguments as JSON."""
    if isinstance(value, Ref):
        return {"$": value.name}
    if isinstance(value, slice):
        return {"slice": [encode(part) for part in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, Mapping):
        return {"dict": {key: encode(item) for key, item in value.items()}}
    if isinstance(value, torch.Size | tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"an argument of type {type(value).__name__} cannot be saved; expected numbers, strings, shapes.")


def decode(value: Any) -> Any:
    """The inverse of `encode`."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    (key, held), *_ = value.items()
    if key == "$":
        return Ref(held)
    if key == "slice":
        return slice(*(decode(part) for part in held))
    if key == "tuple":
        return tuple(decode(item) for item in held)
    return Ellipsis if key == "ellipsis" else {name: decode(item) for name, item in held.items()}
