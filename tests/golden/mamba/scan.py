"""Golden selective scans and causal convolutions: results, last states, every gradient."""

from __future__ import annotations

from pathlib import Path

import torch
from spikeloom_tests.golden.mamba.stored import agree
from spikeloom_tests.golden.stored import Stored, read
from torch import Tensor

from spikeloom.kernels.scan import causal_conv1d, selective_scan

INPUTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "h0")


def variants(path: Path) -> list[str]:
    """By the kernel in both precisions, by the plain recurrence, in single precision on a GPU."""
    return ["float64", "float32", "reference", "cuda"]


def check(path: Path, variant: str) -> None:
    """Compare a file in one way."""
    file = read(path)
    dtype = torch.float64 if variant in ("float64", "reference") else torch.float32
    device = "cuda" if variant == "cuda" else "cpu"
    backend = "reference" if variant == "reference" else "auto"
    (_scan if path.stem.startswith("scan_") else _convolution)(file, dtype, device, backend)


def _given(file: Stored, names: tuple[str, ...], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    present = {name: file.tensors[f"in.{name}"] for name in names if f"in.{name}" in file.tensors}
    return {name: t.to(device, dtype).requires_grad_() for name, t in present.items()}


def _scan(file: Stored, dtype: torch.dtype, device: str, backend: str) -> None:
    given = _given(file, INPUTS, dtype, device)
    named = {("initial_state" if name == "h0" else name): t for name, t in given.items()}
    result = selective_scan(
        **named, delta_softplus=file.config["delta_softplus"], return_last_state=True, backend=backend
    )
    y, last = result
    single = dtype == torch.float32
    loss = (y * file["in.cotangent"].to(device, dtype)).sum()
    if "in.cotangent_last_state" in file.tensors:
        loss = loss + (last * file["in.cotangent_last_state"].to(device, dtype)).sum()
    loss.backward()
    agree(y, file["out.y"], single, "y")
    agree(last, file["out.last_state"], single, "last state")
    for name, gradient in file.part("grad.").items():
        agree(given[name].grad, gradient, single, f"gradient of {name}")
    assert set(file.part("grad.")) == set(given)


def _convolution(file: Stored, dtype: torch.dtype, device: str, backend: str) -> None:
    given = _given(file, ("x", "weight", "bias"), dtype, device)
    y = causal_conv1d(**given, activation=file.config["activation"], backend=backend)
    y.backward(file["in.cotangent"].to(device, dtype))
    agree(y, file["out.y"], dtype == torch.float32, "y")
    for name, gradient in file.part("grad.").items():
        agree(given[name].grad, gradient, dtype == torch.float32, f"gradient of {name}")
    assert set(file.part("grad.")) == set(given)
