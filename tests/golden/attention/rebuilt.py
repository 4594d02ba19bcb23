"""A layer or model of ours that holds a golden file's parameters, and its comparison with what the file says."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from spikeloom.models.official import load_official, translate


@dataclass(frozen=True)
class File:
    """One golden file."""

    name: str
    inputs: dict[str, Tensor]
    state: dict[str, Tensor]
    out: Tensor
    spikes: dict[str, Tensor]
    grads: dict[str, Tensor]
    meta: dict[str, str]
    config: dict[str, Any]

    @property
    def train(self) -> bool:
        return self.meta["mode"] == "train"


@dataclass(frozen=True)
class Rebuilt:
    """Ours, with the file's parameters.

    own: an official parameter's name -> ours.
    neuron: an official neuron's name -> the name of our module whose output are its spikes; "#i" after it for the i-th
        third of the channels.
    call: our module on the file's input, the result as the file has it.
    spikes: our module's spikes in the axes that the file has, given the official neuron's name.
    """

    module: nn.Module
    own: Callable[[str], str]
    neuron: Callable[[str], str]
    call: Callable[[nn.Module, Tensor], Tensor] = lambda module, x: module(x)
    spikes: Callable[[str, Tensor], Tensor] = field(default=lambda name, spikes: spikes)


def read(path: Path) -> File:
    """Read a file; floating-point values as float64."""
    with safe_open(path, "pt") as stored:  # type: ignore[no-untyped-call]
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        meta = stored.metadata()
    tensors = {key: value.double() if value.is_floating_point() else value for key, value in tensors.items()}

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    return File(
        path.stem,
        part("in."),
        part("state."),
        tensors["out.y"],
        part("out.spk."),
        part("grad."),
        meta,
        json.loads(meta["config"]),
    )


def loaded(module: nn.Module, file: File, family: str) -> nn.Module:
    """The module with the file's parameters, strictly; entries that no forward reads are left out."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*never reads", UserWarning)
        load_official(module, file.state, family)
    return module


def owner(module: nn.Module, family: str) -> Callable[[str], str]:
    """`Rebuilt.own` for a module whose names follow a family's."""
    own = set(module.state_dict())
    return lambda key: translate(family, key, own)


def fires(module: nn.Module, family: str, others: Mapping[str, str] | None = None) -> Callable[[str], str]:
    """`Rebuilt.neuron` by the convention `x_lif` after `x_bn`; `others` names the modules of further neurons.

    The last part of a neuron's name is looked up in `others`; the rest of the name is that of the translated module.
    """
    own = set(module.state_dict())

    def neuron(name: str) -> str:
        *path, last = name.split(".")
        if others and last in others:
            probe = translate(family, ".".join([*path, "x"]), own).removesuffix("x")
            return probe + others[last]
        normed, mark, part = translate(family, name.replace("_lif", "_bn") + ".weight", own).partition("#")
        normed = normed.removesuffix(".weight")
        return (normed if normed.endswith(".fire") else normed.removesuffix("norm") + "neuron") + mark + part

    return neuron


def compare(file: File, rebuilt: Rebuilt, dtype: torch.dtype, device: str = "cpu") -> None:
    """Output, spikes, counts and gradients, at the tolerances of the specification."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        _compare(file, rebuilt, dtype, device)


def _compare(file: File, rebuilt: Rebuilt, dtype: torch.dtype, device: str) -> None:
    module = rebuilt.module.to(dtype).to(device).train(file.train)
    x = file.inputs["x"].to(device, dtype).requires_grad_(file.train)
    counts = list(json.loads(file.meta["spike_counts"]))
    seen: dict[str, list[Tensor]] = {name: [] for name in {*counts, *file.spikes}}
    handles = []
    modules = dict(module.named_modules())
    for name, kept in seen.items():
        base, _, part = rebuilt.neuron(name).partition("#")

        def keep(module: nn.Module, given: Any, y: Any, kept: list[Tensor] = kept, part: str = part) -> None:
            spikes = _first(y).detach()
            kept.append(spikes.chunk(3, dim=2)[int(part)] if part else spikes)

        handles.append(modules[base].register_forward_hook(keep))
    y = rebuilt.call(module, x)
    for handle in handles:
        handle.remove()
    assert all(len(kept) == 1 for kept in seen.values()), {name: len(kept) for name, kept in seen.items()}
    exact = dtype == torch.float64 or float(file.meta["min_threshold_margin"]) > 1e-5
    if exact:
        _compare_spikes(file, rebuilt, {name: kept[0].cpu().double() for name, kept in seen.items()})
        torch.testing.assert_close(y.detach().cpu().double(), file.out, rtol=0, atol=_atol(dtype, device))
    else:  # a membrane next to its threshold may round to its other side, and few spikes follow it
        for name, total in json.loads(file.meta["spike_counts"]).items():
            assert abs(seen[name][0].sum().item() - total) <= 3 + total / 50, name
    if file.train:
        y.backward(file.inputs["cotangent"].to(device, dtype))
        if exact:
            _compare_gradients(file, rebuilt, x, dtype)


def _atol(dtype: torch.dtype, device: str) -> float:
    if dtype == torch.float64:
        return 1e-10
    return 1e-5 if device == "cpu" else 5e-5


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _compare_spikes(file: File, rebuilt: Rebuilt, seen: Mapping[str, Tensor]) -> None:
    for name, total in json.loads(file.meta["spike_counts"]).items():
        assert seen[name].sum().item() == total, name
    for name, rate in json.loads(file.meta["firing_rates"]).items():
        assert abs((seen[name] != 0).double().mean().item() - rate) < 1e-4, name
    for name, expected in file.spikes.items():
        ours = rebuilt.spikes(name, seen[name])
        assert torch.equal(ours.reshape(expected.shape), expected.double()), name


def _compare_gradients(file: File, rebuilt: Rebuilt, x: Tensor, dtype: torch.dtype) -> None:
    parameters = dict(rebuilt.module.named_parameters())
    expected = {rebuilt.own(key): value for key, value in file.grads.items() if key != "in.x"}
    assert {name.partition("#")[0] for name in expected} == parameters.keys()
    pairs = {name: (_third(parameters, name), value) for name, value in expected.items()}
    pairs["in.x"] = (x.grad, file.grads["in.x"])
    rounded = "grad_dtype" in file.meta
    for name, (ours, theirs) in pairs.items():
        if dtype == torch.float64:
            scale = theirs.abs().max().item()
            atol = (
                1e-6 if rounded or ("float32" in file.meta.get("note", "") and name == "in.x") else 1e-8
            ) * scale + 1e-10
        elif cancels(file, name):
            continue
        else:
            atol = 5e-5 * theirs.abs().max().item() + 1e-6
        assert ours is not None, name
        difference = (ours.cpu().double().reshape(theirs.shape) - theirs).abs().max().item()
        assert difference <= atol, f"{name}: {difference:.3g} apart, {atol:.3g} allowed"


def _third(parameters: Mapping[str, nn.Parameter], name: str) -> Tensor | None:
    base, _, part = name.partition("#")
    grad = parameters[base].grad
    return grad.chunk(3)[int(part)] if part and grad is not None else grad


def cancels(file: File, name: str) -> bool:
    """Gradients that are zero but for rounding: in front of a batch normalisation of the batch's own statistics."""
    return "synapse.bias" in name or file.name.startswith(("e_sdsa_large", "sdsa_repconv"))
