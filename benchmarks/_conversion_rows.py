"""The methods of conversion.py, and what each gives: accuracy by steps, on held-out and test images."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from _conversion_train import Data, Labelled, products
from torch import Tensor, nn

from spikeloom.conversion import ConvertedNet, convert

CELLS = {"cuda": 8192, "cpu": 1024}
"""Images times steps that run at once."""
UPDATES = 128
"""Calibration batches of local threshold balancing, whose thresholds grow by each."""
SEEN, CORRECTED = 512, 256
"""Calibration images of the other methods, and of those made for one T."""
LAST_CORRECTED = 8
"""Largest T for which QCFS networks are corrected: there is little left to correct beyond."""


@dataclass(frozen=True)
class Method:
    """A row of the table.

    settings: of `convert`. specific: thresholds or corrections are made for one T, so every T has a network. wide:
    converted in double precision, where rounding puts no quantised activation on another level than the ANN's while
    corrections are made.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    specific: bool = False
    wide: bool = False

    @property
    def rho(self) -> int:
        """Steps that every layer looks ahead."""
        return int(self.settings.get("rho", 0))

    def made_for(self, steps: Sequence[int]) -> list[int]:
        """T of the networks that a row needs."""
        if not self.specific:
            return [max(steps)]
        return [T for T in steps if not self.wide or T <= LAST_CORRECTED]


def relu_methods(rhos: Sequence[int]) -> list[Method]:
    """What a ReLU network is converted by."""
    return [
        Method("max, v = 0", {"method": "max", "initial": 0.0}),
        *(Method(name.replace("_", " "), {"method": name}) for name in ("max", "percentile", "channel_max")),
        *(Method(name.replace("_", " "), {"method": name}) for name in ("channel_percentile", "ltb")),
        *(Method(name, {"method": name}, specific=True) for name in ("mse", "light", "advanced")),
        *(Method(f"ltb + {name}", {"method": name, "rho": rho}) for name in ("cos", "srp") for rho in rhos),
    ]


def qcfs_methods(rhos: Sequence[int]) -> list[Method]:
    """What a QCFS network is converted by."""
    potential = {"method": "qcfs", "correct": "potential", "half_step": "per_step"}
    return [
        Method("qcfs", {"method": "qcfs"}),
        *(Method(f"qcfs + {name}", {"method": name, "rho": rho}) for name in ("cos", "srp") for rho in rhos),
        Method("qcfs + light", {"method": "qcfs", "correct": "bias"}, specific=True, wide=True),
        Method("qcfs + advanced", potential, specific=True, wide=True),
    ]


def converted(method: Method, ann: nn.Module, images: Tensor, T: int) -> ConvertedNet:
    """A network of T steps, calibrated on prepared images `[N, C, H, W]` where the method needs any."""
    choices = dict(method.settings)
    few = images[: min(CORRECTED, max(1, CELLS[images.device.type] // T)) if method.specific else SEEN]
    given: list[Tensor] | None = [few]
    if method.name.startswith("ltb"):
        given = list(images.split(max(1, len(images) // UPDATES)))
    elif not method.specific and method.name.startswith("qcfs"):
        given = None
    with products(tf32=False):
        if not method.wide:
            return convert(ann, given, T=T, **choices)
        return convert(copy.deepcopy(ann).double(), [few.double()], T=T, **choices).float()


def in_batches(data: Labelled, steps: int) -> Iterator[Labelled]:
    """As many images at once as `CELLS` allows for that many steps."""
    size = max(1, CELLS[data[0].device.type] // steps)
    return zip(data[0].split(size), data[1].split(size), strict=True)


@torch.no_grad()
def by_step(net: ConvertedNet, data: Labelled, T: int) -> list[float]:
    """Accuracy in percent after 1, 2, ..., T steps, from one run of T."""
    net.T = T
    right = torch.zeros(T, dtype=torch.long, device=data[1].device)
    for x, y in in_batches(data, max(T, net.config.rho)):
        right += (net(x).cumsum(0).argmax(2) == y).sum(1)
    return [100 * n / len(data[1]) for n in right.tolist()]


def row(method: Method, network: str, ann: nn.Module, data: Data, steps: Sequence[int]) -> dict[str, Any]:
    """Convert and measure: `held_out` and `test` map a number of steps to the accuracy then."""
    begin = time.perf_counter()
    found: dict[str, Any] = {"network": network, "method": method.name, "settings": dict(method.settings)}
    found |= {"rho": method.rho, "held_out": {}, "test": {}}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for T in method.made_for(steps):
            net = converted(method, ann, data.calibration, T)
            for part, images in (("held_out", data.held_out), ("test", data.test)):
                every = by_step(net, images, T)
                found[part] |= {T: every[-1]} if method.specific else {t: every[t - 1] for t in range(1, T + 1)}
            del net
    found["warnings"] = sorted({str(w.message).splitlines()[0] for w in caught})
    return found | {"seconds": time.perf_counter() - begin}


def best(rows: Sequence[dict[str, Any]], latency: int, offsets: bool, of: str = "") -> dict[str, Any] | None:
    """The row that is most accurate on held-out images with `latency` steps, and T, its steps without rho.

    offsets: whether rows that look ahead count; T is then `latency` - rho. of: how the network's name begins.
    """
    cells = [
        {"row": index, "T": latency - found["rho"], "held_out": found["held_out"][latency - found["rho"]]}
        for index, found in enumerate(rows)
        if "failure" not in found and found["network"].startswith(of)
        if latency - found["rho"] in found["held_out"] and (offsets or not found["rho"])
    ]
    return max(cells, key=lambda cell: cell["held_out"]) if cells else None
