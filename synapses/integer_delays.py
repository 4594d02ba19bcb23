"""Whole-number delays, synapse by synapse: the cost follows synapses and spikes, not the length of a kernel.

Two forms with equal results, whose sums the kernels of kernels/delays form:

    gather    ring[n mod K] = x[n];   y[b, o] = bias[o] + sum_(i, c) w[o, i, c] ring[(n - d[o, i, c]) mod K, b, i]
    scatter   for every x[b, i] that is not 0, all o and c:  pending[(n + d[o, i, c]) mod K, b, o] += w[o, i, c] x[b, i]
              y = bias + pending[n mod K];   pending[n mod K] = 0

A synaptic operation is one element that delivers an input other than 0; a scatter books it when it is sent, so one that
arrives after the end must be left out (`until`). Numbers are float32 or float64; there is no gradient.

Paper: Hammouamri, Khalfaoui-Hassani, Masquelier 2024, arXiv:2306.17670 (rounding the positions after training).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from spikeloom.kernels.delays import Tables, delayed_sum
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

    Their tables are made once: tensors are not to be written to afterwards.

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
        outputs = len(self.weight)
        if self.groups < 1 or outputs % self.groups or (self.bias is not None and self.bias.shape != (outputs,)):
            bias = "none" if self.bias is None else str(list(self.bias.shape))
            raise ValueError(
                f"IntegerDelays: {outputs} outputs, groups={self.groups}, bias {bias}; expected outputs to be a "
                f"multiple of groups, and a bias of [{outputs}] or none."
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
        """Run `[T, B, I]` -> `[T, B, O]`, each output looking its inputs up; `state` is carried on.

        Raises:
            ValueError: a state of other sizes; see `kernels.delays.delayed_sum` for the rest.
        """
        self._check(x, state, self.weight.shape[1] * self.groups, "gather")
        before, T = self._in_order(state)[1:], len(x)
        lines = torch.cat([before, x])
        form = "outputs" if x.device.type == "cpu" else "auto"
        y = delayed_sum(lines, None, *self._elements, size=self.size, groups=self.groups, skip=len(before), form=form)[
            0
        ]
        sent = torch.arange(-len(before), T, device=x.device)
        state.events += self._delivered(lines, -sent, T - sent)
        state.tick += T
        self._put(state, lines[-self.size :], state.tick - min(self.size, len(lines)))
        return y

    def scatter(self, x: Tensor, state: Ticks, until: int | None = None) -> Tensor:
        """Run `[T, B, I]` -> `[T, B, O]`, each input other than 0 sending itself on; `state` is carried on.

        until: ticks at which the layer's output ends: operations that arrive then or later are not counted.

        Raises:
            ValueError: a state of other sizes; see `kernels.delays.delayed_sum` for the rest.
        """
        self._check(x, state, self.weight.shape[0], "scatter")
        pending, T = self._in_order(state)[:-1], len(x)
        y, kept = delayed_sum(x, pending, *self._elements, size=self.size, groups=self.groups, keep=True)
        sent = state.tick + torch.arange(T, device=x.device)
        ends = torch.full_like(sent, self.size) if until is None else until - sent
        state.events += self._delivered(x, torch.zeros_like(sent), ends)
        state.tick += T
        state.slots[(state.tick - 1) % self.size] = 0
        self._put(state, kept, state.tick)
        return y

    @cached_property
    def tables(self) -> Tables:
        """The elements as the kernels read them."""
        return Tables.of(self.weight, self.delay, self.size, self.groups)

    @property
    def _elements(self) -> tuple[Tensor, Tensor, Tensor | None, Tables]:
        return self.weight, self.delay, self.bias, self.tables

    @cached_property
    def _shorter(self) -> Tensor:
        """How many elements of an input have a delay below m, int64 `[I, K + 1]`, m = 0 ... K."""
        outputs, inputs, count = self.weight.shape
        delays = self.delay.view(self.groups, outputs // self.groups, inputs, count).permute(0, 2, 1, 3).flatten(2)
        having = torch.stack([(delays == d).sum(2) for d in range(self.size)], -1).flatten(0, 1)
        return torch.cat([having.new_zeros(len(having), 1), having.cumsum(1)], 1)

    def _delivered(self, x: Tensor, first: Tensor, end: Tensor) -> int:
        """Operations of inputs `[S, B, I]` on elements with first <= delay < end, `[S]` each."""
        least, most = (self._shorter[:, m.clamp(0, self.size)].t() for m in (first, end))  # [S, I]
        return int(((x != 0).sum(1) * (most - least)).sum())

    def _check(self, x: Tensor, state: Ticks, width: int, form: str) -> None:
        wanted = [self.size, x.shape[1] if x.ndim == 3 else "B", width]
        if x.ndim != 3 or list(state.slots.shape) != wanted:
            raise ValueError(
                f"IntegerDelays: {form} got x {list(x.shape)} and a state {list(state.slots.shape)}; expected "
                f"[T, B, {self.weight.shape[1] * self.groups}] and [K, B, N] = {wanted}. Begin with "
                f"begin(B, {form!r}) of these delays, and anew for another batch."
            )

    def _in_order(self, state: Ticks) -> Tensor:
        """The slots `[K, B, N]` from that of the next tick on; in a ring of inputs it holds the oldest."""
        return state.slots.roll(-(state.tick % self.size), 0)

    def _put(self, state: Ticks, values: Tensor, tick: int) -> None:
        """Values `[R, B, N]` into the slots of `tick` and those after it."""
        slots = (tick + torch.arange(len(values), device=values.device)) % self.size
        state.slots.index_copy_(0, slots, values)
