"""Synapses with delays: what arrives when, tails, streams in any chunks, whole-number delays, energy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom import Stream
from spikeloom.energy import count
from spikeloom.synapses import DelayConv1d, IntegerDelays

K = 7


def layer(**options: Any) -> DelayConv1d:
    torch.manual_seed(0)
    made = DelayConv1d(4, 6, **{"kernel_count": 2, "max_delay": K, **options}).double()
    with torch.no_grad():
        made.P.uniform_(-K // 2, K // 2)
    made.clamp_positions_()
    return made


def spikes(T: int = 13, B: int = 3) -> Tensor:
    return (torch.rand(T, B, 4, generator=torch.Generator().manual_seed(1)) < 0.3).double()


def test_a_spike_arrives_after_its_delay() -> None:
    """P = +3 is no delay, P = -3 the longest; v0 has the weights themselves."""
    made = DelayConv1d(1, 1, 3, K, version="v0", tail="lossless").double()
    with torch.no_grad():
        made.P.copy_(torch.tensor([3.0, 0.0, -3.0]).view(1, 1, 1, 3))
        made.weight.copy_(torch.tensor([1.0, 2.0, 4.0]))
    assert made.delays().flatten().tolist() == [0, 3, 6]
    x = torch.zeros(4, 1, 1, dtype=torch.float64)
    x[1] = 1
    assert made(x).flatten().tolist() == [0, 1, 0, 0, 2, 0, 0, 4, 0, 0]


@pytest.mark.parametrize(("tail", "steps"), [("official", 3), ("none", 0), ("lossless", 6)])
def test_tails(tail: Any, steps: int) -> None:
    x = spikes()
    y = layer(tail=tail)(x)
    assert y.shape == (13 + steps, 3, 6)
    torch.testing.assert_close(y[:13], layer(tail="none")(x))
    torch.testing.assert_close(y, layer(tail="lossless")(x)[: 13 + steps])


@pytest.mark.parametrize("version", ["v0", "v1", "max", "gauss"])
@pytest.mark.parametrize("sizes", [[13], [1] * 13, [2, 9, 2], [8, 5]], ids=str)
def test_a_stream_of_chunks_is_one_call(version: str, sizes: list[int]) -> None:
    """Also with chunks longer and shorter than the kernel; the last one with the tail."""
    made, x = layer(version=version, groups=2, bias=True), spikes()
    stream = Stream(made)
    chunks = x.split(sizes)
    parts = [*(stream(chunk) for chunk in chunks[:-1]), stream(chunks[-1], tail=True)]
    torch.testing.assert_close(torch.cat(parts), made(x), rtol=1e-12, atol=1e-13)


def test_streams_of_one_layer_do_not_disturb_each_other() -> None:
    made, x = layer(tail="none"), spikes()
    one, other = Stream(made), Stream(made)
    first = one(x[:5])
    other(1 - x[:5])
    torch.testing.assert_close(torch.cat([first, one(x[5:])]), made(x), rtol=1e-12, atol=1e-13)
    copy = Stream(made).load_state_dict(one.state_dict())
    torch.testing.assert_close(copy(x), one(x))


def test_gradients_flow_through_chunks() -> None:
    made, x = layer(tail="none"), spikes()
    made(x).square().sum().backward()
    assert made.P.grad is not None
    whole = made.P.grad.clone()
    made.zero_grad()
    stream = Stream(made, detach=False)
    torch.cat([stream(chunk) for chunk in x.split(4)]).square().sum().backward()
    torch.testing.assert_close(made.P.grad, whole)


@pytest.mark.parametrize("version", ["v0", "v1", "max", "gauss"])
@pytest.mark.parametrize("form", ["gather", "scatter"])
def test_whole_delays_synapse_by_synapse(version: str, form: str) -> None:
    made, x = layer(version=version, groups=2, bias=True, tail="none"), spikes()
    made.round_positions_()
    synapses = IntegerDelays.of(made)
    state = synapses.begin(3, form)
    run = synapses.gather if form == "gather" else synapses.scatter
    with torch.no_grad():
        torch.testing.assert_close(torch.cat([run(x[:4], state), run(x[4:], state)]), made(x), rtol=1e-12, atol=1e-13)


def test_operations_are_those_that_arrive_in_time() -> None:
    made, x = layer(tail="none", bias=True), spikes()
    made.round_positions_()
    synapses = IntegerDelays.of(made)
    gather, late, scatter = synapses.begin(3, "gather"), synapses.begin(3, "scatter"), synapses.begin(3, "scatter")
    synapses.gather(x, gather)
    synapses.scatter(x, scatter, until=len(x))
    synapses.scatter(x, late)
    assert gather.events == scatter.events < late.events == int(x.sum()) * 6 * 2
    with torch.no_grad(), count(made, strict=True) as run:
        made(x)
    (counted,) = run.counts().layers
    assert int(counted.sop.sum()) == gather.events
    assert counted.bias_adds == 6
    assert counted.geometry.weights == 6 * 4 * 2


@pytest.mark.parametrize("groups", [1, 2])
def test_energy_of_spread_kernels_counts_elements(groups: int) -> None:
    """As if rounded: one operation per element and spike, however wide its profile."""
    made, x = layer(groups=groups, tail="none"), spikes()
    with torch.no_grad(), count(made, strict=True) as run:
        made(x)
    made.round_positions_()
    synapses = IntegerDelays.of(made)
    state = synapses.begin(3, "gather")
    synapses.gather(x, state)
    (counted,) = run.counts().layers
    assert int(counted.sop.sum()) == state.events
    assert counted.dense_nominal == 4 // groups * 6 * 2 * K


def test_a_growing_sequence_is_refused_by_the_count() -> None:
    net = torch.nn.Sequential(layer(), DelayConv1d(6, 2, max_delay=K).double())
    with pytest.raises(ValueError, match="tail=False"), torch.no_grad(), count(net, strict=True):
        net(spikes())


def test_an_even_kernel_loses_what_lies_outside() -> None:
    made = layer(max_delay=6, version="max", tail="none")
    with torch.no_grad():
        made.P.fill_(3.0)
    made.round_positions_()
    assert bool((made.delays() == -1).all())
    assert not made(spikes()).any()
    synapses = IntegerDelays.of(made)
    assert not synapses.gather(spikes(), synapses.begin(3, "gather")).any()


def test_bad_input_is_explained() -> None:
    made = layer()
    with pytest.raises(ValueError, match=r"no whole numbers within \+-3; call layer.round_positions_"):
        IntegerDelays.of(made)
    with torch.no_grad():
        made.P.round_()
    with pytest.raises(ValueError, match="spreads an element over several taps"):
        IntegerDelays.of(made)
    with pytest.raises(ValueError, match="expected whole numbers of the shape of the weights"):
        IntegerDelays(torch.zeros(2, 2, 1), torch.zeros(2, 2, 1), 3)
    with pytest.raises(ValueError, match="expected 0 to 2"):
        IntegerDelays(torch.zeros(2, 2, 1), torch.full((2, 2, 1), 3), 3)
    with pytest.raises(ValueError, match="'gather' or 'scatter'"):
        IntegerDelays(torch.zeros(2, 2, 1), torch.zeros(2, 2, 1, dtype=torch.long), 3).begin(1, "push")
    with pytest.raises(ValueError, match=r"4 outputs, groups=3, bias \[1\]; expected outputs to be a multiple"):
        IntegerDelays(torch.zeros(4, 2, 1), torch.zeros(4, 2, 1, dtype=torch.long), 3, 3, torch.zeros(1))
    with pytest.raises(ValueError, match="official, none, lossless"):
        DelayConv1d(1, 1, tail="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected \[T, B, 4\]"):
        made(torch.zeros(5, 2, 3))


def test_a_state_of_another_layer_or_batch_is_refused() -> None:
    made = layer()
    with torch.no_grad():
        _, state = made(spikes(), return_state=True)
    others = (DelayConv1d(4, 6, 2, 5).double(), DelayConv1d(4, 6, 2, 9).double())  # 7 slots are too many, or too few
    for other in others:
        with pytest.raises(ValueError, match=rf"inputs \[7, 3, 4\]; expected .* \[{other.size[0]}, 3, 4\].*state=None"):
            other(spikes(), state=state)
    with pytest.raises(ValueError, match=r"expected .* \[7, 2, 4\]"):
        made(spikes()[:, :2], state=state)
    with pytest.raises(ValueError, match="got as state a Tensor; expected the pair that this layer returned"):
        made(spikes(), state=state[0])
    with pytest.raises(ValueError, match="no time step; expected T of 1 or more"):
        made(spikes()[:0], return_state=True)
