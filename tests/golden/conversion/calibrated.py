"""Golden SNN calibration: thresholds by squared error, biases, initial potentials, and what the networks then do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from spikeloom_tests.golden.conversion.stored import Stored, counting, few_batches, read
from torch import Tensor, nn

from spikeloom.conversion import convert

CASES: dict[str, dict[str, Any]] = {
    "none_max": {"method": "max", "reduction": "ema", "half_step": "per_step"},
    "mse": {"method": "mse", "half_step": "per_step"},
    "mse_channel": {"method": "mse", "half_step": "per_step", "channel_wise": True},
    "light": {"method": "light"},
    "advanced_pot": {"method": "advanced"},
}


class Net(nn.Module):
    """The file's network."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for index, stride in ((0, 1), (3, 2), (6, 2)):
            width, inputs = state[f"f.{index}.weight"].shape[:2]
            parts += [nn.Conv2d(inputs, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU()]
        self.f = nn.Sequential(*parts)
        self.c = nn.Linear(*reversed(state["c.weight"].shape))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.c(self.f(x).flatten(1))
        return logits


def check(path: Path, variant: str) -> None:
    file = read(path, variant)
    ann = file.load(Net(file.part("state.")).to(file.dtype)).eval()
    with torch.no_grad():
        file.close(ann(file.given("x")), "ann")
    for case, choices in CASES.items():
        _check_case(file, ann, case, choices)


def _check_case(file: Stored, ann: nn.Module, case: str, choices: dict[str, Any]) -> None:
    batches = list(file.given("calib"))
    momentum = 1 - file.config["momentum"]  # theirs weighs the old value
    with few_batches():
        net = convert(ann, batches, T=file.config["T"], momentum=momentum, fold=False, **choices)
    with torch.no_grad(), counting(net) as counts:
        y = net(file.given("x"))
    for name, conv, relu in (("f.0", "f_0", "f_2"), ("f.3", "f_3", "f_5"), ("f.6", "f_6", "f_8")):
        neuron: Any = net.layers[relu]
        layer: Any = net.layers[conv]
        file.close(torch.as_tensor(neuron.v_threshold), f"{case}.threshold.{name}")
        file.close(layer.bias, f"{case}.bias.{name}")
        file.same(counts[relu], f"{case}.spike_count.{name}")
        if f"out.{case}.v_init.{name}" in file.tensors:
            file.close(neuron.v_init, f"{case}.v_init.{name}")
    file.close(y.sum(0), f"{case}.logits_sum")
