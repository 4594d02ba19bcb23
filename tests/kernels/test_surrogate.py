"""Surrogate derivatives: against numbers worked out from the table in `kernels/surrogate.py`, and SpikingJelly."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom.kernels import SURROGATES, Step, exp, maximum, spike, where

BY_HAND: dict[str, dict[tuple[float, float], float]] = {
    "sigmoid": {
        (0.0, 4.0): 1.0,  # 4 / 2 / 2
        (0.5, 4.0): 0.41997434161402614,  # s = 1 / (1 + e^-2) = 0.8807970779778823; 4 s (1 - s)
        (-0.5, 4.0): 0.41997434161402614,
        (1.0, 1.0): 0.19661193324148185,  # s = 0.7310585786300049
    },
    "atan": {
        (0.0, 2.0): 1.0,
        (0.5, 2.0): 0.28840043914200214,  # 1 / (1 + (pi / 2)^2) = 1 / 3.4674011002723395
        (-0.5, 2.0): 0.28840043914200214,
        (2.0, 1.0): 0.04599983417518762,  # 0.5 / (1 + pi^2) = 0.5 / 10.869604401089358
    },
    "triangle": {(0.0, 1.0): 1.0, (0.5, 1.0): 0.5, (-0.25, 2.0): 1.0, (1.0, 1.0): 0.0, (3.0, 1.0): 0.0},
    "fast_sigmoid": {
        (0.0, 2.0): 1.0,
        (0.5, 2.0): 0.25,  # 2 / (2 (1 + 1)^2)
        (-1.5, 2.0): 0.0625,  # 2 / (2 (1 + 3)^2)
        (1.0, 1.0): 0.125,
    },
    "rectangle": {
        (0.0, 1.0): 1.0,
        (0.25, 1.0): 1.0,
        (0.5, 1.0): 0.0,
        (-0.5, 1.0): 0.0,
        (0.2, 2.0): 2.0,
        (0.3, 2.0): 0.0,
    },
    "gaussian": {
        (0.0, 2.0): 1.1283791670955126,  # 2 / sqrt(pi)
        (0.5, 2.0): 0.41510749742059466,  # the same / e
        (-1.0, 1.0): 0.20755374871029733,  # 1 / sqrt(pi) / e
    },
}
"""name: (u, alpha): derivative."""
DEFAULTS = {"sigmoid": 4.0, "atan": 2.0, "triangle": 1.0, "fast_sigmoid": 2.0, "rectangle": 1.0, "gaussian": 2.0}
SPIKINGJELLY = {
    "sigmoid": "Sigmoid",
    "atan": "ATan",
    "triangle": "PiecewiseQuadratic",
    "fast_sigmoid": "SoftSign",
    "rectangle": "Rect",
    "gaussian": "Erf",
}


def firing(surrogate: Any, alpha: Any = None) -> Step:
    def fire(u: Any, *, width: Any = 1.0) -> Any:
        return spike(u, surrogate, width if alpha == "width" else alpha)

    return Step(fire, {})


STEPS = {name: firing(name, "width") for name in SURROGATES}


def slope(made: Step, u: Tensor, device: str, **values: Any) -> Tensor:
    """d spike / d u."""
    leaf = u.to(device)[None].requires_grad_()
    y, _ = made(leaf, backend=device, **values)
    assert torch.equal(y.cpu()[0], (u >= 0).to(u.dtype))
    y.sum().backward()
    return leaf.grad.cpu()[0]


def test_every_named_surrogate_is_in_these_tables() -> None:
    assert set(BY_HAND) == set(SPIKINGJELLY) == set(SURROGATES)
    assert {name: entry.alpha for name, entry in SURROGATES.items()} == DEFAULTS


@pytest.mark.parametrize("name", sorted(SURROGATES))
def test_derivatives_worked_out_by_hand(device: str, name: str) -> None:
    for (u, alpha), expected in BY_HAND[name].items():
        double = torch.tensor([u], dtype=torch.float64)
        assert slope(STEPS[name], double, device, width=alpha).item() == pytest.approx(expected, rel=1e-14, abs=0)
        assert SURROGATES[name].derivative(double, torch.tensor(alpha, dtype=torch.float64)).item() == pytest.approx(
            expected, rel=1e-14, abs=0
        )


@pytest.mark.parametrize("name", sorted(SURROGATES))
@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
def test_every_derivative_integrates_to_one(name: str, alpha: float) -> None:
    """Over the real line, by the substitution u = tan(z) and the midpoint rule."""
    n = 200_000
    z = (torch.arange(n, dtype=torch.float64) + 0.5) * (math.pi / n) - math.pi / 2
    u, stretch = torch.tan(z), 1.0 + torch.tan(z) ** 2
    area = (SURROGATES[name].derivative(u, torch.tensor(alpha, dtype=torch.float64)) * stretch).sum() * math.pi / n
    assert area.item() == pytest.approx(1.0, abs=1e-4)  # the midpoint rule misses the edges of the rectangle by a cell


@pytest.mark.parametrize("name", sorted(SURROGATES))
@pytest.mark.parametrize("alpha", [None, 0.7, 3.0])
def test_the_same_as_spikingjelly(device: str, generator: torch.Generator, name: str, alpha: float | None) -> None:
    """`alpha=None` compares the defaults too. Its Rect, like ours, is open at both ends."""
    surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate")
    theirs = getattr(surrogate, SPIKINGJELLY[name])(**({} if alpha is None else {"alpha": alpha}))
    u = torch.randn(1000, generator=generator, dtype=torch.float64)
    u[:2] = torch.tensor([0.0, -0.0])
    leaf = u.clone().requires_grad_()
    theirs(leaf).sum().backward()
    ours = slope(STEPS[name], u, device, width=alpha or DEFAULTS[name])
    torch.testing.assert_close(ours, leaf.grad, rtol=1e-12, atol=1e-15)
    if alpha is None:
        made = firing(name)
        assert made.program({}).tape.nodes[-1].op == "spike"
        alphas = [node.value for node in made.program({}).tape.nodes if node.op == "const"]
        assert alphas == [DEFAULTS[name]]


@pytest.mark.parametrize("name", sorted(SURROGATES))
def test_the_kernel_in_float32_follows_the_formula(loom: Any, generator: torch.Generator, name: str) -> None:
    u = torch.cat(
        [torch.randn((3, 400), generator=generator), torch.tensor([[0.0, -0.0, 1e4, -1e4, 1e-30]]).repeat(3, 80)]
    )
    loom.agree(STEPS[name], [u], {"width": 2.3})
    loom.agree(STEPS[name], [u], {"width": torch.rand(400, generator=generator) + 0.5})


def test_alpha_gets_no_gradient(loom: Any) -> None:
    u = torch.linspace(-1, 1, 40).view(2, 20)
    run = loom.run(STEPS["atan"], [u], {"width": torch.tensor(2.0)})
    reference = loom.run(STEPS["atan"], [u], {"width": torch.tensor(2.0)}, backend="reference")
    assert run.gradients["width"] == reference.gradients["width"] == 0.0


def test_a_surrogate_of_ones_own(loom: Any, generator: torch.Generator) -> None:
    """Any function of loom operations: here one side is steeper, with an exponential tail."""

    def lopsided(u: Any, alpha: Any) -> Any:
        return where(u > 0.0, exp(-(alpha * u)), maximum(1.0 + u, 0.1))

    u = torch.randn((4, 300), generator=generator)
    expected, _ = loom.agree(firing(lopsided, 2.0), [u], ones=True)
    torch.testing.assert_close(
        expected.gradients["u"], torch.where(u > 0, torch.exp(-2.0 * u), (1.0 + u).clamp(min=0.1)), rtol=1e-6, atol=0
    )
    by_default, _ = loom.agree(firing(lopsided), [u], ones=True)
    assert not torch.equal(by_default.gradients["u"], expected.gradients["u"]), "alpha is 1 where none is given"


def test_an_unknown_surrogate_is_told_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"unknown surrogate 'gausian' \(did you mean 'gaussian'\?\); known: atan"):
        spike(torch.zeros(3), "gausian")
    with pytest.raises(ValueError, match=r"known: atan, fast_sigmoid, gaussian, rectangle, sigmoid, triangle"):
        spike(torch.zeros(3), "???")


def test_spike_works_on_tensors_outside_a_step() -> None:
    u = torch.tensor([-0.5, 0.0, 0.5], requires_grad=True)
    y = spike(u, "triangle")
    y.sum().backward()
    assert y.tolist() == [0.0, 1.0, 1.0]
    assert u.grad.tolist() == [0.5, 1.0, 0.5]
