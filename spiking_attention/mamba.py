"""Mamba: a selective state-space model as token mixer, in one direction or in both.

    x, z = split(W_in tokens);              per direction, the second one from the last token to the first:
    c = SiLU(conv(x));  (r | B | C) = W_x c;  delta = softplus(W_dt r + b_dt)
    h[t] = exp(delta[t] A) h[t-1] + delta[t] c[t] B[t];  o[t] = C[t] h[t] + D c[t],  A = -exp(A_log)
    out = W_out ((o_forward + o_backward) SiLU(z))

conv is depthwise and causal over W tokens. Shapes: tokens [B, L, C], c [B, Di, L] with Di = expand C, h [B, Di, n].
Papers: Gu and Dao 2023, "Mamba", arXiv:2312.00752; both directions: Li et al. 2024, "VideoMamba", arXiv:2403.06977. All
of this is real-valued. Both directions are one convolution and one scan: the second reads time backwards where it lies.
"""

from __future__ import annotations

from math import ceil, log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.kernels.scan import causal_conv1d, selective_scan

State = tuple[Tensor, Tensor]
"""The last W values in front of the convolution, `[B, Di, W]`, newest last, and the state h, `[B, Di, n]`; float32, or
float64 for such tokens."""


class SelectiveSSM(nn.Module):
    """Convolution and selective scan on `[B, Di, L]`, with the parameters of Mamba; `mix` runs it.

    Parameters: conv1d, x_proj, dt_proj, A_log `[Di, n]`, D `[Di]`; in both directions also conv1d_b, x_proj_b,
    dt_proj_b, A_b_log, D_b. A_log, A_b_log, D and D_b are marked `_no_weight_decay`, dt_proj.bias `_no_reinit`.

    Args:
        features: channels Di.
        bidirectional: a second direction with parameters of its own; the results are added.
        d_state: states per channel, n. d_conv: taps W. dt_rank: rank R of delta's projection.
    """

    def __init__(self, features: int, *, bidirectional: bool, d_state: int, d_conv: int, dt_rank: int) -> None:
        super().__init__()
        sizes = {"features": features, "d_state": d_state, "d_conv": d_conv, "dt_rank": dt_rank}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{type(self).__name__} got {name}={size}; expected at least 1")
        self.features, self.bidirectional = features, bidirectional
        self.d_state, self.d_conv, self.dt_rank = d_state, d_conv, dt_rank
        for suffix in ("", "_b") if bidirectional else ("",):
            conv = nn.Conv1d(features, features, d_conv, groups=features, padding=d_conv - 1)
            setattr(self, f"conv1d{suffix}", conv)
            setattr(self, f"x_proj{suffix}", nn.Linear(features, dt_rank + 2 * d_state, bias=False))
            setattr(self, f"dt_proj{suffix}", nn.Linear(dt_rank, features))
            setattr(self, f"A{suffix}_log", nn.Parameter(torch.empty(features, d_state)))
            setattr(self, f"D{suffix}", nn.Parameter(torch.empty(features)))
        self.reset_ssm()

    def reset_ssm(self) -> None:
        """Starting values of A_log, D and dt_proj, of both directions alike: time steps e^U(log 0.001, log 0.1)."""
        for conv, _, dt_proj, A_log, D in self._directions():
            states = torch.arange(1, self.d_state + 1, dtype=torch.float32)
            with torch.no_grad():
                conv.reset_parameters()
                A_log.copy_(states.log().expand_as(A_log))
                D.fill_(1.0)
                nn.init.uniform_(dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
                step = torch.exp(torch.rand(self.features) * (log(0.1) - log(0.001)) + log(0.001)).clamp(min=1e-4)
                dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))
        self._mark()

    def _mark(self) -> None:
        for _, _, dt_proj, A_log, D in self._directions():
            for parameter in (A_log, D):
                parameter._no_weight_decay = True
            dt_proj.bias._no_reinit = True

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._mark()  # `copy.deepcopy` copies no attributes of parameters

    def _directions(self) -> list[tuple[Any, ...]]:
        """conv1d, x_proj, dt_proj, A_log and D of each direction."""
        suffixes = ("", "_b") if self.bidirectional else ("",)
        names = [(f"conv1d{s}", f"x_proj{s}", f"dt_proj{s}", f"A{s}_log", f"D{s}") for s in suffixes]
        return [tuple(getattr(self, name) for name in group) for group in names]

    def mix(self, x: Tensor, z: Tensor | None = None, *, state: State | None = None, return_state: bool = False) -> Any:
        """`[B, Di, L]` -> `[B, Di, L]`, times SiLU(z) if z is given; with `return_state` also the state behind it.

        Raises:
            ValueError: a shape does not fit, no state of `mix`, or a state is asked of both directions.
        """
        if x.ndim != 3 or x.shape[1] != self.features or x.shape[2] == 0:
            raise ValueError(
                f"{type(self).__name__} got [B, Di, L] = {list(x.shape)}; expected Di = {self.features}, L >= 1"
            )
        if self.bidirectional:
            if state is not None or return_state:
                raise ValueError(
                    f"{type(self).__name__} runs in both directions, so it must see all tokens at once and has no "
                    "state to carry; build it with bidirectional=False for streams"
                )
            o = self._scan(self._convolve(x)).unflatten(1, (2, self.features)).sum(1)
            return o if z is None else o * F.silu(z)
        conv, h = parts_of(state, 2, type(self).__name__, "(values of the convolution, state of the scan)")
        past = x.new_zeros(x.shape[0], self.features, self.d_conv) if conv is None else conv.to(x.dtype)
        if past.shape != (x.shape[0], self.features, self.d_conv):
            raise ValueError(
                f"{type(self).__name__} got a convolution state {list(past.shape)}; expected [B, Di, W] = "
                f"{[x.shape[0], self.features, self.d_conv]}"
            )
        wide = x if conv is None else torch.cat([past[..., 1:], x], -1)
        o = self._scan(self._convolve(wide)[..., -x.shape[-1] :], z, h, return_state)
        if not return_state:
            return o
        last = torch.cat([past, x[..., -self.d_conv :]], -1)[..., -self.d_conv :]  # keeps no more than 2 W values alive
        return o[0], (last.to(o[1].dtype), o[1])

    def _convolve(self, x: Tensor) -> Tensor:
        """SiLU of the causal convolutions: `[B, Di, L]` -> `[B, K Di, L]`, K directions."""
        weights = torch.cat([d[0].weight for d in self._directions()]).squeeze(1)
        biases = torch.cat([d[0].bias for d in self._directions()])
        return causal_conv1d(x, weights, biases, "silu", reversed_channels=self._reversed)

    def _scan(self, c: Tensor, z: Tensor | None = None, h: Tensor | None = None, return_state: bool = False) -> Any:
        """Scan of `[B, K Di, L]` by parameters that follow from it, direction by direction."""
        _, x_proj, dt_proj, A_log, D = zip(*self._directions(), strict=True)
        R, n, tokens = self.dt_rank, self.d_state, c.unflatten(1, (-1, self.features))
        p = torch.matmul(torch.stack([m.weight for m in x_proj]), tokens)  # [B, K, R + 2 n, L]
        delta = torch.matmul(torch.stack([m.weight for m in dt_proj]), p[:, :, :R]).flatten(1, 2)
        return selective_scan(
            c,
            delta.to(c.dtype),
            -torch.exp(torch.cat(A_log).float() if c.dtype != torch.float64 else torch.cat(A_log)),
            p[:, :, R : R + n].to(c.dtype),
            p[:, :, R + n :].to(c.dtype),
            torch.cat(D),
            None if z is None else z.to(c.dtype),
            torch.cat([m.bias for m in dt_proj]),
            True,
            h,
            return_state,
            reversed_channels=self._reversed,
        )

    @property
    def _reversed(self) -> int:
        return self.features if self.bidirectional else 0


def parts_of(state: Any, count: int, where: str, expected: str) -> Any:
    """The parts of a layer's state, None each without one.

    Raises:
        ValueError: it is no sequence of so many.
    """
    if state is None:
        return (None,) * count
    if not isinstance(state, tuple | list) or len(state) != count:
        of = f" of {len(state)}" if isinstance(state, tuple | list) else ""
        raise ValueError(
            f"{where} got as state a {type(state).__name__}{of}; expected {expected}, as return_state=True gives it, "
            "or None to start from rest"
        )
    return state


class MambaMixer(SelectiveSSM):
    """Token mixer `[B, L, C]` -> `[B, L, C]`.

    In one direction it is causal and runs in streams, with the state of `SelectiveSSM.mix`. A `Stream` has time on axis
    0: give it tokens `[L, B, C]` and build the mixer with `time_first=True`.

    Args:
        dim: channels C.
        bidirectional: scan from both ends.
        d_state: states per channel, n. d_conv: taps of the convolution. expand: Di / C.
        dt_rank: rank of delta's projection; None is C / 16, rounded up.
        time_first: tokens are `[L, B, C]`.
    """

    streams = True

    def __init__(
        self,
        dim: int,
        *,
        bidirectional: bool = True,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        time_first: bool = False,
    ) -> None:
        if dim < 1 or expand < 1:
            raise ValueError(f"MambaMixer got dim={dim}, expand={expand}; expected at least 1 each")
        rank = ceil(dim / 16) if dt_rank is None else dt_rank
        super().__init__(expand * dim, bidirectional=bidirectional, d_state=d_state, d_conv=d_conv, dt_rank=rank)
        self.dim, self.time_first = dim, time_first
        self.in_proj = nn.Linear(dim, 2 * self.features, bias=False)
        self.out_proj = nn.Linear(self.features, dim, bias=False)

    def forward(self, tokens: Tensor, *, state: State | None = None, return_state: bool = False) -> Any:
        """Mix tokens; see `SelectiveSSM.mix` for the state.

        Raises:
            ValueError: the tokens have other axes or channels, or a state is asked of both directions.
        """
        if tokens.ndim != 3 or tokens.shape[-1] != self.dim:
            axes = "[L, B, C]" if self.time_first else "[B, L, C]"
            raise ValueError(f"MambaMixer got {list(tokens.shape)}; expected {axes} with C = {self.dim}")
        order = (1, 2, 0) if self.time_first else (0, 2, 1)
        x, z = self.in_proj(tokens).permute(order).chunk(2, 1)
        o = self.mix(x, z, state=state, return_state=return_state)
        y, end = o if return_state else (o, None)
        mixed = self.out_proj(y.permute(2, 0, 1) if self.time_first else y.transpose(1, 2))
        return (mixed, end) if return_state else mixed
