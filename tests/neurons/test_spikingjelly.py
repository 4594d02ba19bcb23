"""Our neurons against SpikingJelly 2.0's, on the CPU in float32.

The equations are the same, operation by operation, so spikes and membranes are equal bit for bit; gradients differ by
the rounding of the surrogate's derivative. Mapping: equal names, except

* SpikingJelly's `detach_reset` is False by default, ours True; both are set here;
* `CUBALIFNode(c_decay, v_decay)` multiplies where ours divides: c_decay = 1 - 1 / tau_syn, v_decay = 1 - 1 / tau, with
  decay_input=False and v_reset 0 or None, exact where the taus are powers of two;
* `ILIFNode` multiplies the membrane with 1 - 1 / tau: exact where tau is a power of two;
* the exponential of EIF and the sigmoid of PLIF may differ in the last bit between our kernel and torch, so their
  membranes agree to some ulps;
* `NonSpikingLIFNode` is LI.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from spikingjelly.activation_based import neuron as sj
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch import Tensor, nn

from spikeloom.kernels import spike
from spikeloom.neurons import EIF, IF, ILIF, LI, LIF, PLIF, QIF, CubaLIF, Izhikevich, Neuron

NAMES = {
    "sigmoid": "Sigmoid",
    "atan": "ATan",
    "triangle": "PiecewiseQuadratic",
    "fast_sigmoid": "SoftSign",
    "rectangle": "Rect",
    "gaussian": "Erf",
}


def compare(ours: Neuron, theirs: nn.Module, states: dict[int, str], scale: float = 2.0, exact: bool = True) -> None:
    """Same input; spikes, final states (our index -> their name), gradients of the input and of shared parameters."""
    torch.manual_seed(1)
    x = scale * torch.randn(20, 3, 17)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    if isinstance(theirs, sj.base_node.BaseNode):
        theirs.step_mode = "m"
    s, final = ours(a, return_state=True)
    expected = theirs(b)
    if isinstance(expected, list):
        expected = torch.stack(expected)
    assert torch.equal(s, expected)
    assert s.any()
    cotangent = torch.randn(x.shape)
    s.backward(cotangent)
    expected.backward(cotangent)
    for index, name in states.items():
        torch.testing.assert_close(
            final[index], getattr(theirs, name), rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6
        )
    close(a.grad, b.grad)
    for name, parameter in theirs.named_parameters():
        close(ours.get_parameter(name).grad, parameter.grad)


def close(got: Tensor | None, expected: Tensor | None) -> None:
    assert got is not None
    assert expected is not None
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("tau", [2.0, 2.7])
@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, 0.3, None])
@pytest.mark.parametrize("decay_input", [True, False])
def test_lif(decay_input: bool, v_reset: float | None, detach_reset: bool, tau: float) -> None:
    options: dict[str, Any] = {"tau": tau, "decay_input": decay_input, "v_reset": v_reset, "detach_reset": detach_reset}
    compare(LIF(**options), sj.LIFNode(**options), {0: "v"})


@pytest.mark.parametrize("name", NAMES)
def test_lif_with_every_surrogate(name: str) -> None:
    ours = LIF(surrogate=name, alpha=1.5, v_threshold=0.7)
    compare(
        ours,
        sj.LIFNode(
            surrogate_function=getattr(sj_surrogate, NAMES[name])(alpha=1.5), v_threshold=0.7, detach_reset=True
        ),
        {0: "v"},
    )


@pytest.mark.parametrize("name", NAMES)
def test_surrogate_derivatives_and_default_sharpness(name: str) -> None:
    u = torch.linspace(-2, 2, 401, dtype=torch.float64, requires_grad=True)
    mine = torch.autograd.grad(spike(u, name).sum(), u)[0]
    theirs = torch.autograd.grad(getattr(sj_surrogate, NAMES[name])()(u).sum(), u)[0]
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_if(v_reset: float | None, detach_reset: bool) -> None:
    options: dict[str, Any] = {"v_reset": v_reset, "detach_reset": detach_reset, "v_threshold": 1.3}
    compare(IF(**options), sj.IFNode(**options), {0: "v"})


@pytest.mark.parametrize(("init_tau", "exact"), [(2.0, True), (3.3, False)])
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("v_reset", [0.1, None])
def test_plif(v_reset: float | None, decay_input: bool, init_tau: float, exact: bool) -> None:
    """With the gradient of `w`, and the same state dict. sigmoid(0) = 1/2 is exact, so tau = 2 is."""
    options: dict[str, Any] = {
        "init_tau": init_tau,
        "decay_input": decay_input,
        "v_reset": v_reset,
        "detach_reset": True,
    }
    ours, theirs = PLIF(**options), sj.ParametricLIFNode(**options)
    assert {k: v.item() for k, v in ours.state_dict().items()} == {k: v.item() for k, v in theirs.state_dict().items()}
    compare(ours, theirs, {0: "v"}, exact=exact)


@pytest.mark.parametrize("detach_reset", [True, False])
def test_eif(detach_reset: bool) -> None:
    compare(EIF(detach_reset=detach_reset), sj.EIFNode(detach_reset=detach_reset), {0: "v"}, exact=False)
    options: dict[str, Any] = {
        "tau": 3.0,
        "delta_T": 0.7,
        "theta_rh": 0.6,
        "v_threshold": 0.9,
        "v_rest": 0.1,
        "v_reset": -0.2,
        "detach_reset": detach_reset,
    }
    compare(EIF(**options), sj.EIFNode(**options), {0: "v"}, exact=False)


@pytest.mark.parametrize("detach_reset", [True, False])
def test_qif(detach_reset: bool) -> None:
    compare(QIF(detach_reset=detach_reset), sj.QIFNode(detach_reset=detach_reset), {0: "v"}, scale=0.7)
    options: dict[str, Any] = {
        "tau": 3.0,
        "v_c": 0.7,
        "a0": 0.9,
        "v_threshold": 1.2,
        "v_rest": 0.1,
        "v_reset": -0.2,
        "detach_reset": detach_reset,
    }
    compare(QIF(**options), sj.QIFNode(**options), {0: "v"}, scale=0.7)


@pytest.mark.parametrize("detach_reset", [True, False])
def test_izhikevich(detach_reset: bool) -> None:
    compare(
        Izhikevich(detach_reset=detach_reset), sj.IzhikevichNode(detach_reset=detach_reset), {0: "v", 1: "w"}, scale=0.7
    )
    options: dict[str, Any] = {
        "tau": 3.0,
        "v_c": 0.7,
        "a0": 0.9,
        "v_threshold": 0.9,
        "v_reset": 0.1,
        "v_rest": -0.2,
        "w_rest": 0.05,
        "tau_w": 3.0,
        "a": 0.3,
        "b": 0.4,
        "detach_reset": detach_reset,
    }
    compare(Izhikevich(**options), sj.IzhikevichNode(**options), {0: "v", 1: "w"}, scale=0.7)


@pytest.mark.parametrize("v_reset", [0.0, None])
def test_cuba_lif(v_reset: float | None) -> None:
    ours = CubaLIF(4.0, 2.0, 0.5, v_reset, decay_input=False, detach_reset=False, surrogate="rectangle", alpha=1.0)
    theirs = sj.CUBALIFNode(c_decay=0.5, v_decay=0.75, v_threshold=0.5, v_reset=v_reset)
    compare(ours, theirs, {0: "c", 1: "v"}, scale=0.5)


@pytest.mark.parametrize("detach_reset", [True, False])
def test_ilif(detach_reset: bool) -> None:
    window = sj_surrogate.MultiLevelSpikeCount(3)
    theirs = sj.ILIFNode(2.0, 0.5, surrogate_function=window, detach_reset=detach_reset)
    compare(ILIF(2.0, 0.5, 3, detach_reset=detach_reset), theirs, {0: "v"}, scale=1.0)


def test_li() -> None:
    compare(LI(3.0), sj.NonSpikingLIFNode(3.0), {0: "v"})
