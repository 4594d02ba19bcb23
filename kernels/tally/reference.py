"""The meaning of `tally`, in plain torch on any device: several passes, and levels wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from spikeloom.kernels.tally.call import Call, Tally
from spikeloom.kernels.tally.table import (
    BEYOND_ONE,
    NEGATIVE,
    NON_FINITE,
    OVERFLOW,
    SLOTS,
    SMALL,
    Table,
    insert,
)


@torch.no_grad()
def run(call: Call) -> Tally:
    """Count."""
    x = call.x.reshape(call.rows, call.outer, call.inner)
    on = _counted(call, x) != 0
    events = on.sum((1, 2))
    terms = events if call.fan is None else _weighted(on, call.fan, call.fan_outer)
    pruned = None
    if call.pruned is not None and call.pruned_full:
        pruned = (on * call.pruned.reshape(call.outer, call.inner)).sum((1, 2))
    elif call.pruned is not None:
        pruned = _weighted(on, call.pruned, False)
    levels = None if call.table is None else _levels(call, x, on, call.table)
    return Tally(events, terms, pruned, levels)


def _counted(call: Call, x: Tensor) -> Tensor:
    if call.scale is None or call.shift is None:
        return x
    shape = (-1, 1) if call.affine_outer else (-1,)
    return x.to(call.scale.dtype) * call.scale.reshape(shape) + call.shift.reshape(shape)


def _weighted(on: Tensor, weight: Tensor, outer: bool) -> Tensor:
    return (on.sum(2 if outer else 1) * weight.reshape(-1)).sum(1)


def _levels(call: Call, x: Tensor, on: Tensor, table: Table) -> Tensor:
    """Sums [rows, SLOTS] per magnitude, after the table has taken in the new ones and its flags are set."""
    finite = x.isfinite()
    for flag, seen in ((NON_FINITE, ~finite), (NEGATIVE, x < 0), (BEYOND_ONE, on & (x != 1))):
        table.flags[flag] |= seen.any().to(table.flags.dtype)
    places = (on & finite).nonzero()
    magnitudes = x[tuple(places.T)].double().abs()
    distinct, which = magnitudes.unique(return_inverse=True)
    slots = _slots(distinct, table)[which]
    levels = torch.zeros(call.rows * SLOTS, dtype=torch.int64, device=x.device)
    if call.fan is None:
        weight = torch.ones_like(slots)
    else:
        weight = call.fan.reshape(-1)[places[:, 1 if call.fan_outer else 2]].to(torch.int64)
    levels.index_add_(0, places[:, 0] * SLOTS + slots, weight * (slots > 0))
    return levels.reshape(call.rows, SLOTS)


def _slots(distinct: Tensor, table: Table) -> Tensor:
    """The slots of distinct magnitudes, int64; 0 for those the table has no room for."""
    integer = (distinct <= SMALL) & (distinct == distinct.trunc())
    slots = torch.where(integer, distinct, 0.0).to(torch.int64)
    if table.flags[OVERFLOW]:
        return slots
    keys = table.keys.tolist()
    others = (~integer).nonzero().flatten()[:SLOTS]  # more than the table holds: enough to overflow it
    for place, bits in zip(others.tolist(), distinct[others].view(torch.int64).tolist(), strict=True):
        slots[place] = insert(keys, bits)
        if slots[place] == 0:
            table.flags[OVERFLOW] = 1
    table.keys.copy_(torch.tensor(keys))
    return slots
