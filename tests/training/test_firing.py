"""Firing rates of layers."""

from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.models import create_model
from spikeloom.neurons import IF, LI, LIF, Recurrent
from spikeloom.training import count_spikes
from spikeloom.training.firing import spiking_layers


def test_rates_are_spikes_per_neuron_and_step() -> None:
    net = nn.Sequential(IF(v_threshold=1.0), LI())
    x = torch.zeros(4, 2, 3)
    x[:, 0, 0] = 1.0  # fires at each of 4 steps
    x[1, 1, 2] = 1.0  # fires once
    with count_spikes(net) as layers:
        net(x)
        net(torch.zeros(4, 2, 3))
    net(x)  # after the block nothing is counted
    assert list(layers) == ["0"]
    assert layers["0"].rate == 5 / 48
    assert layers["0"].neurons == 3


def test_every_layer_of_a_model_is_counted() -> None:
    model = create_model("conv_snn_tiny").eval()
    with count_spikes(model) as layers:
        model((torch.rand(2, 3, 2, 34, 34) < 0.3).float())
    assert [layer.neurons for layer in layers.values()] == [8 * 17 * 17, 16 * 9 * 9]
    assert all(0 <= layer.rate <= 1 for layer in layers.values())


def test_steps_of_a_recurrent_layer_add_up() -> None:
    layer = Recurrent(LIF(v_threshold=0.1), nn.Linear(3, 3, bias=False))
    with count_spikes(layer) as layers:
        spikes: Tensor = layer(torch.ones(5, 2, 3))
    assert list(layers) == ["neuron"]
    assert layers["neuron"].rate == spikes.sum().item() / spikes.numel()


def test_a_layer_that_never_ran_has_rate_zero() -> None:
    with count_spikes(LIF()) as layers:
        pass
    assert layers[""].rate == 0.0


def test_a_neuron_of_ones_own_is_found() -> None:
    class Mine(LIF):
        def forward(self, *inputs: Tensor, **options: Any) -> Any:
            return super().forward(*inputs, **options)

    assert list(spiking_layers(nn.ModuleDict({"a": Mine(), "b": nn.ReLU()}))) == ["a"]
