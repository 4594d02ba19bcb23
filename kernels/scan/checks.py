"""What a selective scan and a causal convolution are given, checked: every message says what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    reversed_channels: int,
) -> None:
    """Shapes, types and devices of `op.selective_scan`.

    Raises:
        ValueError: they do not fit; the message names the tensor.
    """
    _sequence("selective_scan", "u", u)
    b, d, _ = u.shape
    if A.ndim != 2 or A.shape[0] != d or A.shape[1] == 0:
        raise ValueError(
            f"selective_scan got A {list(A.shape)} for u {list(u.shape)}; expected [d, n], a rate per channel and "
            f"state: [{d}, n] with n >= 1"
        )
    for name, t in (("delta", delta), ("z", z)):
        if t is not None and (t.shape != u.shape or t.dtype != u.dtype):
            raise ValueError(
                f"selective_scan got {name} {_said(t)} for u {_said(u)}; expected the shape and the dtype of u"
            )
    n = A.shape[1]
    _matrix("B", B, u, n)
    _matrix("C", C, u, n)
    given = {"D": (D, (d,)), "delta_bias": (delta_bias, (d,)), "initial_state": (initial_state, (b, d, n))}
    for name, (t, shape) in given.items():
        if t is not None and t.shape != shape:
            raise ValueError(f"selective_scan got {name} {list(t.shape)}; expected {list(shape)}")
    for name, t in {"A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias, "initial_state": initial_state}.items():
        if t is not None and not t.is_floating_point():
            raise ValueError(f"selective_scan got {name} of {t.dtype}; expected real floating-point values")
    for name, t in {"delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}.items():
        _device("selective_scan", name, t, u)
    _device("selective_scan", "initial_state", initial_state, u)
    _ways("selective_scan", reversed_channels, d)


def check_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, reversed_channels: int
) -> None:
    """Shapes, types and devices of `op.causal_conv1d`.

    Raises:
        ValueError: they do not fit; the message names the tensor.
    """
    _sequence("causal_conv1d", "x", x)
    d = x.shape[1]
    if weight.ndim != 2 or weight.shape[0] == 0 or weight.shape[0] % d or weight.shape[1] == 0:
        raise ValueError(
            f"causal_conv1d got weight {list(weight.shape)} for x {list(x.shape)}; expected [d, W] or [k d, W] with "
            f"d = {d} channels and W >= 1 taps (the weight [d, 1, W] of a Conv1d without its axis of size 1)"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"causal_conv1d got bias {list(bias.shape)}; expected [{weight.shape[0]}]")
    if activation not in (None, "silu"):
        raise ValueError(f"causal_conv1d got activation={activation!r}; known: None, 'silu'")
    for name, t in (("weight", weight), ("bias", bias)):
        _device("causal_conv1d", name, t, x)
        if t is not None and not t.is_floating_point():
            raise ValueError(f"causal_conv1d got {name} of {t.dtype}; expected real floating-point values")
    _ways("causal_conv1d", reversed_channels, weight.shape[0])


def _sequence(of: str, name: str, x: Tensor) -> None:
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(
            f"{of} got {name} {list(x.shape)}; expected [b, d, L] with b, d, L >= 1 (tokens on the last axis)"
        )
    if x.dtype not in TYPES:
        raise ValueError(f"{of} got {name} of {x.dtype}; expected float32, bfloat16, float16 or float64")


def _matrix(name: str, t: Tensor, u: Tensor, n: int) -> None:
    """B or C: `[d, n]`, `[b, n, L]` or `[b, G, n, L]` with G a divisor of d."""
    b, d, L = u.shape
    fits = tuple(t.shape) in ((d, n), (b, n, L)) or (
        t.ndim == 4 and (t.shape[0], t.shape[2], t.shape[3]) == (b, n, L) and t.shape[1] > 0 and d % t.shape[1] == 0
    )
    if not fits:
        raise ValueError(
            f"selective_scan got {name} {list(t.shape)} for u {list(u.shape)} and {n} states; expected [{d}, {n}] "
            f"(fixed), [{b}, {n}, {L}] (one for all channels) or [{b}, G, {n}, {L}] with G a divisor of {d}"
        )


def _device(of: str, name: str, t: Tensor | None, like: Tensor) -> None:
    if t is not None and t.device != like.device:
        raise ValueError(f"{of} got {name} on {t.device} and its input on {like.device}; move them to one device")


def _ways(of: str, reversed_channels: int, channels: int) -> None:
    if reversed_channels not in (0, channels) and 2 * reversed_channels != channels:
        raise ValueError(
            f"{of} got reversed_channels={reversed_channels} of {channels} channels; expected none, all, or the last "
            "half of them"
        )


def _said(t: Tensor) -> str:
    return f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}"
