"""Whole-number delays, synapse by synapse: the cost follows synapses and spikes, not the length of a kernel.

Plain PyTorch, tick by tick, in two forms with equal results:

    gather    ring[n mod K] = x[n];   y[b, o] = bias[o] + sum_(i, c) w[o, i, c] ring[(n - d[o, i, c]) mod K, b, i]
    scatter   for every x[b, i] that is not 0, all o and c:  pending[(n + d[o, i, c]) mod K, b, o] += w[o, i, c] x[b, i]
              y = bias + pending[n mod K];   pending[n mod K] = 0

A synaptic operation is one element that delivers an input other than 0; a scatter books it when it is sent, so one that
arrives after the end must be left out (`until`).

Paper: Hammouamri, Khalfaoui-Hassani, Masquelier 2024, arXiv:2306.17670 (rounding the positions after training).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spikeloom.synapses.dcls_kernel import EPSILON
from spikeloom.synapses.delay_conv import DelayConv1d


@dataclass
class Ticks:
    """What is on the way: inputs of the last K ticks `[K, B, I]` (gather) or sums to come `[K, B, O]` (scatter).

    tick: ticks so far. events: synaptic operations so far, over the batch.
    """

    slots: Tensor
    tick: int = 0
    events: int = 0


@dataclass(frozen=True)
class IntegerDelays:
    """Elements with whole-number delays; `of(layer)` takes them from a layer with rounded positions.

    weight: `[O, I / groups, c]`. delay: int64 of the same shape, 0 ... K - 1 steps. size: K. bias: `[O]`.
    """

    weight: Tensor
    delay: Tensor
    size: int
    groups: int = 1
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        if self.delay.is_floating_point() or self.delay.shape != self.weight.shape:
            raise ValueError(
                f"IntegerDelays: delays are {self.delay.dtype} {list(self.delay.shape)}; expected whole numbers of the "
                f"shape of the weights, {list(self.weight.shape)}. Round positions with layer.round_positions_()."
            )
        if self.delay.numel() and not 0 <= int(self.delay.min()) <= int(self.delay.max()) < self.size:
            raise ValueError(
                f"IntegerDelays: delays from {int(self.delay.min())} to {int(self.delay.max())}; expected 0 to "
                f"{self.size - 1}, which {self.size} slots hold."
            )

    @classmethod
    def of(cls, layer: DelayConv1d) -> IntegerDelays:
        """The elements of a layer, with the weights that its kernel has (1 / (1 + 1e-7) of them in v1 and max).

        Raises:
            ValueError: positions that are no whole numbers or outside the kernel, or a profile wider than one tap.
        """
        P, half = layer.P.detach()[0], layer.size[0] // 2
        if bool((P.round() != P).any()) or bool((P.abs() > half).any()):
            raise ValueError(
                f"IntegerDelays: the layer's positions are no whole numbers within +-{half}; "
                "call layer.round_positions_() first."
            )
        if layer.SIG is not None and (layer.version != "max" or bool(layer.SIG.any())):
            raise ValueError(
                f"IntegerDelays: the layer is of version {layer.version!r} with widths, which spreads an element over "
                "several taps; layer.round_positions_() makes it max with SIG = 0."
            )
        delay = layer.delays()
        weight = layer.weight.detach()
        if layer.version != "v0":
            one = torch.ones((), dtype=weight.dtype, device=weight.device)
            weight = weight * (one / (one + EPSILON))
        outside = delay < 0  # of an even kernel: lost
        bias = None if layer.bias is None else layer.bias.detach()
        return cls(weight.masked_fill(outside, 0), delay.clamp(min=0), layer.size[0], layer.groups, bias)

    def begin(self, B: int, form: str) -> Ticks:
        """Nothing on the way; `form` is "gather" or "scatter".

        Raises:
            ValueError: another form.
        """
        if form not in ("gather", "scatter"):
            raise ValueError(f"IntegerDelays: form is {form!r}; expected 'gather' or 'scatter'.")
        outputs, inputs, _ = self.weight.shape
        width = inputs * self.groups if form == "gather" else outputs
        return Ticks(self.weight.new_zeros(self.size, B, width))

    def gather(self, x: Tensor, state: Ticks) -> Tensor:
        """Run `[T, B, I]` -> `[T, B, O]`, each output looking its inputs up; `state` is carried on."""
        channel = self._channels()[:, :, None]
        out = []
        for now in x:
            state.slots[state.tick % self.size] = now
            seen = state.slots[(state.tick - self.delay) % self.size, :, channel]  # [O, I / groups, c, B]
            state.events += int((seen != 0).sum())
            out.append(self._biased((seen * self.weight[..., None]).sum((1, 2)).t()))
            state.tick += 1
        return torch.stack(out)

    def scatter(self, x: Tensor, state: Ticks, until: int | None = None) -> Tensor:
        """Run `[T, B, I]` -> `[T, B, O]`, each input other than 0 sending itself on; `state` is carried on.

        until: ticks at which the layer's output ends: operations that arrive then or later are not counted.
        """
        outputs, inputs, count = self.weight.shape
        per_group = outputs // self.groups

        def by_input(value: Tensor) -> Tensor:  # [O, I / groups, c] -> [I, O / groups, c]
            parts = value.expand(outputs, inputs, count).unflatten(0, (self.groups, per_group))
            return parts.transpose(1, 2).reshape(-1, per_group, count)

        weight, delay = by_input(self.weight), by_input(self.delay)
        target = by_input(torch.arange(outputs, device=x.device)[:, None, None])
        out = []
        for now in x:
            b, i = now.nonzero(as_tuple=True)
            arrival = state.tick + delay[i]  # [events, O / groups, c]
            state.events += arrival.numel() if until is None else int((arrival < until).sum())
            places = (arrival % self.size, b[:, None, None].expand_as(arrival), target[i])
            state.slots.index_put_(places, weight[i] * now[b, i][:, None, None], accumulate=True)
            out.append(self._biased(state.slots[state.tick % self.size].clone()))
            state.slots[state.tick % self.size] = 0
            state.tick += 1
        return torch.stack(out)

    def _channels(self) -> Tensor:
        """The input channel of (o, i), `[O, I / groups]`."""
        outputs, inputs, _ = self.weight.shape
        group = torch.arange(outputs, device=self.weight.device) // (outputs // self.groups)
        return group[:, None] * inputs + torch.arange(inputs, device=self.weight.device)

    def _biased(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + self.bias
