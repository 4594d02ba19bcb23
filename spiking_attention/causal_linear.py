"""Causal linear attention: a matrix state that decays, token by token or in chunks of matrix products.

    S_t = e^{g_t} S_{t-1} + k_t v_t^T                                  decay per head, per token, or per row of S
    S_t = S' + beta_t k_t (v_t - S'^T k_t)^T,  S' = e^{g_t} S_{t-1}    delta rule
    o_t = scale S_t^T q_t

Shapes: q, k [B, H, L, dk]; v, o [B, H, L, dv]; S [B, H, dk, dv]; g, the logarithm of the decay, finite and <= 0: [H],
[B, H, L] or [B, H, L, dk]; beta [B, H, L]. A token sees itself without decay. Inside a chunk of C tokens, with b the
sum of g up to a token, the scalar form is

    O = scale (((Q K^T) M) V + e^b Q S),  M_ij = e^{b_i - b_j} for j <= i;    S <- e^{b_C} S + (e^{b_C - b} K)^T V

Papers: Qin et al. 2024, "Lightning Attention-2", arXiv:2401.04658; Yang et al. 2023, "Gated Linear Attention", arXiv:
2312.06635; Yang et al. 2024, "Gated Delta Networks", arXiv:2412.06464. No exponent is positive anywhere. States, sums
of g, products and exponentials are float32, or float64 for such inputs, under autocast too. Gradients are autograd's,
of every input and of S.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from spikeloom.kernels.precision import without_autocast

SUB = 16
"""Tokens of a block in which decays per row are paired one by one."""


def slopes(num_heads: int, layer: int = 0, layers: int = 1) -> Tensor:
    """Decay rates `[H]`, float64, of Lightning attention: 2^(-8 (h + 1) / H); g is minus this.

    Of a number of heads that is no power of two, the slopes of the next lower one, then every other of the next higher.

    Args:
        layer, layers: in layer l of n the rates are times 1 - l / (n - 1) + 1e-5; of a single layer as they are.

    Raises:
        ValueError: no heads, or layer is none of the layers.
    """
    if num_heads < 1 or not 0 <= layer < layers:
        raise ValueError(
            f"slopes got num_heads={num_heads}, layer={layer}, layers={layers}; expected >= 1 and 0 <= layer < layers."
        )

    def powers(count: int) -> list[float]:
        return [2.0 ** (-8.0 * (h + 1) / count) for h in range(count)]

    lower = 2 ** int(math.log2(num_heads))
    found = powers(lower) + powers(2 * lower)[::2][: num_heads - lower]
    return torch.tensor(found, dtype=torch.float64) * (1.0 if layers == 1 else 1 - layer / (layers - 1) + 1e-5)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float | None = None,
    state: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Outputs `[B, H, L, dv]` in the type of v, and the last state `[B, H, dk, dv]`.

    Args:
        q, k, v, g: see the module.
        scale: of the outputs; None is dk^-1/2.
        state: in front of the first token; None is 0.
        chunk: tokens of a chunk; 1 is the recurrence.

    Raises:
        ValueError: shapes do not fit, L is 0, or chunk < 1.
    """
    out = v.dtype
    q, k, v, g, S = _prepared(q, k, v, g, state, chunk)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    parts = []
    with without_autocast(q):
        for Q, K, V, G in _chunks(chunk, q, k, v, g):
            o, S = _chunk(Q, K, V, G.cumsum(2), S)
            parts.append(o)
    return (torch.cat(parts, 2) * factor).to(out), S


def attend_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None = None,
    *,
    scale: float | None = None,
    state: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """The delta rule, with decay if g is given, `[H]` or `[B, H, L]`; otherwise as `attend`.

    A chunk's writes are one triangular system: (I + A) U = diag(beta) (V - e^b K S), A = strictly lower part of
    diag(beta) (K K^T) M.

    Raises:
        ValueError: as `attend`, or beta is not `[B, H, L]`, or g has an axis for rows.
    """
    out = v.dtype
    decay = q.new_zeros(q.shape[1]) if g is None else g
    if decay.ndim == 4 or beta.shape != q.shape[:3]:
        raise ValueError(
            f"attend_delta got beta {list(beta.shape)} and g {list(decay.shape)} for q {list(q.shape)}; expected beta "
            "[B, H, L] and g [H] or [B, H, L]."
        )
    q, k, v, decay, S = _prepared(q, k, v, decay, state, chunk)
    rate = beta.to(S.dtype).unsqueeze(-1)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    parts = []
    with without_autocast(q):
        for Q, K, V, R, G in _chunks(chunk, q, k, v, rate, decay):
            b = G.cumsum(2)
            M = _mask(b)
            A = torch.tril(R * (K @ K.transpose(-1, -2)) * M, -1)
            unit = A + torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
            writes = torch.linalg.solve_triangular(unit, R * (V - b.exp() * (K @ S)), upper=False, unitriangular=True)
            parts.append(b.exp() * (Q @ S) + (Q @ K.transpose(-1, -2) * M) @ writes)
            S = b[:, :, -1:].exp() * S + ((b[:, :, -1:] - b).exp() * K).transpose(-1, -2) @ writes
    return (torch.cat(parts, 2) * factor).to(out), S


def _chunks(chunk: int, *operands: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The operands' chunks; of `split`, unlike of slices, the gradients are put together once."""
    return zip(*(part.split(chunk, 2) for part in operands), strict=True)


def _chunk(Q: Tensor, K: Tensor, V: Tensor, b: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """One chunk; b `[B, H, C, 1]`, or `[B, H, C, dk]` for a decay of each row."""
    end = b[:, :, -1:]
    weights = Q @ K.transpose(-1, -2) * _mask(b) if b.shape[-1] == 1 else _pairs(Q, K, b)
    o = weights @ V + (b.exp() * Q) @ S
    return o, end.transpose(-1, -2).exp() * S + ((end - b).exp() * K).transpose(-1, -2) @ V


def _mask(b: Tensor) -> Tensor:
    """e^{b_i - b_j} for j <= i, else 0; what is masked is masked in front of the exponential, where it could be inf."""
    apart = b - b.transpose(-1, -2)
    lower = torch.ones(apart.shape[-2:], dtype=torch.bool, device=b.device).tril()
    return apart.masked_fill(~lower, 0).exp() * lower


def _pairs(Q: Tensor, K: Tensor, b: Tensor) -> Tensor:
    """sum_c q_ic k_jc e^{b_ic - b_jc} for j <= i, else 0: a product of matrices against earlier blocks, pairs inside.

    Both factors against earlier blocks decay from or to the last token in front of the block, so that none grows.
    """
    rows = []
    C = Q.shape[2]
    for lo in range(0, C, SUB):
        q, k, own = (part[:, :, lo : lo + SUB] for part in (Q, K, b))
        apart = own.unsqueeze(3) - own.unsqueeze(2)  # [B, H, i, j, dk]
        lower = torch.ones(apart.shape[2:4], dtype=torch.bool, device=b.device).tril()[..., None]
        inside = torch.einsum("bhic,bhjc,bhijc->bhij", q, k, apart.masked_fill(~lower, 0).exp() * lower)
        parts = [inside, inside.new_zeros(*inside.shape[:3], C - lo - inside.shape[3])]
        if lo:
            edge = b[:, :, lo - 1 : lo]
            parts.insert(0, (q * (own - edge).exp()) @ (K[:, :, :lo] * (edge - b[:, :, :lo]).exp()).transpose(-1, -2))
        rows.append(torch.cat(parts, 3))
    return torch.cat(rows, 2)


def _prepared(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operands in float32 or float64, g as `[B, H, L, 1 or dk]`, and the first state."""
    if q.ndim != 4 or k.shape != q.shape or v.ndim != 4 or v.shape[:3] != q.shape[:3] or 0 in q.shape or chunk < 1:
        raise ValueError(
            f"linear attention got q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}, chunk={chunk}; expected q "
            "and k [B, H, L, dk], v [B, H, L, dv], no axis empty, chunk >= 1."
        )
    B, H, L, dk = q.shape
    if tuple(g.shape) not in ((H,), (B, H, L), (B, H, L, dk)):
        raise ValueError(f"linear attention got g {list(g.shape)}; expected [{H}], [{B}, {H}, {L}] or {[B, H, L, dk]}.")
    real = torch.float64 if v.dtype == torch.float64 else torch.float32
    q, k, v, g = (part.to(real) for part in (q, k, v, g))
    g = g.view(1, H, 1, 1).expand(B, H, L, 1) if g.ndim == 1 else g.unsqueeze(-1) if g.ndim == 3 else g
    shape = B, H, dk, v.shape[3]
    if state is not None and state.shape != shape:
        raise ValueError(f"linear attention got a state {list(state.shape)}; expected {list(shape)}.")
    return q, k, v, g, (q.new_zeros(shape) if state is None else state.to(real))
