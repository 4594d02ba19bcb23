"""Inputs of selective scans, and what they give: results and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
SEQUENCES = ("u", "delta", "B", "C", "z")
Found = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One call. B and C: "fixed", or their number of groups; 0 is `[b, n, L]`."""

    b: int = 2
    d: int = 6
    n: int = 4
    L: int = 37
    B: int | str = 1
    C: int | str = 1
    gate: bool = True
    extras: bool = True
    state: bool = True
    softplus: bool = True
    reverse: int = 0

    def __str__(self) -> str:
        return (
            "-".join(f"{k}{v}" for k, v in vars(self).items() if v != Case.__dataclass_fields__[k].default) or "plain"
        )

    def tensors(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Sequences in `dtype`, the rest in the type of the arithmetic."""
        g = torch.Generator().manual_seed(self.b + 10 * self.d + 100 * self.n + self.L)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64)

        def matrix(groups: int | str) -> Tensor:
            if groups == "fixed":
                return drawn(self.d, self.n)
            shape = (self.b, self.n, self.L) if groups == 0 else (self.b, int(groups), self.n, self.L)
            return drawn(*shape)

        sequence = (self.b, self.d, self.L)
        given = {"u": drawn(*sequence), "delta": 0.7 * drawn(*sequence), "A": -2 * drawn(self.d, self.n).exp()}
        if not self.softplus:
            given["delta"] = 2.0 + given["delta"].abs()  # a step stays positive behind its bias
        given |= {"B": matrix(self.B), "C": matrix(self.C)}
        if self.gate:
            given["z"] = drawn(*sequence)
        if self.extras:
            given |= {"D": drawn(self.d), "delta_bias": 0.5 * drawn(self.d) - 1.0}
        if self.state:
            given["initial_state"] = drawn(self.b, self.d, self.n)
        real = torch.float64 if dtype == torch.float64 else torch.float32
        return {k: t.to(dtype if k in SEQUENCES else real) for k, t in given.items()}


Call = Callable[[dict[str, Tensor], Case, Tensor, Tensor], Found]


def cotangents(case: Case) -> tuple[Tensor, Tensor]:
    """Of y and of the last state."""
    g = torch.Generator().manual_seed(3)
    shapes = ((case.b, case.d, case.L), (case.b, case.d, case.n))
    return tuple(torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes)  # type: ignore[return-value]


def through(run: Callable[..., Any], given: dict[str, Tensor], case: Case, **options: Any) -> Found:
    """Results and gradients of a call of `selective_scan`, by autograd."""
    leaves = {k: t.detach().clone().requires_grad_() for k, t in given.items()}
    y, last = run(
        **leaves, delta_softplus=case.softplus, return_last_state=True, reversed_channels=case.reverse, **options
    )
    of_y, of_last = (t.to(y.device) for t in cotangents(case))
    loss = (y.to(torch.float64) * of_y.to(y.dtype)).sum() + (last.to(torch.float64) * of_last.to(last.dtype)).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return {"y": y, "last": last} | {f"grad {k}": g for k, g in zip(leaves, grads, strict=True)}


def agree(found: Found, expected: Found, allowed: float) -> None:
    """Every entry within `allowed` of the tensor's largest entry, which counts as 1 at least."""
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert found[name].shape == wanted.shape, name
        gap = (found[name].detach().cpu().double() - wanted.detach().double()).abs().max().item()
        limit = allowed * max(1.0, wanted.detach().abs().max().item())
        assert gap <= limit, f"{name}: {gap:.3g} apart, {limit:.3g} allowed"
