"""Convolutions of frames with delays: counted by element at its rounded delay and place, not by taps.

A non-zero input at (t, i, h, w) on an element of its channel with delay d, row r and column c is one SOP if t + d < T
and the frame has an output there, that is if (h + padding - r) / stride is a whole number within 0 ... H' - 1, and so
for columns. Elements of one pair that fall on one place are counted each, as those of `DelayConv1d` are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spikeloom.energy.counts import Geometry
from spikeloom.energy.marks import Mark, Origin
from spikeloom.energy.rows import Rows
from spikeloom.energy.rules.elementwise import lead_rows
from spikeloom.energy.rules.measure import add_call, check_static, level_tally
from spikeloom.energy.scopes import ROLES, Role
from spikeloom.synapses import DelayConv2d

if TYPE_CHECKING:
    from spikeloom.energy.run import Run


@dataclass(frozen=True)
class _Reach:
    """Elements that bring an input place to an output, by their delay: int64 [K_t, P], P = channels x rows x columns.

    nonzero: those of them whose weight is not 0.
    """

    every: Tensor
    nonzero: Tensor

    @classmethod
    def of(cls, layer: DelayConv2d, frame: torch.Size, out: torch.Size) -> _Reach:
        """frame, out: [H, W] of input and output."""
        sizes = zip(frame, out, layer.size[1:], layer.stride, layer.padding, strict=True)
        rows, columns = (_meets(*axis).to(layer.weight.device) for axis in sizes)
        tables = []
        for counted in (torch.ones_like(layer.weight), layer.weight.detach() != 0):
            table = torch.einsum("dirc,hr,wc->dihw", _elements(layer, counted), rows, columns)
            tables.append(table.round().long().flatten(1))
        return cls(*tables)

    def within(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Elements with a delay below each of the numbers of steps [S], [S, P]: every one, and those with a weight."""
        sums = (torch.cat([t.new_zeros(1, t.shape[1]), t.cumsum(0)]) for t in (self.every, self.nonzero))
        every, nonzero = (s[steps.clamp(0, len(self.every))] for s in sums)
        return every, nonzero


def _elements(layer: DelayConv2d, counted: Tensor) -> Tensor:
    """Elements by delay, input channel, row and column of the kernel, float64 [K_t, I, K_h, K_w]."""
    outputs, per_group, _ = layer.weight.shape
    group = torch.arange(outputs, device=counted.device) // (outputs // layer.groups)
    channel = group[:, None] * per_group + torch.arange(per_group, device=counted.device)
    row, column = layer.places()
    place = (layer.delays() * layer.in_channels + channel[:, :, None]) * layer.size[1] + row
    place = place * layer.size[2] + column
    sizes = layer.size[0], layer.in_channels, layer.size[1], layer.size[2]
    found = torch.zeros(sizes, dtype=torch.float64, device=counted.device)
    return found.view(-1).index_add_(0, place.flatten(), counted.flatten().double()).view(sizes)


def _meets(size: int, out: int, taps: int, stride: int, padding: int) -> Tensor:
    """Whether input h meets tap r in an output, float64 [size, taps]."""
    place = torch.arange(size)[:, None] + padding - torch.arange(taps)
    return ((place % stride == 0) & (place >= 0) & (place < out * stride)).double()


def _finish(run: Run, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    assert isinstance(module, DelayConv2d)
    y = output[0] if isinstance(output, tuple) else output
    site = _count(run, run.scopes.name_of(module), module, args[0], y)
    run.mark_outputs(output, Mark(origin=Origin(site)))


def _count(run: Run, name: str, layer: DelayConv2d, x: Tensor, y: Tensor) -> Any:
    batch = run.current
    assert batch is not None
    T, B = batch.T, batch.B
    rows = lead_rows(run, x)
    if rows.lead == "whole" or x.shape[0] * x.shape[1] != rows.count or len(y) != len(x):
        raise ValueError(
            f"the delay layer {name} got {list(x.shape)} and gave {list(y.shape)}; delays are counted for "
            f"[T, B, C, H, W] = {[T, B, *x.shape[2:]]} and as many steps of output. A sequence that grows by a tail is "
            'counted without it: build the layer with tail="none", or call it with tail=False.'
        )
    site = run.site(name, "delay_frames")
    mark = run.marks.of(x)
    if mark.origin is not None:
        mark.origin.consumers += 1
    events, levels = level_tally(run, site, "a", x, mark, rows)
    check_static(run, site, [x], rows)
    length = len(x)
    begin = sum(call.rows.count // B for call in site.open if call.rows.lead == "step")
    with torch.no_grad():
        reach = _Reach.of(layer, x.shape[3:], y.shape[3:])
        fan, fan_nonzero = reach.within(T - torch.arange(begin, begin + length, device=x.device))
        values = x.reshape(length, B, -1)
        spikes = (values != 0).long()
        sop, sop_nz = ((spikes * each[:, None]).sum(-1).flatten() for each in (fan, fan_nonzero))
        by_value = torch.zeros_like(levels.sums)
        magnitudes = levels.table.magnitudes()
        for slot in levels.sums.any(0).nonzero().flatten().tolist():
            there = (values.abs().double() == magnitudes[slot].to(x.device)).long()
            by_value[:, slot] = (there * fan[:, None]).sum(-1).flatten()
        arriving = _arrivals(spikes, reach.every, begin, T)
        whole = int(fan.sum())
    bias = layer.bias is not None
    add_call(site, Rows("multi", T * B), {"arrival": arriving.flatten()})  # first: rules ask the last call for sizes
    add_call(
        site,
        rows,
        {"sop": sop, "sop_nz": sop_nz, "events": events},
        levels={"a": replace(levels, terms=sop, sums=by_value, rows=rows)},
        dense={
            "dense_exact": whole / length,
            "dense_nominal": layer.weight.numel() * math.prod(layer.size) * y[0, 0, 0].numel(),
            "in_numel": x[0, 0].numel(),
            "out_numel": y[0, 0].numel(),
            "bias_adds": y[0, 0].numel() * bias,
            "whole_run": whole * T / length,
        },
    )
    site.facts["operands"] = "param"
    sizes = layer.in_channels, layer.out_channels, layer.weight.numel(), layer.out_channels * bias
    site.geometry = Geometry(layer.size, (1, *layer.stride), layer.groups, *sizes, max_delay=layer.size[0] - 1)
    return site


def _arrivals(spikes: Tensor, reach: Tensor, begin: int, T: int) -> Tensor:
    """SOP by the step in which they arrive, [T, B], of inputs other than 0 [length, B, P] from step `begin` on."""
    length, B, _ = spikes.shape
    arriving = torch.zeros(T, B, dtype=torch.long, device=spikes.device)
    for d, elements in enumerate(reach):
        stay = min(length, T - begin - d)
        if stay > 0:
            arriving[begin + d : begin + d + stay] += (spikes[:stay] * elements).sum(-1)
    return arriving


ROLES[DelayConv2d] = Role(silent=True, finish=_finish)
