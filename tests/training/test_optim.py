"""Decay groups, the learning rate, the averaged weights."""

import math

import pytest
import torch
from torch import nn

from spikeloom.neurons import LIF, PLIF
from spikeloom.synapses import BatchNorm2d, Conv2d, Linear
from spikeloom.training import Optim
from spikeloom.training.ema import Ema
from spikeloom.training.optim import learning_rate, make_optimizer, parameter_groups


def test_only_weights_of_synapses_decay() -> None:
    net = nn.Sequential(
        Conv2d(2, 4, 3), BatchNorm2d(4), PLIF(), LIF(tau=nn.Parameter(torch.full((4, 1, 1), 2.0))), Linear(4, 3)
    )
    net[0].bias.requires_grad_(False)
    decayed, others = parameter_groups(net, 0.1)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert {names[id(p)] for p in decayed["params"]} == {"0.weight", "4.weight"}
    assert others["weight_decay"] == 0.0
    assert {names[id(p)] for p in others["params"]} == {"1.weight", "1.bias", "2.w", "3.tau", "4.bias"}


def test_the_optimizer_takes_the_recipes_settings() -> None:
    optimizer = make_optimizer(Linear(2, 2), Optim(lr=0.1, betas=(0.8, 0.9), weight_decay=0.3))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]
    assert [group["betas"] for group in optimizer.param_groups] == [(0.8, 0.9)] * 2
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_learning_rate_rises_in_a_line_and_falls_as_a_cosine() -> None:
    config = Optim(lr=1.0, warmup_epochs=0.5, final_lr=0.2)
    rates = [learning_rate(step, 20, 8, config) for step in range(20)]  # 4 steps of warm-up, 16 of decay
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4] == pytest.approx(1.0)
    assert rates[12] == pytest.approx(0.6)
    assert rates[8] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[19] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * 15 / 16)) / 2)


def test_cooldown_keeps_the_lowest_rate() -> None:
    config = Optim(lr=1.0, warmup_epochs=1, warmup_lr=0.1, min_lr=0.01, cooldown_epochs=2)
    rates = [learning_rate(step, 24, 4, config) for step in range(24)]  # 4 steps up, 12 down, 8 of cooldown
    assert rates[:4] == pytest.approx([0.325, 0.55, 0.775, 1.0])
    assert rates[10] == pytest.approx(0.505)
    assert rates[16:] == pytest.approx([0.01] * 8)
    assert rates[15] > 0.01


def test_a_rate_by_epoch_is_that_of_timm() -> None:
    config = Optim(lr=1.0, warmup_epochs=2, warmup_lr=0.1, min_lr=0.01, cooldown_epochs=2, schedule="epoch")
    rates = [learning_rate(step, 30, 3, config) for step in range(30)]  # ten epochs of three steps
    cosine = [0.01 + 0.99 * (1 + math.cos(math.pi * epoch / 8)) / 2 for epoch in range(2, 8)]
    expected = [0.1, 0.55, *cosine, 0.01, 0.01]
    assert rates == pytest.approx([rate for rate in expected for _ in range(3)])


@pytest.mark.parametrize("warmup", [0.0, 100.0])
def test_learning_rate_without_or_with_nothing_but_warm_up(warmup: float) -> None:
    rates = [learning_rate(step, 10, 5, Optim(lr=1.0, warmup_epochs=warmup)) for step in range(10)]
    assert rates == sorted(rates, reverse=warmup == 0.0)
    assert max(rates) == 1.0


def test_ema_is_the_running_average() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = Ema(model, 0.2)
    expected = model[0].weight.detach().clone()
    for update in range(5):
        with torch.no_grad():
            model[0].weight.add_(1.0)
        model(torch.randn(4, 2))  # moves the buffers of the normalisation
        ema.update()
        decay = min(0.2, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(ema.weights["0.weight"], expected)
    assert ema.weights["1.num_batches_tracked"].item() == 5
    assert not torch.equal(ema.weights["1.running_mean"], torch.zeros(2))
