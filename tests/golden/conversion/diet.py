"""Golden DIET-SNN: the summed logits, firing rates and all gradients of an official VGG_SNN_STDB."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from spikeloom.conversion.diet_official import diet_from_official, official_names
from spikeloom.neurons.diet import DIET


def check(path: Path, variant: str) -> None:
    """Build ours from the file's state dict alone, and compare."""
    with safe_open(path, "pt") as stored:  # type: ignore[no-untyped-call]
        file = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        meta = stored.metadata()
    config = json.loads(meta["config"])
    dtype = torch.float64 if variant == "float64" else torch.float32
    state = {key.removeprefix("state."): value for key, value in file.items() if key.startswith("state.")}
    net = diet_from_official(
        config["cfg"], state, T=config["T"], input_size=tuple(config["input"][1:]), gamma=config["gamma"]
    )
    assert net.config.hidden == tuple(config["classifier"][1:-1])
    net = net.to(dtype).eval()
    rates: list[Tensor] = []

    def keep(module: Any, given: Any, spikes: Tensor) -> None:
        rates.append((spikes != 0).double().mean())

    for module in net.modules():
        if isinstance(module, DIET):
            module.register_forward_hook(keep)
    logits = net(file["in.x"].to(dtype)).sum(0)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(logits.double(), file["out.logits"], rtol=0, atol=tolerance)
    for ours, theirs in zip(rates, json.loads(meta["notes"])["rates"], strict=True):
        assert abs(float(ours) - theirs) < 1e-3
    (logits * file["in.cotangent"].to(dtype)).sum().backward()
    parameters = dict(net.named_parameters())
    expected = {key.removeprefix("grad."): value for key, value in file.items() if key.startswith("grad.")}
    names = official_names(net)
    assert names.keys() == expected.keys()
    assert set(names.values()) == parameters.keys()
    for key, value in expected.items():
        grad = parameters[names[key]].grad
        assert grad is not None, key
        scale = 1.0 if dtype == torch.float64 else max(1.0, float(value.abs().max()))
        torch.testing.assert_close(grad.double(), value, rtol=0, atol=tolerance * scale)
