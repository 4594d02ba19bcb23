"""Golden QCFS: the trained activation with its gradients, and the converted network step by step."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from spikeloom_tests.golden.conversion.stored import Stored, counting, read
from torch import Tensor, nn

from spikeloom.conversion import QCFS, convert


class Cnn(nn.Module):
    """The file's small network."""

    def __init__(self, file: Stored) -> None:
        super().__init__()
        state, L = file.part("state."), file.config["L"]
        sizes = {i: state[f"net.{i}.weight"].shape for i in (0, 4, 9, 11)}
        self.net = nn.Sequential(
            nn.Conv2d(sizes[0][1], sizes[0][0], 3, padding=1),
            nn.BatchNorm2d(sizes[0][0]),
            QCFS(L),
            nn.AvgPool2d(2),
            nn.Conv2d(sizes[4][1], sizes[4][0], 3, padding=1),
            nn.BatchNorm2d(sizes[4][0]),
            QCFS(L),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(sizes[9][1], sizes[9][0]),
            QCFS(L),
            nn.Linear(sizes[11][1], sizes[11][0]),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, L: int) -> None:
        super().__init__()
        self.residual_function = nn.Sequential(
            nn.Conv2d(inputs, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            QCFS(L),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.act = QCFS(L)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.residual_function(x) + self.shortcut(x))
        return y


class ResNet(nn.Module):
    """The file's residual network, widths 16, 32, 64."""

    def __init__(self, file: Stored) -> None:
        super().__init__()
        L, blocks = file.config["L"], file.config["num_block"]
        self.conv1 = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), QCFS(L))
        inputs = 16
        for i, count in enumerate(blocks):
            width, parts = 16 * 2**i, []
            for j in range(count):
                parts.append(Block(inputs, width, 2 if i and not j else 1, L))
                inputs = width
            setattr(self, f"conv{i + 2}_x", nn.Sequential(*parts))
        self.stages = len(blocks)
        self.fc = nn.Linear(inputs, file.config["num_classes"])

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for i in range(self.stages):
            x = getattr(self, f"conv{i + 2}_x")(x)
        logits: Tensor = self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def check(path: Path, variant: str) -> None:
    file = read(path, variant)
    ann = file.load((Cnn if file.config["arch"] == "cnn" else ResNet)(file).to(file.dtype))
    _check_network(file, copy.deepcopy(ann).eval())
    x = file.given("x").requires_grad_("grad.x" in file.tensors)
    out = ann.train(file.mode == "train")(x)
    file.close(out, "ann")
    (out * file.given("cotangent")).sum().backward()
    parameters: dict[str, Any] = {name: p.grad for name, p in ann.named_parameters()} | {"in.x": x.grad, "x": x.grad}
    atol = 1e-9 if file.dtype == torch.float64 else 1e-4
    for name, theirs in file.part("grad.").items():
        torch.testing.assert_close(
            parameters[name].double(), theirs, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


def _check_network(file: Stored, ann: nn.Module) -> None:
    x = file.given("x")
    with torch.no_grad():
        file.close(ann(x), "ann_eval")
    for T in file.config["Ts"]:
        net = convert(ann, method="qcfs", T=T)
        with torch.no_grad(), counting(net) as counts:
            file.close(net(x), f"snn_T{T}")
        expected = file.part(f"out.spike_count_T{T}.")
        assert len(counts) == len(expected)
        for name, count in counts.items():
            official = next(key for key in expected if key.replace(".", "_") == name)
            file.same(count, f"spike_count_T{T}.{official}")
