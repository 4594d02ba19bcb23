"""Spiking window-based linear attention: queries and keys are spikes, values are not, and nothing is quadratic in N.

    g = SiLU(W_g y),   v = SiLU(dw(W_v y))                             y [T, B, N, C], dw a depth-wise 3 x 3 convolution
    s = LIF(BN(W_qk v)),   q = 1 + s_q,   k = 1 + s_k                  ELU + 1 of zeros and ones
    o_n = R(q_n) (sum_m R(k_m)^T v_m / n) / (q_n . mean_m k_m + 1e-6)  per window of n tokens and head; R: `Rotary`
    out = W_o (LIF(BN(o + lepe(v))) g)                                 lepe a depth-wise 3 x 3 convolution of the frame

Paper: Chen et al. 2024, "SpikMamba: When SNN meets Mamba in Event-based Human Action Recognition", arXiv:2410.16746,
after the linear attention of Han et al. 2024, arXiv:2405.16605. Where normalisations and neurons lie is our reading of
the paper's figure; the authors' code has no neuron behind the attention, and one window per frame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.neurons import LIF, Neuron
from spikeloom.spiking_attention.layout import check_heads
from spikeloom.spiking_attention.rotary import Rotary, check_rotary
from spikeloom.synapses import DepthwiseConv2d, Linear, NormNeuron
from spikeloom.synapses.time_axis import check_axes

EPS = 1e-6
"""Added to the normaliser q . mean(k), which is >= 1 a channel for spikes."""


def linear_attention(q: Tensor, k: Tensor, v: Tensor, turn: Callable[[Tensor], Tensor], num_heads: int) -> Tensor:
    """R(q) (R(k)^T v / N) / (q . mean(k) + 1e-6) per head, in O(N d^2): tokens `[..., N, C]` in and out.

    Args:
        q, k: positive. v: any.
        turn: R, on all channels, before the heads are split.
        num_heads: h; head i has the channels i C / h to (i + 1) C / h - 1.
    """
    turned_q, turned_k = _heads(turn(q), num_heads), _heads(turn(k), num_heads)
    q, k, v = _heads(q, num_heads), _heads(k, num_heads), _heads(v, num_heads)
    norm = q @ k.mean(-2, keepdim=True).transpose(-1, -2) + EPS  # [..., h, N, 1]
    memory = (turned_k.transpose(-1, -2) / k.shape[-2]) @ v
    return (turned_q @ memory / norm).transpose(-2, -3).flatten(-2)


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """`[..., N, C]` -> `[..., h, N, d]`."""
    return x.unflatten(-1, (num_heads, -1)).transpose(-2, -3).contiguous()


def to_windows(x: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Tokens of a frame `[..., N, C]`, row by row -> `[..., windows, n, C]`, windows and their tokens row by row.

    Raises:
        ValueError: the window does not divide the grid.
    """
    check_window(grid, window, "to_windows")
    (h, w), (rows, columns) = grid, window
    parts = x.unflatten(-2, (h // rows, rows, w // columns, columns)).transpose(-3, -4)
    return parts.flatten(-3, -2).flatten(-4, -3)


def from_windows(x: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Inverse of `to_windows`."""
    (h, w), (rows, columns) = grid, window
    parts = x.unflatten(-3, (h // rows, w // columns)).unflatten(-2, (rows, columns)).transpose(-3, -4)
    return parts.flatten(-5, -2)


def check_window(grid: tuple[int, int], window: tuple[int, int], where: str) -> None:
    """Raise unless windows of this size tile the grid; there is no padding, which would change every mean of keys."""
    if len(window) != 2 or min(window) < 1 or grid[0] % window[0] or grid[1] % window[1]:
        raise ValueError(
            f"{where} got window={window} on a grid of {grid[0]} x {grid[1]} tokens; expected (rows, columns) that "
            "divide it. Windows are not padded: choose divisors, another patch size, or None for whole frames."
        )


class WindowedLinearAttention(nn.Module):
    """Spiking linear attention inside windows of each frame, on tokens `[T, B, N, C]`, real-valued out.

    q and k spike, and so does what the attention gives; values, gates and the last map's input are real-valued.

    Args:
        dim: C, a multiple of 4. num_heads: divides C.
        grid: (h, w), tokens of a frame, N = h w, row by row.
        window: (rows, columns) of a window, which divide h and w; None is the whole frame.
        neuron: makes the neurons; the feature map 1 + s is ELU + 1 of zeros and ones.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        *,
        window: tuple[int, int] | None = None,
        neuron: Callable[[], Neuron] = LIF,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads, "WindowedLinearAttention")
        check_rotary(dim, "WindowedLinearAttention")
        window = grid if window is None else window
        check_window(grid, window, "WindowedLinearAttention")
        self.dim, self.num_heads, self.grid, self.window = dim, num_heads, grid, window
        self.act_proj, self.in_proj, self.out_proj = Linear(dim, dim), Linear(dim, dim), Linear(dim, dim)
        self.dwc, self.lepe = DepthwiseConv2d(dim, 3), DepthwiseConv2d(dim, 3)
        self.qk = Linear(dim, 2 * dim)
        self.qk_bn = NormNeuron(2 * dim, neuron())
        self.attn_bn = NormNeuron(dim, neuron())
        self.rope = Rotary(*window, dim)

    def forward(self, y: Tensor) -> Tensor:
        """Run all time steps.

        Raises:
            ValueError: the tokens are not those of the grid, or there are none.
        """
        check_axes(y, "WindowedLinearAttention", "T B N C")
        N = self.grid[0] * self.grid[1]
        if y.shape[2:] != (N, self.dim) or 0 in y.shape:
            raise ValueError(
                f"WindowedLinearAttention got tokens of shape {list(y.shape)}; expected [T, B, {N}, {self.dim}], "
                f"{self.grid[0]} x {self.grid[1]} tokens a frame, no axis empty."
            )
        gate = F.silu(self.act_proj(y))
        v = F.silu(on_grid(self.dwc, self.in_proj(y), self.grid))
        current, offset = self.qk_bn.current(self.qk, v)
        q, k = (1 + fire(self.qk_bn, current, offset)).chunk(2, dim=3)
        o = self._attend(q, k, v) + on_grid(self.lepe, v, self.grid)
        out: Tensor = self.out_proj(fire(self.attn_bn, o) * gate)
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Inside windows, `[T, B, N, C]`."""
        if self.window == self.grid:
            return linear_attention(q, k, v, self.rope, self.num_heads)
        q, k, v = (to_windows(part, self.grid, self.window) for part in (q, k, v))
        o = linear_attention(q, k, v, self.rope, self.num_heads)
        return from_windows(o, self.grid, self.window)

    def extra_repr(self) -> str:
        return f"{self.dim}, heads={self.num_heads}, grid={self.grid}, window={self.window}"


def fire(norm: NormNeuron, x: Tensor, offset: Tensor | None = None) -> Tensor:
    """Normalisation over channels and neuron on tokens `[T, B, N, C]`."""
    spikes: Tensor = norm(x.transpose(2, 3), offset=offset)
    return spikes.transpose(2, 3)


def on_grid(layer: nn.Module, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """A layer of frames `[T, B, C, h, w]` on tokens `[T, B, N, C]`, whose memory is that of channels-last frames."""
    frames = x.unflatten(2, grid).movedim(-1, 2)
    return cast(Tensor, layer(frames)).flatten(3).transpose(2, 3)
