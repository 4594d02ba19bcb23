"""Selective scan and causal depthwise convolution in plain PyTorch: the recurrence, token by token.

Differentiable any number of times, any floating-point type. Half types are computed in float32,
under autocast too; float64 stays float64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeloom.kernels.precision import without_autocast


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
    reversed_channels: int,
) -> tuple[Tensor, Tensor]:
    """y `[b, d, L]` in the type of u, and the state behind the last token, `[b, d, n]`; see `op.selective_scan`.

    B and C: `[d, n]` or `[b, G, n, L]`.
    """
    real = real_of(u)
    d = u.shape[1]
    x, dt = u.to(real), delta.to(real)
    if delta_bias is not None:
        dt = dt + delta_bias.to(real)[:, None]
    if delta_softplus:
        dt = F.softplus(dt)
    rates = A.to(real)
    ahead = d - reversed_channels
    parts = []
    for channels, backwards in ((slice(0, ahead), False), (slice(ahead, d), True)):
        if (channels.stop or 0) > channels.start:
            of_B, of_C = (_rows(t.to(real), d)[..., channels, :, :] for t in (B, C))
            h = None if initial_state is None else initial_state[:, channels].to(real)
            parts.append(_one_way(x[:, channels], dt[:, channels], rates[channels], of_B, of_C, h, backwards))
    y = torch.cat([p[0] for p in parts], 1)
    if D is not None:
        y = y + D.to(real)[:, None] * x
    if z is not None:
        y = y * F.silu(z.to(real))
    return y.to(u.dtype), torch.cat([p[1] for p in parts], 1)


def _one_way(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor | None, backwards: bool
) -> tuple[Tensor, Tensor]:
    """The recurrence over channels of one direction; B and C `[b or 1, d, n, L or 1]`."""
    b, d, L = x.shape
    state = x.new_zeros(b, d, A.shape[1]) if h is None else h
    added = dt * x
    steps, inputs = dt.unbind(-1), added.unbind(-1)  # indexing every token would make backward quadratic in L
    of_B, of_C = (m.unbind(-1) if m.shape[-1] > 1 else (m[..., 0],) * L for m in (B, C))
    found = []
    for t in range(L - 1, -1, -1) if backwards else range(L):
        state = torch.exp(steps[t].unsqueeze(-1) * A) * state + inputs[t].unsqueeze(-1) * of_B[t]
        found.append((state * of_C[t]).sum(-1))
    return torch.stack(found[::-1] if backwards else found, -1), state


def _rows(matrix: Tensor, channels: int) -> Tensor:
    """`[d, n]` or `[b, G, n, L]` as `[b or 1, d, n, L or 1]`."""
    if matrix.ndim == 2:
        return matrix[None, :, :, None]
    return matrix.repeat_interleave(channels // matrix.shape[1], 1)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reversed_channels: int) -> Tensor:
    """`[b, d, L]` with weights `[k d, W]` -> `[b, k d, L]`; see `op.causal_conv1d`."""
    real = real_of(x)
    rows, W = weight.shape
    wide = x.to(real).repeat(1, rows // x.shape[1], 1)
    ahead = rows - reversed_channels
    parts = []
    for channels, backwards in ((slice(0, ahead), False), (slice(ahead, rows), True)):
        if channels.stop > channels.start:
            kernel = weight[channels].to(real)
            sides, kernel = ((0, W - 1), kernel.flip(1)) if backwards else ((W - 1, 0), kernel)
            offset = None if bias is None else bias[channels].to(real)
            padded = F.pad(wide[:, channels], sides)
            with without_autocast(x):
                parts.append(F.conv1d(padded, kernel.unsqueeze(1), offset, groups=len(kernel)))
    y = torch.cat(parts, 1)
    return (F.silu(y) if silu else y).to(x.dtype)


def real_of(u: Tensor) -> torch.dtype:
    """Type of the arithmetic and of states."""
    return torch.float64 if u.dtype == torch.float64 else torch.float32
