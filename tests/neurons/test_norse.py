"""Our neurons against Norse 1.1's, in float64.

Norse's time step `dt` and inverse time constants become tau = 1 / (dt tau_inv). It multiplies where we divide, so
values agree to rounding (float64, 1e-10) and spikes exactly. It fires where the membrane is above the threshold, we
where it is not below; random inputs do not hit it. Its feed-forward steps do not detach the reset (detach_reset=False).

* `LIFBox` is LIF (decay_input=True); with `reset_subtract` the soft reset.
* `LIF` has a synaptic current, so it is CubaLIF (decay_input=True); its state `i` is ours after one decay.
* `LSNN` is ALIF: its input passes a current and comes one step late, so tau_syn_inv dt = 1 and the output is compared
  one step later. The threshold `b` decays before it is used, ours after: b = v_th + beta a (1 - 1 / tau_a), so our beta
  is theirs times 1 - 1 / tau_a.
* `LIBox` is LI.
* Surrogates: "triangle" with alpha = 1 is ours; "heavi_erfc" with alpha = 2 is "gaussian"; "super" ignores its alpha in
  1.1 and is twice "fast_sigmoid" with alpha = 1.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from norse.torch.functional.leaky_integrator_box import LIBoxParameters, LIBoxState, li_box_feed_forward_step
from norse.torch.functional.lif import LIFFeedForwardState, LIFParameters, lif_feed_forward_step
from norse.torch.functional.lif_box import LIFBoxFeedForwardState, LIFBoxParameters, lif_box_feed_forward_step
from norse.torch.functional.lsnn import LSNNFeedForwardState, LSNNParameters, lsnn_feed_forward_step
from norse.torch.functional.reset import reset_subtract
from torch import Tensor

from spikeloom.neurons import ALIF, LI, LIF, CubaLIF

DT = 1e-3


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def rate(tau: float) -> Tensor:
    """Inverse time constant of Norse, 1 / s."""
    return double(1.0 / (DT * tau))


def unroll(step: Any, x: Tensor, state: Any, p: Any) -> tuple[Tensor, Any]:
    outputs = []
    for row in x:
        out, state = step(row, state, p, DT)
        outputs.append(out)
    return torch.stack(outputs), state


def inputs(scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    x = scale * torch.randn(20, 3, 17, dtype=torch.float64)
    return x.clone().requires_grad_(), x.clone().requires_grad_(), torch.randn(20, 3, 17, dtype=torch.float64)


def same(got: Tensor | None, expected: Tensor | None, rtol: float = 1e-10) -> None:
    torch.testing.assert_close(got, expected, rtol=rtol, atol=0.01 * rtol)


def super_spike(u: Any, alpha: Any) -> Any:
    slope = 1.0 + abs(u)
    return 1.0 / (slope * slope)


SURROGATE_PAIRS: list[tuple[str, float, Any, float]] = [
    ("triangle", 1.0, "triangle", 1.0),
    ("heavi_erfc", 2.0, "gaussian", 2.0),
    ("super", 100.0, super_spike, 1.0),
]


@pytest.mark.parametrize(("method", "alpha", "surrogate", "sharpness"), SURROGATE_PAIRS, ids=lambda v: str(v)[:10])
def test_lif_box_is_lif(method: str, alpha: float, surrogate: Any, sharpness: float) -> None:
    a, b, g = inputs()
    p = LIFBoxParameters(rate(2.7), double(0.2), double(1.1), double(0.2), method, alpha)
    expected, last = unroll(
        lif_box_feed_forward_step, b, LIFBoxFeedForwardState(torch.full((3, 17), 0.2, dtype=torch.float64)), p
    )
    ours = LIF(2.7, 1.1, 0.2, detach_reset=False, surrogate=surrogate, alpha=sharpness)
    s, (v,) = ours(a, return_state=True)
    s.backward(g)
    expected.backward(g)
    assert torch.equal(s, expected)
    assert s.any()
    same(v, last.v)
    same(a.grad, b.grad, 1e-5 if method == "heavi_erfc" else 1e-10)  # its sqrt(pi) is a float32


def test_lif_box_with_subtraction_is_the_soft_reset() -> None:
    a, b, g = inputs()
    p = LIFBoxParameters(rate(3.0), double(0.0), double(0.6), double(0.0), "triangle", 1.0, reset_subtract)
    expected, last = unroll(lif_box_feed_forward_step, b, LIFBoxFeedForwardState(torch.zeros(3, 17).double()), p)
    s, (v,) = LIF(3.0, 0.6, None, detach_reset=False, surrogate="triangle", alpha=1.0)(a, return_state=True)
    s.backward(g)
    expected.backward(g)
    assert torch.equal(s, expected)
    same(v, last.v)
    same(a.grad, b.grad)


@pytest.mark.parametrize("tau_syn", [1.0, 1.7])
def test_lif_is_cuba_lif(tau_syn: float) -> None:
    a, b, g = inputs()
    p = LIFParameters(rate(tau_syn), rate(2.7), double(0.1), double(1.0), double(0.1), "triangle", 1.0)
    start = LIFFeedForwardState(torch.full((3, 17), 0.1, dtype=torch.float64), torch.zeros(3, 17).double())
    expected, last = unroll(lif_feed_forward_step, b, start, p)
    ours = CubaLIF(2.7, tau_syn, 1.0, 0.1, detach_reset=False, surrogate="triangle", alpha=1.0)
    s, (i, v) = ours(a, return_state=True)
    s.backward(g)
    expected.backward(g)
    assert torch.equal(s, expected)
    same(v, last.v)
    same(i - i / tau_syn, last.i)
    same(a.grad, b.grad)


def test_lsnn_is_alif() -> None:
    a, b, g = inputs(3.0)
    tau_a, beta = 12.0, 0.6
    p = LSNNParameters(
        rate(1.0), rate(2.5), rate(tau_a), double(0.0), double(1.0), double(0.0), double(beta), "triangle", 1.0
    )
    zeros = torch.zeros(3, 17).double()
    late = torch.cat([b, zeros[None]])
    expected, last = unroll(lsnn_feed_forward_step, late, LSNNFeedForwardState(zeros, zeros, zeros + 1.0), p)
    assert not expected[0].any()
    ours = ALIF(2.5, tau_a, beta * (1 - 1 / tau_a), 1.0, 0.0, detach_reset=False, surrogate="triangle", alpha=1.0)
    s, (v, adaptation) = ours(a, return_state=True)
    s.backward(g)
    expected[1:].backward(g)
    assert torch.equal(s, expected[1:])
    assert s.any()
    same(v, last.v)
    same(1.0 + beta * adaptation, last.b)
    same(a.grad, b.grad)


def test_li_box_is_li() -> None:
    a, b, g = inputs()
    expected, _ = unroll(
        li_box_feed_forward_step, b, LIBoxState(torch.zeros(3, 17).double()), LIBoxParameters(rate(4.0))
    )
    y = LI(4.0)(a)
    y.backward(g)
    expected.backward(g)
    same(y, expected)
    same(a.grad, b.grad)


def test_li_after_a_synaptic_current() -> None:
    """Norse's LI has a current too: LI of the current of a CubaLIF that never fires."""
    from norse.torch.functional.leaky_integrator import LIParameters, LIState, li_feed_forward_step

    a, b, _ = inputs()
    zeros = torch.zeros(3, 17).double()
    expected, _ = unroll(li_feed_forward_step, b, LIState(zeros, zeros), LIParameters(rate(1.7), rate(4.0)))
    silent = CubaLIF(4.0, 1.7, float("inf"))
    state, membrane = None, []
    for step in a.split(1):
        _, state = silent(step, state=state, return_state=True)
        membrane.append(state[1])
    same(torch.stack(membrane), expected)
