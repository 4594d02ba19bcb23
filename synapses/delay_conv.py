"""Synapses with learned delays: a DCLS kernel along time that looks back only, and can be run chunk by chunk.

    y[t, o] = bias[o] + sum_(i, k) Kern[o, i, k] x[t - (K - 1) + k, i],   x = 0 before the first step

Tap k delays by K - 1 - k steps, so an element at position P has the delay d = (K - 1) - (P + K // 2), for odd K
K // 2 - P, between 0 and K - 1. After the last input the published networks run each layer on for R = (K - 1) // 2
steps of zeros (`tail="official"`): spikes with longer delays near the end are lost, and the sequence grows.

Paper: Hammouamri, Khalfaoui-Hassani, Masquelier 2024, "Learning Delays in Spiking Neural Networks using Dilated
Convolutions with Learnable Spacings", arXiv:2306.17670, section 3.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeloom.synapses.dcls import Dcls1d, check_steps
from spikeloom.synapses.time_conv import Method

Tail = Literal["official", "none", "lossless"]
Ring = tuple[Tensor, Tensor]
"""The last K inputs `[K, B, ...]`, that of tick n in slot n mod K, and the number of ticks so far, int64 `[]`."""


class DelayConv1d(Dcls1d):
    """Synapses with delays, `[T, B, I]` -> `[T + tail, B, O]`: every pair (o, i) has `kernel_count` weights and delays.

    Args:
        in_channels, out_channels, kernel_count: I, O, elements per pair.
        max_delay: K, the taps; delays are 0 ... K - 1 steps. Odd: with even K an element at P = +K / 2 is lost.
        tail: steps of zeros behind the last input: `official` (K - 1) // 2, `none` 0, `lossless` K - 1, after which
            everything has arrived.
        groups, bias, version, learn_sigma, method: as in `Dcls1d`.
    """

    streams = True
    """Takes `state` and `return_state` in `forward`, so that `Stream` can carry the inputs that are on the way."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int = 1,
        max_delay: int = 25,
        *,
        tail: Tail = "official",
        groups: int = 1,
        bias: bool = False,
        version: str = "gauss",
        learn_sigma: bool = True,
        method: Method = "auto",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_count,
            dilated_kernel_size=max_delay,
            groups=groups,
            bias=bias,
            version=version,
            learn_sigma=learn_sigma,
            method=method,
        )
        check_tail("DelayConv1d", tail)
        self.tail: Tail = tail

    @property
    def tail_steps(self) -> int:
        """Steps that a sequence grows by."""
        return steps_of(self.tail, self.size[0])

    def forward(
        self, x: Tensor, *, state: Ring | None = None, return_state: bool = False, tail: bool | None = None
    ) -> Any:
        """Run all time steps.

        Args:
            x: `[T, B, I]`.
            state: inputs before the first step; None: zeros.
            return_state: also return those that the next chunk needs.
            tail: run on for `tail_steps` after the last input; None: unless `state` or `return_state` make this a chunk
                of a longer input. The last chunk is called with True.

        Returns:
            `[T, B, O]`, with a tail `[T + tail_steps, B, O]`; with `return_state` a pair of it and the state.

        Raises:
            ValueError: x of another shape or without a step, or a state of another layer or batch.
        """
        check_steps(x, self)
        check_ring(type(self).__name__, state, (self.size[0], *x.shape[1:]))
        if not len(x):
            raise ValueError(f"{type(self).__name__} got {list(x.shape)}, no time step; expected T of 1 or more.")
        ends = tail if tail is not None else state is None and not return_state
        behind = self.tail_steps if ends else 0
        if state is None:
            y = self.convolve(x, self.size[0] - 1, behind)
        else:
            y = self.convolve(torch.cat([in_order(state)[1:].to(x.dtype), x]), 0, behind)
        if not return_state:
            return y
        return y, advanced(F.pad(x, (0, 0, 0, 0, 0, behind)) if behind else x, state, self.size[0])

    def delays(self) -> Tensor:
        """The delay of every element as it would be after rounding, int64 `[O, I / groups, c]`, in steps.

        An element of an even kernel that lies outside of it has the delay -1.
        """
        half = self.size[0] // 2
        whole = self.P.detach()[0].round().clamp(-half, half).long()
        return (self.size[0] - 1 - half) - whole

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, tail={self.tail!r}"


def check_tail(layer: str, tail: str) -> None:
    """Raise unless it is one of `Tail`."""
    if tail not in get_args(Tail):
        raise ValueError(f"{layer}: tail is {tail!r}; expected one of {', '.join(get_args(Tail))}.")


def check_ring(layer: str, state: Any, wanted: tuple[int, ...]) -> None:
    """Raise unless a state is None or a `Ring` whose inputs have the shape `wanted`, `[K, B, ...]`."""
    if state is None:
        return
    pair = isinstance(state, tuple) and len(state) == 2 and all(isinstance(part, Tensor) for part in state)
    if not pair or tuple(state[0].shape) != wanted:
        found = f"a pair with inputs {list(state[0].shape)}" if pair else f"a {type(state).__name__}"
        raise ValueError(
            f"{layer} got as state {found}; expected the pair that this layer returned, with inputs [K, B, ...] = "
            f"{list(wanted)}. A state belongs to one layer and one batch: start anew with state=None (or "
            "stream.reset())."
        )


def steps_of(tail: Tail, K: int) -> int:
    """Steps of zeros that a tail is, of a kernel of K taps."""
    return {"official": (K - 1) // 2, "none": 0, "lossless": K - 1}[tail]


def advanced(x: Tensor, state: Ring | None, K: int) -> Ring:
    """The state after the steps of x `[T, B, ...]`."""
    if state is None:
        state = x.new_zeros(K, *x.shape[1:]), torch.zeros((), dtype=torch.long, device=x.device)
    ring, tick = state
    tick = tick + x.shape[0]
    latest = torch.cat([in_order(state), x.to(ring.dtype)])[-K:]
    slots = (tick + torch.arange(K, device=x.device)) % K  # the oldest lies where the next tick will
    return torch.zeros_like(ring).index_copy(0, slots, latest), tick


def in_order(state: Ring) -> Tensor:
    """The inputs of a ring `[K, B, ...]`, the oldest first."""
    ring, tick = state
    K = ring.shape[0]
    return ring.index_select(0, (tick + torch.arange(K, device=ring.device)) % K)
