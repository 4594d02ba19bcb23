"""Golden rate coding: thresholds, spike counts and outputs of every rule on a network with a shared ReLU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from spikeloom_tests.golden.conversion.stored import Stored, counting, few_batches, read
from torch import Tensor, nn

from spikeloom.conversion import convert


class Residual(nn.Module):
    """The file's network."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        width, inputs = state["c0.weight"].shape[:2]
        self.c0 = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.c1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.c2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.b0, self.b1, self.b2 = (nn.BatchNorm2d(width) for _ in range(3))
        self.s = nn.ReLU()
        self.r = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(width, state["fc.weight"].shape[0])

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.s(self.b0(self.c0(x))))
        h = self.r(self.b1(self.c1(x)))
        h = self.r(self.b2(self.c2(h)) + x)
        logits: Tensor = self.fc(h.mean((2, 3)))
        return logits


def overrides(options: dict[str, Any], momentum: float) -> dict[str, Any]:
    """A case of the file as our settings."""
    mode = options["mode"]
    found: dict[str, Any] = {"method": "max", "reduction": "ema", "momentum": momentum}
    if isinstance(mode, str) and mode.endswith("%"):
        found |= {"method": "percentile", "percentile": float(mode[:-1])}
    elif not isinstance(mode, str):
        found["scale"] = float(mode)
    found["channel_wise"] = options.get("channel_wise", False)
    found["initial"] = 0.5 if options.get("half_threshold") else 0.0
    found["max_pool"] = "before" if options.get("pre_spike_maxpool") else "or"
    return found


def check(path: Path, variant: str) -> None:
    file = read(path, variant)
    ann = file.load(Residual(file.part("state.")).to(file.dtype)).eval()
    with torch.no_grad():
        file.close(ann(file.given("x")), "ann")
    for case, options in {**file.config["cases"], "ltb": None}.items():
        choices = {"method": "ltb"} if options is None else overrides(options, file.config["momentum"])
        kind = "ltb_" if options is None else "channel_" if choices["channel_wise"] else ""
        for fold in (True, False):
            _check_case(file, ann, case, f"{kind}spiking", {**choices, "fold": fold})


def _check_case(file: Stored, ann: nn.Module, case: str, name: str, choices: dict[str, Any]) -> None:
    with few_batches():
        net = convert(ann, list(file.given("calib")), T=file.config["T"], **choices)
    with torch.no_grad(), counting(net) as counts:
        y = net(file.given("x"))
    assert len(counts) == 3
    for i, (site, count) in enumerate(counts.items()):
        layer: Any = net.layers[site]
        file.close(torch.as_tensor(layer.v_threshold), f"{case}.threshold.{name}_{i}")
        file.same(count, f"{case}.spike_count.{name}_{i}")
    file.close(y, f"{case}.y_per_step")
