"""Sums of delayed inputs in plain PyTorch, the meaning of the kernels: every input sends itself on, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def delayed_sum(
    x: Tensor,
    pending: Tensor | None,
    weight: Tensor,
    delay: Tensor,
    bias: Tensor | None,
    tables: Sequence[Tensor],
    size: int,
    groups: int,
    skip: int,
    keep: bool,
    form: str,
) -> list[Tensor]:
    """As the operator (`op.delayed_sum`); `tables` and `form` are of no account."""
    steps, B, _ = x.shape
    outputs, inputs, count = weight.shape
    sums = x.new_zeros(steps + size - 1, B, outputs)
    if pending is not None:
        sums[: size - 1] = pending
    group = torch.arange(outputs, device=x.device) // (outputs // groups)
    channel = group[:, None] * inputs + torch.arange(inputs, device=x.device)
    o = torch.arange(outputs, device=x.device)[:, None].expand(-1, inputs)
    for t, now in enumerate(x):
        for c in range(count):
            terms = now[:, channel] * weight[..., c]  # [B, O, I / groups]
            rows = (t + delay[..., c].long()) * outputs + o
            places = rows.flatten()[:, None].expand(-1, B)
            flat = sums.transpose(1, 2).reshape(-1, B)  # [steps O, B]
            flat = flat.scatter_add(0, places, terms.flatten(1).t())
            sums = flat.view(-1, outputs, B).transpose(1, 2)
    y = sums[skip:steps] if bias is None else sums[skip:steps] + bias
    return [y.contiguous(), sums[steps:].contiguous()] if keep else [y.contiguous()]
