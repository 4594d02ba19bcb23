"""Recurrent neurons: against the loop written out, and against snnTorch's RLeaky."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spikeloom.neurons import ALIF, LI, LIF, PLIF, Recurrent
from spikeloom.neurons.functional import lif


@pytest.fixture
def layer() -> Recurrent:
    torch.manual_seed(0)
    return Recurrent(LIF(nn.Parameter(torch.tensor(2.5))), nn.Linear(7, 7))


def test_is_the_loop_written_out(layer: Recurrent, device: str) -> None:
    """h = v + (x + W s - v) / tau: one call per step of the reference, spikes fed back by hand; all gradients."""
    layer = layer.to(device)
    x = (2 * torch.randn(9, 3, 7)).to(device)
    cotangent = torch.randn(9, 3, 7).to(device)
    s, (last, v) = layer(x, return_state=True)
    s.backward(cotangent)
    got = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    spikes, state = [torch.zeros(3, 7, device=device)], None
    for row in x:
        out, state = lif((row + layer.weight(spikes[-1]))[None], state=state, tau=layer.neuron.tau, backend="reference")
        spikes.append(out[0])
    expected = torch.stack(spikes[1:])
    expected.backward(cotangent)
    assert torch.equal(s, expected)
    assert s.any()
    assert torch.equal(last, s[-1])
    assert torch.equal(v, state[0])
    for mine, p in zip(got, layer.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=1e-4, atol=1e-5)


def test_snntorch_rleaky() -> None:
    """`RLeaky(reset_delay=False)` is Recurrent(LIF) where Leaky is LIF (see test_snntorch)."""
    import snntorch

    torch.manual_seed(0)
    cell = snntorch.RLeaky(beta=torch.tensor(0.5), linear_features=5, reset_delay=False)
    nn.init.uniform_(cell.recurrent.weight, -0.2, 0.1)
    ours = Recurrent(
        LIF(2.0, v_reset=None, decay_input=False, detach_reset=False, surrogate="atan", alpha=2.0), cell.recurrent
    )
    x = 0.9 * torch.rand(20, 3, 5)
    spk, mem, expected = torch.zeros(3, 5), torch.zeros(3, 5), []
    for row in x:
        spk, mem = cell(row, spk, mem)
        expected.append(spk)
    s = ours(x)
    assert torch.equal(s, torch.stack(expected))
    assert s.any()
    cotangent = torch.randn(20, 3, 5)
    s.backward(cotangent)
    mine = cell.recurrent.weight.grad.clone()
    cell.zero_grad()
    torch.stack(expected).backward(cotangent)
    torch.testing.assert_close(mine, cell.recurrent.weight.grad, rtol=1e-4, atol=1e-5)


def test_convolution_feeds_back() -> None:
    torch.manual_seed(0)
    layer = Recurrent(ALIF(), nn.Conv2d(2, 2, 3, padding=1))
    x = 2 * torch.randn(4, 3, 2, 5, 6)
    whole, state = layer(x, return_state=True)
    assert whole.shape == x.shape
    assert len(state) == 3
    first, state = layer(x[:3], return_state=True)
    assert torch.equal(torch.cat([first, layer(x[3:], state=state)]), whole)


def test_says_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"maps spikes \[3, 7\] to \[3, 5\]"):
        Recurrent(LIF(), nn.Linear(7, 5))(torch.ones(2, 3, 7))
    with pytest.raises(TypeError, match="weight of Recurrent must be without memory, but has state in: 1"):
        Recurrent(LIF(), nn.Sequential(nn.Linear(7, 7), LI()))
    layer = Recurrent(PLIF(), nn.Linear(7, 7))
    for bad in (torch.ones(0, 3, 7), torch.ones(7), torch.ones(2, 3, 7, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"expected floating-point \[T, \*neurons\] with time first and T >= 1"):
            layer(bad)
    _, state = layer(torch.ones(2, 3, 7), return_state=True)
    with pytest.raises(ValueError, match=r"state of neurons \[3, 7\] for an input \[2, 4, 7\]"):
        layer(torch.ones(2, 4, 7), state=state)
