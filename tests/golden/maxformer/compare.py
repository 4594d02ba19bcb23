"""Comparison with a Max-Former file: outputs, maps, firing rates, a second call, gradients, running statistics."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from spikeloom_tests.golden.maxformer.build import Built
from torch import Tensor

from spikeloom import Stream


def stored(path: Path, prefix: str) -> dict[str, Tensor]:
    """The entries below a prefix, floating-point ones as float64."""
    with safe_open(path, "pt") as tensors:  # type: ignore[no-untyped-call]
        names = [key for key in tensors.keys() if key.startswith(prefix)]  # noqa: SIM118
        found = {key.removeprefix(prefix): tensors.get_tensor(key) for key in names}
    return {key: value.double() if value.is_floating_point() else value for key, value in found.items()}


def compare(path: Path, built: Built, dtype: torch.dtype, device: str) -> None:
    """Everything that the file has."""
    file, module = built.file, built.module
    module.to(dtype).to(device).train(file.train)
    x = file.inputs["x"].to(device, dtype).requires_grad_(file.train)
    rates, maps = json.loads(file.meta["firing_rates"]), stored(path, "out.feat.")
    seen: dict[str, Tensor] = {}
    handles = [watch(built, built.neuron(name), seen) for name in rates]
    handles += [watch(built, built.map(name) + "@", seen) for name in maps]
    with torch.backends.cudnn.flags(allow_tf32=False):
        y = built.call(x)
        for handle in handles:
            handle.remove()
        if file.train:
            y.backward(file.inputs["cotangent"].to(device, dtype))
    exact = dtype == torch.float64 or float(file.meta["min_threshold_margin"]) > 1e-5
    turned = False
    for name, rate in rates.items():
        spikes = seen[built.neuron(name)]
        assert not (spikes * (1 - spikes)).any(), name
        fired = spikes.double().mean().item()
        gap = abs(fired - rate)
        if not exact and gap > 5.01e-5:
            # a membrane next to its threshold rounded to its other side: few spikes in that layer, more behind it
            assert gap <= (0.1 * rate + 1e-2 if turned else 0.01 * rate + 2e-3), (name, fired, rate)
            turned = True
            continue
        assert gap <= 5.01e-5, (name, fired, rate)
    if not exact:
        return
    apart(y, file.out, tolerance(dtype), "y")
    for name, expected in maps.items():
        apart(seen[built.map(name) + "@"], expected, tolerance(dtype), name)
    if file.train:
        gradients(path, built, x, dtype)
        buffers(path, built, dtype)
    again = stored(path, "out.y_second_call")
    if again:
        stream = Stream(module)
        with torch.no_grad():
            stream(x)
            apart(stream(x).mean(0), next(iter(again.values())), tolerance(dtype), "second call")


def tolerance(dtype: torch.dtype) -> float:
    return 1e-10 if dtype == torch.float64 else 1e-4


def apart(ours: Tensor, theirs: Tensor, atol: float, name: str) -> None:
    """Fail unless equal up to `atol`."""
    assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
    difference = (ours.detach().cpu().double() - theirs).abs().max().item()
    assert difference <= atol, f"{name}: {difference:.3g} apart, {atol:.3g} allowed"


def watch(built: Built, place: str, seen: dict[str, Tensor]) -> Any:
    """Keep what goes in (place "module<"), the spikes that come out, a third "#i" of them, or the stream "@"."""
    module = built.module.get_submodule(place.rstrip("<@").partition("#")[0])

    def before(module: Any, given: Any) -> None:
        seen[place] = given[0].detach()

    def after(module: Any, given: Any, out: Any) -> None:
        part = place.partition("#")[2]
        value = out[1 if place.endswith("@") else 0] if isinstance(out, tuple) else out
        seen[place] = (value.chunk(3, dim=3)[int(part)] if part else value).detach()

    if place.endswith("<"):
        return module.register_forward_pre_hook(before)
    return module.register_forward_hook(after)


def part_of(tensors: Callable[[str], Tensor | None], name: str) -> Tensor | None:
    """The tensor of a name; of "name#i" the i-th third of its rows, of a number all of it."""
    base, _, part = name.partition("#")
    whole = tensors(base)
    return whole.chunk(3)[int(part)] if part and whole is not None and whole.ndim else whole


def gradients(path: Path, built: Built, x: Tensor, dtype: torch.dtype) -> None:
    """Those of every parameter and of the input."""
    parameters = dict(built.module.named_parameters())
    expected = built.file.grads
    names = {key: built.own(key) for key in expected if key != "in.x"}
    assert {name.partition("#")[0] for name in names.values()} == parameters.keys()
    for key, theirs in expected.items():
        ours = x.grad if key == "in.x" else part_of(lambda base: parameters[base].grad, names[key])
        assert ours is not None, key
        largest = theirs.abs().max().item()
        if dtype == torch.float64:
            rounded = "grad_dtype" in built.file.meta  # to float32, to keep the file small
            atol = (1e-6 if rounded else 1e-7) * largest + 1e-9
        elif largest < 1e-9:  # cancels in front of a normalisation by the batch's statistics, but for rounding
            continue
        else:
            atol = 1e-4 * largest
        apart(ours.reshape(theirs.shape), theirs, atol, key)


def buffers(path: Path, built: Built, dtype: torch.dtype) -> None:
    """Running statistics after one call; three maps in one have one counter of calls, that of one of them."""
    own = built.module.state_dict()
    shared: dict[str, set[int]] = {}
    for key, theirs in stored(path, "state_after.").items():
        name = built.own(key)
        ours = part_of(own.get, name)
        assert ours is not None, key
        if theirs.is_floating_point():
            apart(ours, theirs, 1e-9 if dtype == torch.float64 else 1e-4, key)
        else:
            shared.setdefault(name.partition("#")[0], set()).add(int(theirs))
    for name, counts in shared.items():
        assert int(own[name]) in counts, name
