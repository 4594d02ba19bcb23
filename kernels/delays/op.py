"""`delayed_sum`: the operator `spikeloom::delayed_sum` behind a check of what it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spikeloom.kernels.backends import choose
from spikeloom.kernels.delays import cpu, cuda, reference
from spikeloom.kernels.delays.tables import Tables
from spikeloom.kernels.op import dispatched, is_plain

FORMS = tuple(cpu.FORMS)
_RUN: dict[str, Callable[..., list[Tensor]]] = {
    "reference": reference.delayed_sum,
    "cpu": cpu.delayed_sum,
    "cuda": cuda.delayed_sum,
}
"""Backends; where nobody watches operators they are called without torch's dispatcher, which costs a tick 10 us."""
_library = torch.library.Library("spikeloom", "FRAGMENT")
_library.define(
    "delayed_sum(Tensor x, Tensor? pending, Tensor weight, Tensor delay, Tensor? bias, Tensor[] tables, int size, "
    "int groups, int skip, bool keep, str form) -> Tensor[]"
)


def delayed_sum(
    x: Tensor,
    pending: Tensor | None,
    weight: Tensor,
    delay: Tensor,
    bias: Tensor | None,
    tables: Tables,
    *,
    size: int,
    groups: int = 1,
    skip: int = 0,
    keep: bool = False,
    form: str = "auto",
    backend: str = "auto",
) -> list[Tensor]:
    """y[t, b, o] = bias[o] + pending[t, b, o] + sum_(i, c) w[o, i, c] x[t - d[o, i, c], b, i], for t >= skip.

    Terms are added one by one in the order in which they were sent: by time, then input, then element. So results have
    the same bits in every form, with any number of threads and for any cut of a sequence into chunks.

    Args:
        x: `[S, B, I]`, float32 or float64.
        pending: sums on their way from before, `[K - 1, B, O]`, the next step first; None: none.
        weight: `[O, I / groups, c]` of the type of x, finite. delay: whole numbers, 0 ... K - 1. bias: `[O]`.
        tables: `Tables.of(weight, delay, size, groups)`.
        size: K.
        skip: steps at the front that are only inputs, at most K - 1.
        keep: also return what is on its way afterwards.
        form: on a CPU, `spikes` (cost: an addition per spike and element), `outputs` (a vector of steps per element
            and sample, whatever the input) or `auto`, the cheaper one. A GPU walks over spikes.
        backend: "auto", "reference", "cpu" or "cuda".

    Returns:
        `[y]` of `[S - skip, B, O]`, with `keep` `[y, pending]`.

    Raises:
        ValueError: sizes, types or devices that do not fit, an unknown form, a gradient that is asked for.
        BackendError: the named backend cannot run here.
    """
    _check(x, pending, weight, bias, size, groups, form)
    if skip and (skip > min(len(x), size - 1) or keep or pending is not None):
        raise ValueError(
            f"delayed sums: skip is {skip}; expected 0 to min(T, K - 1) = {min(len(x), size - 1)}, and 0 with a state."
        )
    _refuse_gradients(x, pending, weight, bias)
    chosen = choose(backend, x.device.type)
    run = _RUN[chosen]
    if chosen != "reference" and (dispatched() or not is_plain(x)):
        run = torch.ops.spikeloom.delayed_sum
    found: list[Tensor] = run(x, pending, weight, delay, bias, list(tables), size, groups, skip, keep, form)
    return found


def _check(
    x: Tensor, pending: Tensor | None, weight: Tensor, bias: Tensor | None, size: int, groups: int, form: str
) -> None:
    outputs, inputs, _ = weight.shape
    if x.ndim != 3 or x.shape[2] != inputs * groups:
        raise ValueError(f"delayed sums got x {list(x.shape)}; expected [T, B, {inputs * groups}], time first.")
    if x.dtype != weight.dtype or x.dtype not in (torch.float32, torch.float64) or x.device != weight.device:
        raise ValueError(
            f"delayed sums got x of {x.dtype} on {x.device}, weights of {weight.dtype} on {weight.device}; expected "
            "float32 or float64, both alike, on one device. Convert with x.to(weight), a layer with layer.float()."
        )
    if bias is not None and (bias.shape != (outputs,) or bias.dtype != x.dtype or bias.device != x.device):
        raise ValueError(
            f"delayed sums got a bias {list(bias.shape)} of {bias.dtype} on {bias.device}; expected [O] = [{outputs}] "
            f"of {x.dtype} on {x.device}."
        )
    if form not in FORMS:
        raise ValueError(f"delayed sums: form is {form!r}; expected one of {', '.join(FORMS)}.")
    if pending is None:
        return
    wanted = (size - 1, x.shape[1], outputs)
    if tuple(pending.shape) != wanted or pending.dtype != x.dtype or pending.device != x.device:
        raise ValueError(
            f"delayed sums got a state {list(pending.shape)} of {pending.dtype} on {pending.device}; expected "
            f"[K - 1, B, O] = {list(wanted)} of {x.dtype} on {x.device}. A state belongs to one layer and one batch: "
            "start anew with state=None (or stream.reset())."
        )


def _refuse_gradients(*tensors: Tensor | None) -> None:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise ValueError(
            "sums with whole-number delays are for inference and have no gradient, but one is asked for; call them "
            "inside `with torch.no_grad():`, or train the layer as DelayConv1d."
        )


def _autograd(
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
    _refuse_gradients(x, pending, weight, bias)
    with torch._C._AutoDispatchBelowAutograd():
        found: list[Tensor] = torch.ops.spikeloom.delayed_sum(
            x, pending, weight, delay, bias, tables, size, groups, skip, keep, form
        )
    return found


def _fake(
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
    return cpu.allocate(x, weight, size, skip, keep)


_library.impl("delayed_sum", cpu.delayed_sum, "CPU")
_library.impl("delayed_sum", cuda.delayed_sum, "CUDA")
_library.impl("delayed_sum", _autograd, "Autograd")
torch.library.register_fake("spikeloom::delayed_sum", _fake, lib=_library)
