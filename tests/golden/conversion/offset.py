"""Golden offset spikes: one layer with COS, SRP and neither, on recorded currents."""

from __future__ import annotations

from pathlib import Path

import torch
from spikeloom_tests.golden.conversion.stored import read

from spikeloom.conversion import QCFS, OffsetIF, RateIF


def check(path: Path, variant: str) -> None:
    file = read(path, variant)
    x, theta, rho = file.given("x"), float(file.config["threshold"]), int(file.config["rho"])
    assert len(x) == file.config["T"]
    with torch.no_grad():
        file.close(theta * RateIF(theta, theta / 2)(x), "plain_if_half_init")
        file.close(theta * RateIF(theta, theta / 2)(x[:rho]), "srp_presim")
        for mode in ("srp", "cos"):
            file.close(theta * OffsetIF(theta, rho, mode)(x), mode)
        activation = QCFS(len(x), theta).to(file.dtype)
        with torch.no_grad():
            activation.thresh.fill_(theta)
        file.close(activation(x.mean(0)), "qcfs_target")
