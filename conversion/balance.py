"""Thresholds for a network of 0/1 spikes from its own currents, layer by layer: DIET-SNN's conversion of an ANN.

    V[l] = max over steps of the 99.7 % percentile of layer l's input current, with the thresholds V[1..l-1] in place

without leak, over many steps; then all of them times a factor below 1 if few steps shall do. The currents must be those
of the spiking network: spikes are 1, not their threshold, so the currents of the ANN are of another size in every layer
but the first, and thresholds taken from them silence a deep network.

The percentile of n currents is the k-th smallest, k = 1 + round(0.997 (n - 1)), of each step, over samples, channels
and places.

Paper: Rathi, Srinivasan, Panda, Roy, "Enabling Deep Spiking Neural Networks with Hybrid Conversion and Spike Timing
Dependent Backpropagation", ICLR 2020, arXiv:2005.01807; Rathi and Roy 2021, arXiv:2008.03658.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from spikeloom.conversion.diet_vgg import DietVGG, ReluVGG
from spikeloom.neurons.diet import DIET

PERCENTILE = 0.997
CHUNK = 8
"""Time steps whose currents are held at once."""


def diet_from_ann(ann: ReluVGG, images: Tensor, *, T: int | None = 5, steps: int = 40, scale: float = 0.4) -> DietVGG:
    """Convert a bias-free ReLU network: its weights, and thresholds from images.

    Args:
        ann: the trained network.
        images: `[B, C, H, W]` of the training set, a few hundred.
        T: steps to show an image for. steps, scale: as in `balance_`.

    Raises:
        ValueError: the ANN has a bias, or as `balance_`.
    """
    if biased := [name for name, _ in ann.named_parameters() if name.endswith("bias")]:
        raise ValueError(f"the ANN has biases ({', '.join(biased)}); DIET neurons take bias-free synapses alone")
    config = ann.config
    snn = DietVGG(type(config)(**{**vars(config), "T": T}))
    weight = ann.head.weight
    assert isinstance(weight, Tensor)
    snn.to(weight.device, weight.dtype).load_state_dict(ann.state_dict(), strict=False)
    balance_(snn, images, steps=steps, scale=scale)
    return snn.eval()


@torch.no_grad()
def balance_(net: DietVGG, images: Tensor, *, steps: int = 40, scale: float = 1.0) -> list[float]:
    """Set every leak to 1 and every threshold by the rule above; returns the thresholds, scaled.

    Spikes of one layer are kept at a time, a byte each.

    Args:
        images: `[B, C, H, W]`. steps: how many they are shown for. scale: factor on all thresholds at the end: 1 for
            tens of steps, 0.2 to 0.6 for a few.

    Raises:
        ValueError: steps, scale or images are out of range; no current of a layer is positive, so it cannot fire.
    """
    if steps < 1 or not scale > 0:
        raise ValueError(f"got steps={steps!r} and scale={scale!r}; expected steps >= 1 and scale > 0")
    training = net.training
    net.eval()
    found = []
    x = _checked(net, images).unsqueeze(0)
    after: nn.Module = nn.Identity()
    for index, block in enumerate(net.blocks()):
        neuron = block.fire
        assert isinstance(neuron, DIET)
        front = nn.Sequential(after, net.flatten if index == len(net.convs) else nn.Identity(), block.synapse)
        neuron.leak.fill_(1.0)
        threshold = max(percentile(step) for current in _currents(front, x) for step in current)
        if not threshold > 0:
            raise ValueError(
                f"layer {index} gets no positive current ({PERCENTILE:.1%} of its currents are <= {threshold:.3g}): it "
                "cannot fire. Train the ANN, or give images of its training set."
            )
        neuron.v_threshold.fill_(threshold)
        x = _spikes(neuron, front, x, steps)
        after = block.after
        found.append(threshold)
    for neuron, threshold in zip(net.neurons(), found, strict=True):
        neuron.v_threshold.fill_(threshold * scale)
    net.train(training)
    return [threshold * scale for threshold in found]


def percentile(values: Tensor) -> float:
    """The k-th smallest of n values, k = 1 + round(0.997 (n - 1))."""
    flat = values.flatten()
    return float(flat.kthvalue(1 + round(PERCENTILE * (len(flat) - 1))).values)


def _checked(net: DietVGG, images: Tensor) -> Tensor:
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images are of shape {list(images.shape)}; expected [B, C, H, W] with at least one image")
    expected = (net.config.in_channels, *net.config.input_size)
    if tuple(images.shape[1:]) != expected:
        raise ValueError(f"images are {list(images.shape[1:])}; the network was built for {list(expected)}")
    like = net.head.weight
    assert isinstance(like, Tensor)
    return images.to(like.device, like.dtype)


def _currents(front: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """Currents of chunks of steps; x is the image `[1, B, ...]`, or the spikes of the layer in front `[T, B, ...]`."""
    like = next(front.parameters())
    for chunk in x.split(CHUNK):
        yield front(chunk.to(like.dtype))


def _spikes(neuron: DIET, front: nn.Module, x: Tensor, steps: int) -> Tensor:
    """Spikes of all steps, bool `[T, B, ...]`."""
    if len(x) == 1 and steps > 1:  # the image: its current is the same at every step
        once = next(_currents(front, x))
        parts: Iterator[Tensor] = (once.expand(len(part), *once.shape[1:]) for part in torch.arange(steps).split(CHUNK))
    else:
        parts = _currents(front, x)
    state, spikes = None, []
    for current in parts:
        fired, state = neuron(current, state=state, return_state=True)
        spikes.append(fired != 0)
    return torch.cat(spikes)
