"""Read-outs of the delay networks: outputs of every step `[T, B, K]` -> one score per class `[B, K]`, and their loss.

    sum           m = sum_t softmax_K(v[t])          mean          m = mean_t v[t]
    max           m = max_t v[t]                     spike_count   m = sum_t s[t]

The loss is the cross entropy of m, so that `sum` takes a second softmax, of values between 0 and T (as published).
`nll` is the same vote without it: minus the logarithm of the mean of the softmax of every step.

Paper: Hammouamri, Khalfaoui-Hassani, Masquelier 2024, arXiv:2306.17670, and its code.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Readout = Literal["sum", "mean", "max", "spike_count", "nll"]


def read_out(outputs: Tensor, kind: str = "sum", lengths: Tensor | None = None) -> Tensor:
    """Scores `[B, K]` of outputs `[T, B, K]`: membranes, for `spike_count` spikes.

    Args:
        kind: see above; `nll` gives the mean of the softmax.
        lengths: steps of each sample that count, whole numbers `[B]`, 1 ... T; None: all, zeros at the end of a batch's
            shorter samples too, as published.

    Raises:
        ValueError: an unknown kind, or outputs or lengths of another shape or range.
    """
    if kind not in get_args(Readout):
        raise ValueError(f"Read-out is {kind!r}; expected one of {', '.join(get_args(Readout))}.")
    if outputs.ndim != 3:
        raise ValueError(f"The read-out got {list(outputs.shape)}; expected the outputs of every step, [T, B, K].")
    T, B, _ = outputs.shape
    if lengths is None:
        lengths = torch.full((B,), T, device=outputs.device)
    elif lengths.shape != (B,) or int(lengths.min()) < 1 or int(lengths.max()) > T:
        raise ValueError(f"The read-out got lengths {lengths.tolist()}; expected {B} whole numbers from 1 to {T}.")
    counts = (torch.arange(T, device=outputs.device)[:, None] < lengths)[:, :, None]
    if kind == "max":
        return outputs.masked_fill(~counts, -torch.inf).amax(0)
    votes = outputs.softmax(-1) if kind in ("sum", "nll") else outputs
    total = (votes * counts).sum(0)
    return total / lengths[:, None] if kind in ("mean", "nll") else total


def delay_loss(outputs: Tensor, targets: Tensor, kind: str = "sum", lengths: Tensor | None = None) -> Tensor:
    """The mean over the batch of the cross entropy of `read_out`; targets are labels `[B]` or shares `[B, K]`.

    Raises:
        ValueError: as `read_out`.
    """
    scores = read_out(outputs, kind, lengths)
    if kind != "nll":
        return F.cross_entropy(scores, targets)
    logs = scores.clamp(min=torch.finfo(scores.dtype).tiny).log()
    return F.nll_loss(logs, targets) if targets.ndim == 1 else -(targets * logs).sum(1).mean()


def accuracy(outputs: Tensor, labels: Tensor, kind: str = "sum") -> Tensor:
    """The share of the batch, 0 ... 1, whose highest score is that of its label `[B]`."""
    return (read_out(outputs, kind).argmax(1) == labels).double().mean()
