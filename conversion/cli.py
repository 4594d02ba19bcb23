"""`spikeloom convert`: a network of torchvision or of a Python file, and images, become a spiking network."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import shlex
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn

from spikeloom.conversion.files import check_folder, save_converted
from spikeloom.conversion.from_ann import convert as convert_network
from spikeloom.conversion.image_file import read_images, read_tensors

_TYRO = (tyro.conf.FlagCreatePairsOff,)


@dataclass(frozen=True)
class ConvertOptions:
    """Convert a trained ReLU network to a spiking one, and print what was done to every layer."""

    model: tyro.conf.Positional[str]
    """A torchvision model, such as resnet18, one of timm, such as timm/resnet18, or FILE.py:FUNCTION, which returns the
    network."""
    images: Path
    """Calibration images, prepared as for training: a .pt or .safetensors file with a tensor [N, C, H, W] (of several,
    the one named images)."""
    weights: Path | None = None
    """The network's trained parameters, a state dict in a .pt, .pth or .safetensors file; None: those it is built with,
    random ones for torchvision and timm."""
    classes: int | None = None
    """Classes of a model of torchvision or timm; None: its own number."""
    out: Path | None = None
    """Folder to write the converted network into."""
    method: str = "ltb"
    """One of the methods of docs/conversion.md."""
    T: int = 16
    """Time steps."""
    batch: int = 16
    """Images per calibration batch; local threshold balancing wants 16 batches or more."""
    max_pool: Literal["auto", "exact", "before", "or", "avg", "refuse"] = "auto"
    """What becomes of max pools."""
    percentile: float = 99.9
    """Of the percentile methods, in percent."""


def convert(argv: list[str]) -> int:
    """`spikeloom convert MODEL --images FILE`: returns the exit code."""
    options = tyro.cli(ConvertOptions, args=argv, prog="spikeloom convert", config=_TYRO)
    console = Console(highlight=False)
    if options.batch < 1:
        raise ValueError(f"--batch is {options.batch}; expected >= 1 image per calibration batch.")
    if options.out is not None:
        check_folder(options.out)  # before the work, not after it
    ann = network(options.model, options.classes)
    if options.weights is not None:
        _load(ann, options.weights)
    else:
        console.print("[yellow]warning:[/] no --weights: the parameters are those that the network was built with")
    images = read_images(options.images)
    _try(ann, images)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net = convert_network(
            ann,
            images.split(options.batch),
            method=options.method,
            T=options.T,
            max_pool=options.max_pool,
            percentile=options.percentile,
        )
    console.print(str(net.report), markup=False, soft_wrap=True)
    for warning in caught:
        console.print(f"[yellow]warning:[/] {escape(str(warning.message))}", soft_wrap=True)
    made = f"{len(net.report.layers)} activation{'' if len(net.report.layers) == 1 else 's'}"
    console.print(f"{made} converted by {options.method}; latency {net.latency} steps")
    if options.out is not None:
        folder = save_converted(net, options.out)
        console.print(f"written to {folder}", markup=False, soft_wrap=True)
        line = f"spikeloom energy {shlex.quote(str(folder))} --images FILE"
        console.print(f"what it costs: {line}, with images that it was not calibrated on", markup=False, soft_wrap=True)
    return 0


def network(name: str, classes: int | None) -> nn.Module:
    """The network of that name, in evaluation.

    Raises:
        ValueError: there is none.
    """
    path, _, function = name.partition(":")
    chosen: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if path.endswith(".py"):
        found = _of_file(path, function)
    elif name.startswith("timm/"):
        found = _of_timm(name.removeprefix("timm/"), chosen)
    else:
        import torchvision

        if name not in torchvision.models.list_models():
            raise ValueError(
                f"torchvision has no model {name!r}; timm/NAME takes one of timm, FILE.py:FUNCTION one of your own."
            )
        found = torchvision.models.get_model(name, weights=None, **chosen)
    if not isinstance(found, nn.Module):
        raise ValueError(f"{name} gives {type(found).__name__}; expected a torch.nn.Module.")
    return found.eval()


def _of_file(path: str, function: str) -> Any:
    """What a function of a Python file returns."""
    spec = importlib.util.spec_from_file_location("spikeloom_convert_model", path)
    if not function or not Path(path).is_file() or spec is None or spec.loader is None:
        raise ValueError(f"{path}: expected FILE.py:FUNCTION, an existing file and a function in it.")
    module = importlib.util.module_from_spec(spec)
    beside = str(Path(path).resolve().parent)
    sys.path.append(beside)  # what the file imports may stand beside it
    try:
        spec.loader.exec_module(module)
        made = getattr(module, function, None)
        if made is None:
            raise ValueError(f"{path} has no function {function!r}.")
        if isinstance(made, nn.Module):
            return made
        _check_call(f"{path}:{function}", made)
        return made()
    finally:
        sys.path.remove(beside)


def _check_call(name: str, function: Any) -> None:
    """Raise ValueError for what cannot be called without arguments."""
    if not callable(function):
        raise ValueError(f"{name} is of type {type(function).__name__}; expected a function that returns the network.")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin; the call itself will tell
        return
    wanted = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if wanted:
        raise ValueError(
            f"{name} wants arguments ({', '.join(wanted)}); expected a function without any. Give them defaults, or "
            "add a function that calls it with the values of the trained network."
        )


def _of_timm(name: str, chosen: dict[str, Any]) -> Any:
    """A model of timm with random parameters; nothing is downloaded."""
    try:
        timm: Any = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ValueError(f"timm/{name} needs timm, which is not installed: pip install timm.") from error
    if name not in timm.list_models():
        raise ValueError(f"timm {timm.__version__} has no model {name!r}; timm.list_models() lists them.")
    return timm.create_model(name, pretrained=False, **chosen)


def state_dict(path: Path) -> dict[str, Tensor]:
    """Parameters of a local file; nothing but tensors is unpickled.

    Raises:
        ValueError: the file is missing, damaged, or holds other things.
    """
    held = read_tensors(path)
    for key in ("state_dict", "model"):
        held = held[key] if isinstance(held, dict) and isinstance(held.get(key), dict) else held
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise ValueError(f"{path} holds no state dict (names -> tensors); save one with torch.save(net.state_dict()).")
    for wrapper in ("_orig_mod.", "module.", "_orig_mod."):  # of DataParallel and torch.compile
        if held and all(name.startswith(wrapper) for name in held):
            held = {name.removeprefix(wrapper): value for name, value in held.items()}
    return dict(held)


def _load(ann: nn.Module, path: Path) -> None:
    try:
        ann.load_state_dict(state_dict(path))
    except RuntimeError as error:
        raise ValueError(f"{path} does not belong to this network. {error}") from error


@torch.no_grad()
def _try(ann: nn.Module, images: Tensor) -> None:
    """Raise unless the network takes such images."""
    if not images.is_floating_point():
        return  # which convert explains
    like = next(ann.parameters(), images)
    try:
        ann(images[:1].to(like.dtype))
    except RuntimeError as error:
        raise ValueError(f"the network does not take images {list(images.shape)}: {error}") from error
