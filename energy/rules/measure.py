"""What rules count with: tallies of operands, static inputs, names."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spikeloom.energy.marks import Mark
from spikeloom.energy.meter import is_whole
from spikeloom.energy.rows import Rows, arrange
from spikeloom.energy.sites import Call, Levels, Site
from spikeloom.kernels.tally import NEGATIVE, Table, Tally, tally

if TYPE_CHECKING:
    from spikeloom.energy.run import Run

_COARSE = (torch.float16, torch.bfloat16)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_KNOWN = (nn.Linear, nn.modules.conv._ConvNd, nn.Bilinear)


def rows_of(run: Run, leading: int) -> Rows:
    """How an operand with this many leading rows falls into steps and samples, by the running module."""
    assert run.current is not None
    scope = run.scopes.now
    return arrange(run.current, scope.lead, scope.order, leading)


def lay(run: Run, x: Tensor, rows: Rows) -> tuple[Tensor, Rows]:
    """x with its elements grouped by row in memory, in whatever order inside of a row, and the order of its rows.

    No dense layout is copied: channels-last, and batch-first memory seen time-first, are counted as they lie.
    """
    if x.is_contiguous():
        return x, rows
    batch = run.current
    assert batch is not None
    candidates = [(x, rows)]
    if batch.order_of(x.shape) == rows.order and rows.count == batch.steps * batch.B:
        candidates.append((x.transpose(0, 1), replace(rows, order=rows.order[::-1])))
    for seen, order in candidates:
        kept, product = 0, 1
        while product < rows.count and kept < seen.dim():
            product *= seen.shape[kept]
            kept += 1
        if product % rows.count == 0:
            inside = seen.permute(*range(kept), *sorted(range(kept, seen.dim()), key=seen.stride, reverse=True))
            if inside.is_contiguous():
                return inside, order
    return x.contiguous(), rows


def ordered(run: Run, counts: Tensor, found: Rows, wanted: Rows) -> Tensor:
    """Counts [rows] of one order of T and B in the other."""
    if found.order == wanted.order:
        return counts
    batch = run.current
    assert batch is not None
    steps = found.count // batch.B
    sizes = (steps, batch.B) if found.order == "TB" else (batch.B, steps)
    return counts.view(sizes).t().reshape(-1)


def level_tally(run: Run, site: Site, operand: str, x: Tensor, mark: Mark, rows: Rows) -> tuple[Tensor, Levels]:
    """Events of x per row, and by value. The same content is counted once, however many layers read it."""
    where = "all" if is_whole(x) else None
    key = (where, x.dtype, rows.lead, rows.count)
    if where is None or key not in mark.memo:
        laid, order = lay(run, x, rows)
        table = table_of(site, operand, x.device)
        counted = tally(laid, 1, laid.numel() // rows.count, table=table)
        found = counted.events, levels_of(counted, table, x, mark, order)
        if where is not None:
            mark.memo[key] = found
    else:
        found = mark.memo[key]
    return ordered(run, found[0], found[1].rows, rows), found[1]


def levels_of(counted: Tally, table: Table, x: Tensor, mark: Mark, rows: Rows) -> Levels:
    """The counts by value with what is known of the tensor."""
    assert counted.levels is not None
    return Levels(table, counted.terms, counted.levels, rows, mark.network_input, x.dtype in _COARSE)


def table_of(site: Site, operand: str, device: torch.device) -> Table:
    """The site's table of values for an operand, on a device."""
    key = f"table.{operand}.{device}"
    if key not in site.facts:
        site.facts[key] = Table.new(device)
    table: Table = site.facts[key]
    return table


def events_of(run: Run, x: Tensor, rows: Rows) -> Tensor:
    """Non-zero elements per row, int64 [rows]."""
    laid, order = lay(run, x, rows)
    return ordered(run, tally(laid, 1, laid.numel() // rows.count).events, order, rows)


def separate_events(
    run: Run, site: Site, found: Sequence[tuple[Tensor, Mark]], rows: Rows
) -> tuple[Tensor, Tensor] | None:
    """Events of two tensors, if it is known without waiting for a device that no sum of their elements cancels."""
    (a, _), (b, _) = found
    if a.is_cuda or a.shape != b.shape or a.dtype != b.dtype:
        return None
    tallies = [level_tally(run, site, f"in{i}", x, mark, rows) for i, (x, mark) in enumerate(found)]
    if any(levels.table.flags[NEGATIVE] for _, levels in tallies):
        return None
    return tallies[0][0], tallies[1][0]


def pair_events(run: Run, site: Site, found: Sequence[tuple[Tensor, Mark]], rows: Rows) -> tuple[Tensor, Tensor]:
    """Elements, after broadcasting, at which both of two tensors are non-zero, and at which any of them is; [rows]."""
    (a, left), (b, right) = found
    shape = torch.broadcast_shapes(a.shape, b.shape)
    mask = torch.empty(shape, dtype=torch.float16, device=a.device)
    either = events_of(run, torch.logical_or(a, b, out=mask), rows)
    if a.shape == b.shape:  # their own events are usually known already
        of_a, _ = level_tally(run, site, "in0", a, left, rows)
        of_b, _ = level_tally(run, site, "in1", b, right, rows)
        return of_a + of_b - either, either
    return events_of(run, torch.logical_and(a, b, out=mask), rows), either


def check_static(run: Run, site: Site, operands: Sequence[Tensor], rows: Rows) -> None:
    """Follow whether the operands are the same at every step, without waiting for the device once they were not."""
    batch = run.current
    assert batch is not None
    if site.static is False or batch.T == 1 or rows.lead == "whole":
        site.static = False
        return
    with torch.no_grad():
        if rows.lead == "multi":
            axis = rows.order.index("T")
            sizes = (batch.T, batch.B) if axis == 0 else (batch.B, batch.T)
            for x in operands:
                steps = x.reshape(*sizes, -1)
                first = steps.select(axis, 0)
                if site.static is None and not torch.equal(first[0], steps.select(axis, 1)[0]):
                    site.static, site.static_flags = False, []
                    return
                site.static_flags.append((steps == first.unsqueeze(axis)).all())
            return
        length = rows.count // batch.B
        if site.first_step is None:
            site.first_step = [_step(x, length, 0).clone() for x in operands]
        pairs = [
            (held, _step(x, length, t))
            for x, held in zip(operands, site.first_step, strict=True)
            for t in range(length)
        ]
        if not all(torch.equal(held, step) for held, step in pairs):
            site.static, site.first_step = False, None
        else:
            site.static_flags.append(torch.ones((), dtype=torch.bool, device=operands[0].device))


def _step(x: Tensor, length: int, t: int) -> Tensor:
    """Step t of an operand that holds `length` steps."""
    return x.reshape(length, -1)[t]


def param_name(run: Run, weight: Mark, op: str) -> str:
    """The name of a linear operation: its module's, its parameter's, or its place in the running module."""
    scope = run.scopes.now
    if isinstance(scope.module, _KNOWN):
        return scope.name or type(scope.module).__name__.lower()
    if weight.name is not None and not weight.name.startswith("weight_"):
        return weight.name.removesuffix(".weight")
    return place_name(run, op)


def place_name(run: Run, op: str) -> str:
    """The running module and the operation; further ones of a kind in one call of the module are numbered."""
    scope = run.scopes.now
    if scope.name and op != "matmul" and not scope.calls[op] and _is_operation(scope.module):
        scope.calls[op] += 1
        return scope.name
    index = scope.calls[op]
    scope.calls[op] += 1
    name = f"{scope.name}.{op}" if scope.name else op
    return f"{name}_{index}" if index else name


def _is_operation(module: nn.Module | None) -> bool:
    """Is the module one operation of torch, such as a pool, with or without a subclass around it?"""
    if module is None or isinstance(module, _CONTAINERS):
        return False
    return any(
        base.__module__.startswith("torch.nn.modules.") for base in type(module).__mro__ if base is not nn.Module
    )


def on_device(site: Site, name: str, key: Hashable, array: Callable[[], NDArray[np.int32]], like: Tensor) -> Tensor:
    """An array on a tensor's device, kept at the site until its key changes."""
    full = (key, like.device)
    if site.facts.get(f"{name}.key") != full:
        site.facts[f"{name}.key"], site.facts[name] = full, torch.from_numpy(array()).to(like.device)
    kept: Tensor = site.facts[name]
    return kept


def add_call(site: Site, rows: Rows, counts: dict[str, Tensor], **rest: Any) -> Call:
    """Leave a call at a site, to be fetched when the pass ends."""
    call = Call(rows, counts, **rest)
    site.open.append(call)
    return call


def numel_per_row(shape: Sequence[int], rows: Rows) -> int:
    """Elements of one row."""
    return math.prod(shape) // rows.count
