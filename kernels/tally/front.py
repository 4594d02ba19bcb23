"""`tally`: check a call and send it to the kernel of its device."""

from __future__ import annotations

import torch
from torch import Tensor

from spikeloom.kernels.backends import choose
from spikeloom.kernels.tally import cpu, cuda, reference
from spikeloom.kernels.tally.call import Call, Tally
from spikeloom.kernels.tally.table import SLOTS, Table

_RUN = {"reference": reference.run, "cpu": cpu.run, "cuda": cuda.run}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_EXACT = {
    torch.bool: torch.float16,
    torch.uint8: torch.float16,
    torch.int8: torch.float16,
    torch.int16: torch.float32,
    torch.int32: torch.float64,
    torch.int64: torch.float64,
}
"""The smallest float type that holds every value of an integer type (of int64: every value up to 2^53)."""


def tally(
    x: Tensor,
    outer: int,
    inner: int,
    *,
    table: Table | None = None,
    fan: Tensor | None = None,
    fan_on: str = "inner",
    pruned: Tensor | None = None,
    affine: tuple[Tensor, Tensor] | None = None,
    affine_on: str = "outer",
    backend: str = "auto",
) -> Tally:
    """Count the non-zero elements of x in one pass, exactly, without waiting for the device.

    x lies in memory as [rows, outer, inner]; a row is one time step of one sample.

        events[r] = number of (o, i) with x[r, o, i] != 0
        terms[r]  = sum over them of fan[i], or fan[o]
        pruned[r] = sum over them of pruned[o, i]
        levels[r, s] = sum of fan over those whose magnitude |x| has slot s of the table

    NaN and infinities count as non-zero and have no slot. -0.0 is zero, subnormal numbers are not. Once the table has
    overflowed, values other than the integers 1 ... 64 may be missing from `levels`; all else stays exact.

    Args:
        x: contiguous, of rows * outer * inner elements: floating point (float32, float64, float16, bfloat16), or bool
            or integers (converted; int64 beyond 2^53 is rounded to float64).
        outer, inner: sizes of a row in memory order. Contiguous [.., C, H, W]: C and H W. Channels-last: H W and C.
        table: where the values are kept, on the device of x.
        fan: fan-out of an element, int32 [inner] or [outer]; None is 1 everywhere.
        fan_on: "inner" or "outer", the axis of `fan`.
        pruned: second weight, int32 [outer * inner], or [inner] for a map that is the same at every `outer`.
        affine: (scale, shift), each [inner] or [outer]: u = x * scale + shift is counted instead of x, product and sum
            rounded one after the other in float32 (in float64 for float64 x). Not with a table. float32, or float64
            where x is.
        affine_on: "inner" or "outer", the axis of `affine`.
        backend: "auto", "reference", "cpu" or "cuda".

    Raises:
        ValueError: sizes that do not fit, tensors that are not contiguous or on another device, affine with a table.
        TypeError: a dtype that is not taken.
        BackendError: the named backend cannot run here.
    """
    call = _checked(x, outer, inner, table, fan, fan_on, pruned, affine, affine_on)
    chosen = choose(backend, x.device.type)
    return _RUN[chosen](call) if call.rows else _nothing(call)


def _checked(
    x: Tensor,
    outer: int,
    inner: int,
    table: Table | None,
    fan: Tensor | None,
    fan_on: str,
    pruned: Tensor | None,
    affine: tuple[Tensor, Tensor] | None,
    affine_on: str,
) -> Call:
    if x.dtype not in _FLOATS:
        x = _converted(x)
    size = outer * inner
    if outer < 1 or inner < 1 or x.numel() % size:
        raise ValueError(
            f"x of shape {list(x.shape)} is not a whole number of rows of outer * inner = {outer} * {inner} elements; "
            f"pass the sizes of one time step of one sample, both at least 1"
        )
    _placed("x", x, x.device)
    fan_outer, affine_outer = _is_outer("fan_on", fan_on), _is_outer("affine_on", affine_on)
    if fan is not None:
        _weight("fan", fan, x, (outer if fan_outer else inner,), f"[{fan_on}]")
    if pruned is not None:
        _weight("pruned", pruned, x, (size, inner), "[outer * inner] or [inner]")
    if table is not None and table.keys.device != x.device:
        raise ValueError(
            f"the table is on {table.keys.device}, x on {x.device}; make the table with Table.new(x.device)"
        )
    scale, shift = (None, None) if affine is None else _affine(affine, x, outer if affine_outer else inner, affine_on)
    if affine is not None and table is not None:
        raise ValueError("levels of x * scale + shift are not counted; pass affine or table, not both")
    full = pruned is not None and pruned.numel() == size
    rows = x.numel() // size
    return Call(x, rows, outer, inner, table, fan, fan_outer, pruned, full, scale, shift, affine_outer)


def _nothing(call: Call) -> Tally:
    """The counts of no row."""
    none = torch.zeros(0, dtype=torch.int64, device=call.x.device)
    return Tally(none, none, None if call.pruned is None else none, None if call.table is None else none.view(0, SLOTS))


def _converted(x: Tensor) -> Tensor:
    if x.dtype not in _EXACT:
        known = ", ".join(str(d).removeprefix("torch.") for d in (*_FLOATS, *_EXACT))
        raise TypeError(f"x is {x.dtype}, which is not counted; convert it to one of {known}")
    return x.to(_EXACT[x.dtype])


def _is_outer(name: str, axis: str) -> bool:
    if axis not in ("inner", "outer"):
        raise ValueError(f"{name}={axis!r}; it is the axis of the values, 'inner' or 'outer'")
    return axis == "outer"


def _placed(name: str, tensor: Tensor, device: torch.device) -> None:
    if not tensor.is_contiguous():
        raise ValueError(
            f"{name} of shape {list(tensor.shape)} has strides {list(tensor.stride())}; pass it contiguous, for "
            f"channels-last activations as x.permute(0, 2, 3, 1)"
        )
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device} but x is on {device}; move it with .to({str(device)!r})")


def _weight(name: str, weight: Tensor, x: Tensor, sizes: tuple[int, ...], meant: str) -> None:
    if weight.dtype != torch.int32:
        raise TypeError(f"{name} is {weight.dtype}, but fan-outs are int32; convert it with .int()")
    if weight.numel() not in sizes:
        allowed = " or ".join(str(n) for n in sizes)
        raise ValueError(f"{name} has {weight.numel()} entries, but {meant} needs {allowed}")
    _placed(name, weight, x.device)


def _affine(affine: tuple[Tensor, Tensor], x: Tensor, size: int, axis: str) -> tuple[Tensor, Tensor]:
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    for name, part in zip(("scale", "shift"), affine, strict=True):
        if part.dtype not in (torch.float32, real):
            raise TypeError(f"{name} is {part.dtype}, but x of {x.dtype} is scaled in {real}; convert it with .float()")
        if part.numel() != size:
            raise ValueError(f"{name} has {part.numel()} entries, but affine_on={axis!r} needs {size}")
        _placed(name, part, x.device)
    return affine[0].to(real), affine[1].to(real)
