"""Selective scan, the recurrence of Mamba's state-space model, and the causal depthwise convolution in front of it.

    dt[t] = softplus(delta[t] + delta_bias);  h[t] = exp(dt[t] A) h[t-1] + dt[t] u[t] B[t];  y[t] = C[t] h[t] + D u[t]

times SiLU(z[t]); per channel of u, with n states. Paper: Gu and Dao 2023, "Mamba", arXiv:2312.00752. A is discretised
by its exponential and B by Euler's rule, as the published code has it.

Arithmetic and states are float32, those of float64 inputs float64 (on a GPU by the plain recurrence). Tokens may be
read from the last to the first, so that both directions of a model are one call. A NaN goes on into all tokens behind
it and into every gradient, as in the recurrence itself: `delta.isnan().any()` tells, at the price of a read and, on a
GPU, of a wait.

Bytes of one forward and backward on a GPU, of tensors [b, d, L]: u, delta, z and y, then u, delta, z and three more
gradients with the one that arrives: 4 + 7 times b d L elements. Per channel and token, besides: the state in front of
every 32 tokens, 4 n / 32 bytes written and read; where B and C change from token to token, parts of their gradients,
one for every 32 channels, 8 n / 32 bytes written and read. Cut into chunks, forward reads u and delta twice, backward
delta, z and the gradient that arrives.
"""

from __future__ import annotations

from math import lcm

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from spikeloom.kernels import backends
from spikeloom.kernels.scan import convolution, op, reference
from spikeloom.kernels.scan.checks import check_convolution, check_scan
from spikeloom.kernels.scan.cuda import MOST_STATES


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    *,
    reversed_channels: int = 0,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """y `[b, d, L]` in the dtype of u; with `return_last_state` also the state behind the last token, `[b, d, n]`.

    Differentiable once in all tensors, through the last state too; as often as wanted with `backend="reference"`.

    Args:
        u, delta: `[b, d, L]` of one dtype.
        A: real rates `[d, n]`, negative where states decay.
        B, C: `[d, n]`, `[b, n, L]` or `[b, G, n, L]`: fixed, one for all channels, or one per d / G neighbouring ones.
        D: weight of u itself, `[d]`. z: gate `[b, d, L]`, behind D. delta_bias: `[d]`, in front of the softplus.
        delta_softplus: delta goes through a softplus (linear above 20).
        initial_state: state in front of the first token, `[b, d, n]`; None is 0.
        return_last_state: return the last state too, float32 or float64.
        reversed_channels: so many channels, the last ones, read from the last token to the first (their first token is
            the last one in memory): 0, d / 2 or d.
        backend: `auto`, `reference`, `cpu` or `cuda`.

    Raises:
        ValueError: shapes, types or devices do not fit; an axis is empty.
        NotImplementedError: a kernel was to run inside forward-mode differentiation.
    """
    check_scan(u, delta, A, B, C, D, z, delta_bias, initial_state, reversed_channels)
    B, C = _grouped(B, C)
    chosen = backends.choose(backend, u.device.type)
    if not u.is_meta and (chosen == "reference" or (chosen == "cuda" and u.dtype == torch.float64)):
        y, last = reference.scan(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, reversed_channels)
    else:
        if forward_ad._current_level >= 0:
            raise NotImplementedError(
                "selective_scan: kernels have no forward-mode derivatives (torch.func.jvp, dual numbers); pass "
                "backend='reference'"
            )
        real = reference.real_of(u)
        D, delta_bias, initial_state = (None if t is None else t.to(real) for t in (D, delta_bias, initial_state))
        given = (u, delta, A.to(real), B, C, D, z, delta_bias, initial_state, delta_softplus, reversed_channels)
        y, last = _in_slices(*given) if u.is_cuda and A.shape[1] > MOST_STATES else op.run(*given)
    return (y, last) if return_last_state else y


def _grouped(B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Those that change from token to token as `[b, G, n, L]`, of one G."""
    B, C = (t.unsqueeze(1) if t.ndim == 3 else t for t in (B, C))
    if B.ndim == C.ndim == 4 and B.shape[1] != C.shape[1]:
        groups = lcm(B.shape[1], C.shape[1])
        B, C = (t.repeat_interleave(groups // t.shape[1], 1) for t in (B, C))
    return B, C


def _in_slices(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    softplus: bool,
    reversed_channels: int,
) -> tuple[Tensor, Tensor]:
    """A scan of more states than the GPU kernel holds: y is a sum over states."""

    def part(matrix: Tensor, at: int) -> Tensor:
        return matrix.narrow(matrix.ndim - 1 if matrix.ndim == 2 else 2, at, min(MOST_STATES, A.shape[1] - at))

    real, found = u.float(), []
    for at in range(0, A.shape[1], MOST_STATES):
        start = None if initial_state is None else initial_state[..., at : at + MOST_STATES]
        matrices = (A[:, at : at + MOST_STATES], part(B, at), part(C, at))
        found.append(op.run(real, delta.float(), *matrices, None, None, delta_bias, start, softplus, reversed_channels))
    y = torch.stack([y for y, _ in found]).sum(0)
    if D is not None:
        y = y + D[:, None] * real
    if z is not None:
        y = y * F.silu(z.float())
    return y.to(u.dtype), torch.cat([last for _, last in found], -1)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    reversed_channels: int = 0,
    backend: str = "auto",
) -> Tensor:
    """y[t] = bias + sum_k weight[k] x[t - (W - 1) + k], zeros in front of the first token, per channel.

    Args:
        x: `[b, d, L]`; L may be shorter than W.
        weight: `[d, W]`, or `[k d, W]`: k convolutions of every channel, to `[b, k d, L]`, row i of channel i mod d.
        bias: one per row of weight.
        activation: None, or "silu".
        reversed_channels: so many rows, the last ones, read from the last token to the first: none, half or all.
        backend: `auto`, `reference`, `cpu` or `cuda`. There is one kernel, for GPUs; on a CPU, of float64, of more than
            32 taps and while a compiler or transform of torch watches, all are torch's own convolution in float32 or
            float64.

    Raises:
        ValueError: shapes, types or devices do not fit; an axis is empty.
    """
    check_convolution(x, weight, bias, activation, reversed_channels)
    given = (x, weight, bias, activation == "silu", reversed_channels)
    if backends.choose(backend, x.device.type) == "cuda" and convolution.takes(x, weight, bias):
        return convolution.convolve(*given)
    return reference.convolution(*given)
