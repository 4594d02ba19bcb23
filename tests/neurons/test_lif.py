"""LIF against numbers calculated by hand, and its gradient against the recurrence written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from spikeloom.neurons import LIF
from spikeloom.neurons.functional import lif


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers)[:, None]


@pytest.mark.parametrize("backend", ["reference", "auto"])
class TestTenStepsByHand:
    def test_hard_reset_decayed_input(self, backend: str) -> None:
        """tau = 2, threshold 1, reset to 0: h = (v + x) / 2. Step 2 is a tie, and fires."""
        x = column(1.0, 1.5, 0.5, 2.0, -1.0, 3.0, 0.25, 1.75, 1.0, 2.0)
        #  h =     0.5  1.0  .25  1.125 -.5  1.25 .125 .9375 .96875 1.484375
        spikes = [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        membrane = [0.5, 0.0, 0.25, 0.0, -0.5, 0.0, 0.125, 0.9375, 0.96875, 0.0]
        self.follow(LIF(backend=backend), x, spikes, membrane)

    def test_soft_reset_undecayed_input(self, backend: str) -> None:
        """tau = 2, threshold 1, soft reset: h = v / 2 + x. Step 3 fires at 2.5 and keeps 1.5."""
        x = column(0.5, 0.75, 2.5, 0.0, 0.5, 0.625, -0.5, 1.0, 1.0, 0.0)
        #  h =     0.5  1.0  2.5  .75  .875 1.0625 -.46875 .765625 1.3828125 .19140625
        spikes = [0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0]
        membrane = [0.5, 0.0, 1.5, 0.75, 0.875, 0.0625, -0.46875, 0.765625, 0.3828125, 0.19140625]
        self.follow(LIF(v_reset=None, decay_input=False, backend=backend), x, spikes, membrane)

    def test_reset_elsewhere_than_zero(self, backend: str) -> None:
        """tau = 4, threshold 0.5, reset to -1, where it also rests: h = v + (x - (v + 1)) / 4."""
        x = column(4.0, 2.0, 3.0, 0.0, 8.0, 4.0, 6.0, -2.0, 3.0, 5.0)
        #  h =     0    .25  .6875 -1  1   0   .75 -1.5 -.625 .71875... written out:
        #  v0 = -1: 0;  0: 0 + (2-1)/4 = .25;  .25: .25 + (3-1.25)/4 = .6875 fires;  -1: -1;  -1: 1 fires;
        #  -1: 0;  0: 0 + (6-1)/4 = 1.25 fires;  -1: -1.5;  -1.5: -1.5 + (3+.5)/4 = -.625;  -.625 + (5-.375)/4 = .53125
        spikes = [0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0]
        membrane = [0.0, 0.25, -1.0, -1.0, -1.0, 0.0, -1.0, -1.5, -0.625, -1.0]
        self.follow(LIF(4.0, 0.5, -1.0, backend=backend), x, spikes, membrane)

    @staticmethod
    def follow(layer: LIF, x: Tensor, spikes: list[float], membrane: list[float]) -> None:
        """All ten steps at once, and one step after the other."""
        result, (v,) = layer(x, return_state=True)
        assert result[:, 0].tolist() == spikes
        assert v.tolist() == [membrane[-1]]
        state = None
        for t in range(10):
            out, state = layer(x[t : t + 1], state=state, return_state=True)
            assert (out.item(), state[0].item()) == (spikes[t], membrane[t])


@pytest.mark.parametrize("decay_input", [True, False])
def test_gradient_is_the_recurrence(decay_input: bool) -> None:
    """Detached hard reset to 0, sigmoid surrogate, in plain Python:

    g_h = g_s surrogate'(h - 1) + g_v (1 - s);  g_x = g_h / tau (or g_h);  g_v before = g_h (1 - 1 / tau).
    """
    torch.manual_seed(0)
    tau, alpha = 3.0, 4.0
    x = (torch.randn(7, 4, dtype=torch.float64) * 2).requires_grad_()
    grad_s, grad_v = torch.randn(7, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    s, (v,) = lif(x, tau=tau, decay_input=decay_input)
    torch.autograd.backward([s, v], [grad_s, grad_v])
    gain = 1 / tau if decay_input else 1.0
    for lane in range(4):
        h, fired, membrane = [], [], 0.0
        for t in range(7):
            h.append(membrane - membrane / tau + x[t, lane].item() * gain)
            fired.append(float(h[t] >= 1.0))
            membrane = 0.0 if fired[t] else h[t]
        flowing, expected = grad_v[lane].item(), [0.0] * 7
        for t in reversed(range(7)):
            sigma = 1 / (1 + math.exp(-alpha * (h[t] - 1.0)))
            g_h = grad_s[t, lane].item() * alpha * sigma * (1 - sigma) + flowing * (1 - fired[t])
            expected[t], flowing = g_h * gain, g_h * (1 - 1 / tau)
        torch.testing.assert_close(x.grad[:, lane].tolist(), expected, rtol=1e-12, atol=1e-14)


def test_learnable_time_constant_learns() -> None:
    """A neuron with tau = 4 is told to fire as one with tau = 2 does."""
    torch.manual_seed(0)
    x = 2 * torch.rand(20, 64)
    target = LIF(2.0)(x).mean(0)
    layer = LIF(nn.Parameter(torch.tensor(4.0)))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        (layer(x).mean(0) - target).square().mean().backward()
        optimizer.step()
    assert abs(layer.tau.item() - 2.0) < 0.3
