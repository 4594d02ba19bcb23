"""Delayed read-out: the mean of later steps, in one piece and in chunks, and the delay that the report suggests."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from spikeloom import Stream
from spikeloom.conversion import ConvertedNet, Readout, convert, suggested_delay


def deep(initial: float = 0.0, T: int = 16, **choices: object) -> tuple[nn.Module, ConvertedNet, torch.Tensor]:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(5):
        layers += [nn.Linear(24, 24), nn.ReLU()]
        nn.init.kaiming_normal_(layers[-2].weight)  # type: ignore[arg-type]
    ann = nn.Sequential(*layers, nn.Linear(24, 6)).double().eval()
    images = torch.rand(64, 24, dtype=torch.float64)
    return ann, convert(ann, images.split(4), method="max", T=T, initial=initial, **choices), images


def test_is_the_mean_of_the_later_steps() -> None:
    z = torch.randn(9, 2, 3, dtype=torch.float64)
    y = Readout(4)(z)
    assert torch.equal(y[:4], torch.zeros(4, 2, 3, dtype=torch.float64))
    for t in range(4, 9):
        torch.testing.assert_close(y[t], z[4 : t + 1].mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(Readout()(z)[-1], z.mean(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunks", [(1,) * 16, (2, 5, 9), (16,)], ids=str)
def test_chunks_give_what_one_call_gives(chunks: tuple[int, ...]) -> None:
    _, net, images = deep()
    whole = nn.Sequential(net, Readout(5))
    frames = images[:4].expand(16, 4, 24)
    with torch.no_grad():
        expected, stream = whole(frames), Stream(whole)
        found = torch.cat([stream(part) for part in frames.split(chunks)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_suggested_delay_takes_a_silent_start_out_of_many_steps() -> None:
    ann, net, images = deep(T=128)
    delay = suggested_delay(net)
    rows = net.report.layers
    assert rows[0].charge == pytest.approx(rows[0].threshold)
    assert delay == math.ceil(sum(y.threshold / y.activation for y in rows))
    z, expected = net(images), ann(images)
    plain, quarter, delayed = ((Readout(d)(z)[-1] - expected).abs().mean() for d in (0, delay // 4, delay))
    assert quarter < delayed < 0.7 * plain
    assert suggested_delay(net, 16) == 12  # four steps are left
    ann, half, _ = deep(0.5)
    assert half.report.layers[0].charge == pytest.approx(half.report.layers[0].threshold / 2)
    z = half(images)
    assert (z.mean(0) - expected).abs().mean() < (Readout(suggested_delay(half))(z)[-1] - expected).abs().mean()


def test_mistakes() -> None:
    _, net, _ = deep()
    with pytest.raises(ValueError, match="whole number of steps >= 0"):
        Readout(-1)
    with pytest.raises(ValueError, match="of more steps"):
        Readout(4)(torch.zeros(4, 1, 2))
    with pytest.raises(ValueError, match="averages 4 steps or more"):
        suggested_delay(net, 3)
    _, cos, _ = deep(0.5, offset="cos")
    with pytest.raises(ValueError, match="looks ahead"):
        suggested_delay(cos)
