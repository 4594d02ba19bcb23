"""Selective scans under the counter: the operations of an update, nothing uncounted, the same result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spikeloom.energy import count
from spikeloom.kernels.scan import selective_scan
from spikeloom.spiking_attention.mamba import MambaMixer


@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
def test_a_mixer_is_counted(both: bool) -> None:
    """Per sample: the products with weights, the taps on tokens that exist, and n states per channel and token."""
    torch.manual_seed(0)
    net = MambaMixer(8, bidirectional=both, d_state=4, d_conv=3, dt_rank=2)
    B, L, Di, ways = 3, 5, 16, 1 + both
    x = torch.randn(B, L, 8)
    with torch.no_grad():
        expected = net(x)
        with count(net, T=1, axes="BT", strict=True) as run:
            y = net(x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    counts = run.counts()
    assert not counts.uncounted
    assert all(layer.kind == "float" for layer in counts.layers)
    taps = 3 * L - 3
    products = L * (8 * 2 * Di + ways * Di * (2 + 2 * 4) + ways * 2 * Di + Di * 8)
    assert sum(int(layer.sop.sum()) for layer in counts.layers) == B * (products + ways * Di * taps)
    (scan,) = [entry for entry in counts.aux if getattr(entry, "model", "") == "selective_scan"]
    assert (scan.updates, scan.states, scan.spiking) == (L * Di * ways, 4, False)
    gated = not both  # both ways share a gate, which is applied to the sum
    assert scan.operations == {
        "adds": 2 * 4 - 1 + 3,
        "multiplies": 4 * 4 + 2 + 2 * gated,
        "divides": 0,
        "compares": 1,
        "transcendental": 4 + 2 + gated,
    }


class Bare(nn.Module):
    def forward(self, u: Tensor) -> Tensor:
        ones = torch.ones(u.shape[1], 2)
        y = selective_scan(u, u.abs(), -ones, ones, ones)
        assert isinstance(y, Tensor)
        return y


def test_a_bare_scan_has_fewer_operations() -> None:
    with torch.no_grad(), count(net := Bare(), T=1, axes="BT", strict=True) as run:
        net(torch.randn(2, 3, 4))
    (scan,) = [entry for entry in run.counts().aux if getattr(entry, "model", "") == "selective_scan"]
    assert scan.operations == {"adds": 3, "multiplies": 9, "divides": 0, "compares": 0, "transcendental": 2}
