"""DCLS kernels along one axis in plain PyTorch: the profiles, the kernel, and its derivatives written out.

Element (o, i, c) has a weight W, a position p = P + K // 2, in taps from the first, and in two versions a width SIG.
With D = sum_k Y[k] + 1e-7 and X = Y / D (v0: X is the profile itself), Kern[o, k, i] = sum_c W X[k]. From the gradient
G[o, k, i] of the kernel, where Y' is the derivative of Y by p or by s:

    grad W = sum_k G[k] X[k]
    grad P, grad s = W / D (sum_k G[k] Y'[k] - grad W sum_k Y'[k]),    grad SIG = sign(SIG) grad s
    v1, max   dY/dp = sign(k - p) [Y > 0],    dY/ds = [Y > 0]
    gauss     dY/dp = Y (k - p) / s^2,        dY/ds = Y (k - p)^2 / s^3
    v0        grad P = W (G[f + 1] - G[f]),   f = floor(p), G = 0 outside the kernel

Axes: weight [O, I, c], P and SIG [1, O, I, c], kernel [O, K, I] (taps outside of channels, as convolutions of
channels-last images read it).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

WIDTHS: dict[str, float] = {"max": 1.0, "gauss": 0.27}
"""The versions with a learned width, and what is added to |SIG|."""
EPSILON = 1e-7
"""Added to the sum by which a profile is divided, in the working type."""
VERSIONS = ("v0", "v1", "max", "gauss")
_AT_ONCE = 2**18
"""Elements times taps that `construct_in_parts` and `gradients` handle together: they stay in a core's cache."""


def linear(taps: Tensor, p: Tensor) -> Tensor:
    """v0: linear interpolation between the two taps around p."""
    below = p.detach().floor()
    r = p - below
    return torch.where(taps == below, 1 - r, 0) + torch.where(taps == below + 1, r, 0)


def profile(taps: Tensor, p: Tensor, sigma: Tensor | None, version: str) -> Tensor:
    """Y of v1, max and gauss along one axis, not normalised."""
    if sigma is None:
        return F.relu(1.0 - (taps - p).abs())
    s = sigma.abs() + WIDTHS[version]
    if version == "max":
        return F.relu(s - (taps - p).abs())
    return torch.exp(-0.5 * ((taps - p) / s).square())


def construct(weight: Tensor, P: Tensor, SIG: Tensor | None, size: int, version: str) -> Tensor:
    """The kernel `[O, K, I]`, differentiable as often as one likes; taps are the outermost in memory."""
    p = P[0] + size // 2
    taps = _taps(weight, size)
    if version == "v0":
        X = linear(taps, p)
    else:
        Y = profile(taps, p, None if SIG is None else SIG[0], version)
        X = Y / (Y.sum(0) + EPSILON)
    return (X * weight).sum(-1).transpose(0, 1)


def construct_in_parts(weight: Tensor, P: Tensor, SIG: Tensor | None, size: int, version: str) -> Tensor:
    """The same, contiguous and without a graph, by some output channels at a time."""
    O, I, _ = weight.shape  # noqa: E741
    kernel = weight.new_empty(O, size, I)
    for rows in _parts(weight, size):
        kernel[rows] = construct(weight[rows], P[:, rows], None if SIG is None else SIG[:, rows], size, version)
    return kernel


def gradients(
    grad: Tensor, weight: Tensor, P: Tensor, SIG: Tensor | None, size: int, version: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of weight, P and SIG from that of the kernel, `[O, K, I]`, by the formulas above."""
    found = torch.empty_like(weight), torch.empty_like(P), None if SIG is None else torch.empty_like(SIG)
    for rows in _parts(weight, size):
        G = grad[rows].to(weight.dtype).transpose(0, 1)[..., None]  # [K, O, I, 1]
        p = P[0, rows] + size // 2
        sigma = None if SIG is None else SIG[0, rows]
        part = (_of_linear if version == "v0" else _of_profile)(G, weight[rows], p, sigma, version)
        found[0][rows], found[1][0, rows] = part[0], part[1]
        if found[2] is not None:
            found[2][0, rows] = part[2]
    return found


def _of_linear(G: Tensor, W: Tensor, p: Tensor, sigma: Tensor | None, version: str) -> tuple[Tensor, ...]:
    taps = _taps(W, len(G))
    below = p.floor()
    at, behind = ((G * (taps == tap)).sum(0) for tap in (below, below + 1))
    r = p - below
    return (1 - r) * at + r * behind, W * (behind - at)


def _of_profile(G: Tensor, W: Tensor, p: Tensor, sigma: Tensor | None, version: str) -> tuple[Tensor, ...]:
    away = _taps(W, len(G)) - p
    Y = profile(_taps(W, len(G)), p, sigma, version)
    D = Y.sum(0) + EPSILON
    of_weight = (G * Y).sum(0) / D
    if version == "gauss" and sigma is not None:
        s = sigma.abs() + WIDTHS[version]
        by_p = Y * away / s.square()
        by_s = by_p * away / s
    else:
        by_s = (Y > 0).to(Y.dtype)
        by_p = away.sign() * by_s
    scale = W / D
    of_p, of_s = (scale * ((G * by).sum(0) - of_weight * by.sum(0)) for by in (by_p, by_s))
    return of_weight, of_p, of_s if sigma is None else of_s * sigma.sign()


def _parts(weight: Tensor, size: int) -> Iterator[slice]:
    rows = max(1, _AT_ONCE // max(1, weight[:1].numel() * size))
    return (slice(begin, begin + rows) for begin in range(0, len(weight), rows))


def _taps(like: Tensor, size: int) -> Tensor:
    return torch.arange(size, device=like.device, dtype=like.dtype).view(-1, 1, 1, 1)
