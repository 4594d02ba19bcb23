"""Our neurons against snnTorch 1.0's, in float64.

What coincides:

* `Leaky(beta, reset_delay=False)` is LIF with tau = 1 / (1 - beta), decay_input=False, detach_reset=False and v_reset=0
  ("zero") or None ("subtract"); the latter as long as no membrane passes twice the threshold: beyond, snnTorch
  subtracts once more before it decides the next spike.
* `Leaky(beta)` with its default delayed reset (the membrane is reduced one step after the spike, after the decay, and
  detached) is no LIF; it is three lines of loom, below.
* `Synaptic(alpha, beta, reset_delay=False)` with "subtract" is CubaLIF with tau_syn = 1 / (1 - alpha), the same
  proviso.

snnTorch fires above the threshold, we where the membrane is not below; random inputs do not hit it. It multiplies
with beta where we divide by tau: membranes agree to rounding (float64, 1e-10), spikes exactly. Its spikes are float32
for float64 input, so gradients pass through float32 and agree to its rounding. Its default surrogate is our "atan" with
alpha = 2, its `fast_sigmoid(slope=k)` ours times 2 / k.
"""

from __future__ import annotations

from typing import Any

import pytest
import snntorch
import torch
from snntorch import surrogate as snn_surrogate
from torch import Tensor

from spikeloom.kernels import detach, spike, where
from spikeloom.neurons import LIF, CubaLIF, Neuron, neuron


def unroll(cell: Any, x: Tensor, *state: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    outputs = []
    for row in x:
        s, *state = cell(row, *state)
        outputs.append(s)
    return torch.stack(outputs), tuple(state)


def inputs(scale: float) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(5)
    x = scale * torch.rand(20, 3, 17, dtype=torch.float64)
    return x.clone().requires_grad_(), x.clone().requires_grad_(), torch.randn(20, 3, 17, dtype=torch.float64)


def same(got: Tensor | None, expected: Tensor | None) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def zeros() -> Tensor:
    return torch.zeros(3, 17, dtype=torch.float64)


def constant(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("mechanism", ["zero", "subtract"])
def test_leaky_without_delay_is_lif(mechanism: str) -> None:
    a, b, g = inputs(0.9)
    cell = snntorch.Leaky(constant(0.7), reset_mechanism=mechanism, reset_delay=False)
    expected, (mem,) = unroll(cell, b, zeros())
    ours = LIF(
        1 / (1 - 0.7),
        1.0,
        0.0 if mechanism == "zero" else None,
        decay_input=False,
        detach_reset=False,
        surrogate="atan",
        alpha=2.0,
    )
    s, (v,) = ours(a, return_state=True)
    s.backward(g)
    expected.backward(g)
    assert torch.equal(s, expected.double())
    assert s.any()
    same(v, mem)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


@neuron(state={"m": 0.0})
def delayed(x: Any, m: Any, *, beta: Any, v_threshold: Any = 1.0, subtract: bool = True) -> Any:
    """snnTorch's membrane, reduced one step after the spike."""
    fired = detach(m) > v_threshold
    m = beta * m + x - where(fired, v_threshold, 0.0) if subtract else beta * where(fired, 0.0, m) + x
    return spike(m - v_threshold, "atan", 2.0), m


@pytest.mark.parametrize("mechanism", ["zero", "subtract"])
def test_leaky_with_delay_is_a_neuron_of_ones_own(mechanism: str) -> None:
    a, b, g = inputs(1.5)
    expected, (mem,) = unroll(snntorch.Leaky(constant(0.7), reset_mechanism=mechanism), b, zeros())
    s, (m,) = Neuron(delayed, beta=0.7, subtract=mechanism == "subtract")(a, return_state=True)
    s.backward(g)
    expected.backward(g)
    assert torch.equal(s, expected.double())
    assert s.any()
    same(m, mem)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_synaptic_is_cuba_lif() -> None:
    a, b, g = inputs(0.5)
    cell = snntorch.Synaptic(constant(0.4), constant(0.7), reset_delay=False)
    expected, (syn, mem) = unroll(cell, b, zeros(), zeros())
    ours = CubaLIF(
        1 / (1 - 0.7), 1 / (1 - 0.4), 1.0, None, decay_input=False, detach_reset=False, surrogate="atan", alpha=2.0
    )
    s, (i, v) = ours(a, return_state=True)
    s.backward(g)
    expected.backward(g)
    assert torch.equal(s, expected.double())
    assert s.any()
    same(i, syn)
    same(v, mem)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_fast_sigmoid_scale() -> None:
    u = torch.linspace(-1, 1, 101, dtype=torch.float64, requires_grad=True)
    mine = torch.autograd.grad(spike(u, "fast_sigmoid", 25.0).sum(), u)[0]
    theirs = torch.autograd.grad(snn_surrogate.fast_sigmoid(25)(u).double().sum(), u)[0]
    same(mine * 2 / 25, theirs)
