"""The converted neuron's identities, and the neurons with an offset."""

from __future__ import annotations

import pytest
import torch

import spikeloom
from spikeloom.conversion import QCFS, CountMaxPool, OffsetIF, RateIF


def test_charge_is_conserved() -> None:
    theta = torch.tensor([0.5, 1.25, 2.0], dtype=torch.float64)
    layer = RateIF(theta, theta / 2, 0.125)
    x = torch.randn(40, 7, 3, dtype=torch.float64)
    spikes, (v,) = layer(x, return_state=True)
    torch.testing.assert_close(theta * spikes.sum(0), (x + 0.125).sum(0) + theta / 2 - v, rtol=0, atol=1e-12)
    assert spikes.unique().tolist() == [0, 1]


@pytest.mark.parametrize("T", [1, 4, 16])
def test_constant_currents_give_qcfs(T: int) -> None:
    theta = 1.5
    currents = torch.arange(-64, 129, dtype=torch.float64) / 64 + 1 / 1024  # no ties
    spikes = RateIF(theta, theta / 2)(currents.expand(T, 1, -1))[:, 0]
    expected = ((T * currents + theta / 2) / theta).floor().clamp(0, T)
    assert torch.equal(spikes.sum(0), expected)
    activation = QCFS(T, theta).double()
    torch.testing.assert_close(activation(currents), theta * spikes.mean(0), rtol=0, atol=1e-12)


def test_an_exact_tie_fires() -> None:
    assert RateIF(1.0)(torch.tensor([[[0.5]], [[0.5]]])).flatten().tolist() == [0, 1]


def test_hand_computed_steps() -> None:
    spikes = RateIF(1.0, 0.5)(torch.tensor([0.3, 0.3, -0.4, 1.5, 0.9]).reshape(5, 1, 1))
    assert spikes.flatten().tolist() == [0, 1, 0, 1, 1]  # h = .8, 1.1, -.3, 1.2, 1.1


def test_qcfs_gradients() -> None:
    layer = QCFS(4, 2.0).double()
    x = torch.tensor([-1.0, 0.3, 1.1, 3.0], dtype=torch.float64, requires_grad=True)
    for i, (slope, theta_slope) in enumerate([(0, 0), (1, 0.25 - 0.15), (1, 0.5 - 0.55), (0, 1)]):
        layer.zero_grad()
        x.grad = None
        layer(x)[i].backward()
        assert x.grad is not None and x.grad[i].item() == slope  # noqa: PT018
        assert layer.thresh.grad is not None
        assert layer.thresh.grad.item() == pytest.approx(theta_slope)


def test_a_negative_threshold_is_held() -> None:
    layer = QCFS(4, 1.0)
    with torch.no_grad():
        layer.thresh.fill_(-3.0)
    assert layer(torch.tensor([5.0])).item() == pytest.approx(1e-3)
    assert layer.v_threshold.item() == pytest.approx(1e-3)


def test_offset_takes_away_the_spike_too_many() -> None:
    """A large positive current, then a negative one: the plain neuron fires although the mean is below 0."""
    x = torch.tensor([1.0, -1.0, -0.5, 0.0]).reshape(4, 1, 1)
    assert RateIF(1.0, 0.5)(x).sum() == 1
    assert OffsetIF(1.0, 4, "cos")(x).sum() == 0
    assert OffsetIF(1.0, 4, "srp")(x).sum() == 0


@pytest.mark.parametrize("mode", ["cos", "srp"])
def test_offset_streams(mode: str) -> None:
    layer = OffsetIF(0.7, 3, mode)  # type: ignore[arg-type]
    x = torch.randn(10, 4, 6)
    stream = spikeloom.Stream(layer)
    assert torch.equal(torch.cat([stream(x[:3]), stream(x[3:4]), stream(x[4:])]), layer(x))
    with pytest.raises(ValueError, match="looks at rho = 3"):
        layer(x[:2])


def test_max_pool_by_counts_is_the_pool_of_the_sums() -> None:
    pool = CountMaxPool(torch.nn.MaxPool2d(3, 2, 1))
    x = (torch.rand(20, 2, 3, 7, 7) < 0.3).float()
    y = pool(x)
    assert set(y.unique().tolist()) <= {0.0, 1.0}
    for T in (1, 7, 20):
        assert torch.equal(y[:T].sum(0), torch.nn.functional.max_pool2d(x[:T].sum(0), 3, 2, 1))
    stream = spikeloom.Stream(pool)
    assert torch.equal(torch.cat([stream(part) for part in x.split(6)]), y)
