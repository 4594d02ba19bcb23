"""Roles of torch's and the project's own modules, and delay layers."""

from __future__ import annotations

from collections.abc import Callable
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
from spikeloom.neurons import Neuron, Recurrent
from spikeloom.synapses import DelayConv1d, NormNeuron, layers

if TYPE_CHECKING:
    from spikeloom.energy.run import Run


def _fold_order(x: Tensor) -> str:
    """How `synapses.over_time` folds an input [T, B, ...]."""
    batch_first = x.dim() > 1 and x.stride(1) > x.stride(0) and x.shape[0] > 1 and x.shape[1] > 1
    return "BT" if batch_first else "TB"


def _samples(module: nn.Module, x: Tensor) -> int | None:
    """Samples of an attention layer's input; inside, torch puts the sequence first."""
    if x.dim() != 3:
        return None
    return x.shape[0] if getattr(module, "batch_first", False) else x.shape[1]


ROLES[Recurrent] = Role(quiet=True)
ROLES[Neuron] = Role(opaque=True)
ROLES[NormNeuron] = Role(opaque=True)
ROLES[nn.MultiheadAttention] = Role(inner=_samples)
for _layer in (
    layers.Conv1d,
    layers.Conv2d,
    layers.ConvTranspose2d,
    layers.BatchNorm1d,
    layers.BatchNorm2d,
    layers.AvgPool2d,
    layers.MaxPool2d,
    layers.AdaptiveAvgPool2d,
):
    ROLES[_layer] = Role(order=_fold_order)

Delays = Callable[[Any], tuple[Tensor, Tensor, int]]


@dataclass(frozen=True)
class _Synapses:
    """What a delay layer adds up: weights and whole-number delays [out, in], or [elements, in] with several per pair.

    present: which of them there are; None: all. outputs: channels, if not one per row. elements: those that the dense
    kernel has, if not all. bias: whether one is added.
    """

    weight: Tensor
    delays: Tensor
    longest: int
    present: Tensor | None = None
    outputs: int | None = None
    elements: int | None = None
    bias: bool = False


def register_delays(kind: type[nn.Module], describe: Delays) -> None:
    """Have a class of delay layers counted by synapse, whatever it computes inside.

    A spike at t on a synapse with delay d is one SOP if t + d < T.

    Args:
        kind: the class; it maps x [T, B, in] to [T, B, out], y_t[o] = sum_i w[o, i] x_(t - d[o, i])[i].
        describe: module -> (weight [out, in], whole-number delays [out, in], longest possible delay).
    """
    _register(kind, lambda module: _Synapses(*describe(module)))


def _register(kind: type[nn.Module], describe: Callable[[Any], _Synapses]) -> None:
    def finish(run: Run, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        site = _count_delays(run, run.scopes.name_of(module), args[0], describe(module))
        run.mark_outputs(output, Mark(origin=Origin(site)))

    ROLES[kind] = Role(silent=True, finish=finish)


def _of_elements(layer: DelayConv1d) -> _Synapses:
    """Every element of a DCLS layer as one synapse, at the delay that rounding gives it, in rows [out c, in]."""
    outputs, per_group, _ = layer.weight.shape
    channels = torch.arange(per_group, device=layer.weight.device)
    group = torch.arange(outputs, device=layer.weight.device) // (outputs // layer.groups)
    places = (group[:, None] * per_group + channels)[:, :, None].expand_as(layer.weight)

    def dense(values: Tensor) -> Tensor:
        whole = values.new_zeros(outputs, layer.in_channels, layer.kernel_count).scatter(1, places, values)
        return whole.transpose(1, 2).flatten(0, 1)

    delays = layer.delays()
    present = delays >= 0  # of an even kernel an element may lie outside
    if isinstance(layer._buffers.get("mask"), Tensor):
        present = present & layer.get_buffer("mask")
    return _Synapses(
        dense(layer.weight.detach()),
        dense(delays.clamp(min=0)),
        layer.size[0] - 1,
        dense(present),
        outputs,
        layer.weight.numel(),
        layer.bias is not None,
    )


_register(DelayConv1d, _of_elements)


def _count_delays(run: Run, name: str, x: Tensor, synapses: _Synapses) -> Any:
    batch = run.current
    assert batch is not None
    T, B = batch.T, batch.B
    weight, delays, longest = synapses.weight, synapses.delays, synapses.longest
    n_in, n_out = weight.shape[1], synapses.outputs or weight.shape[0]
    rows = lead_rows(run, x)
    if rows.lead == "whole" or x.shape[-1] != n_in or x.numel() != rows.count * n_in:
        raise ValueError(
            f"the delay layer {name} got {list(x.shape)}; delays are counted for [T, B, in] = {[T, B, n_in]}. "
            "A sequence that grows by a tail is counted without it: model(x, tail=False)."
        )
    if delays.shape != weight.shape or int(delays.min()) < 0 or int(delays.max()) > longest:
        raise ValueError(f"delays of {name}: expected [out, in] = {list(weight.shape)} within 0 ... {longest}")
    present = torch.ones_like(delays, dtype=torch.bool) if synapses.present is None else synapses.present
    site = run.site(name, "delay_linear")
    mark = run.marks.of(x)
    if mark.origin is not None:
        mark.origin.consumers += 1
    events, levels = level_tally(run, site, "a", x, mark, rows)
    check_static(run, site, [x], rows)
    length = rows.count // B
    begin = sum(call.rows.count // B for call in site.open if call.rows.lead == "step")
    with torch.no_grad():
        delays = delays.to(x.device).long()
        values = x.reshape(length, B, n_in)
        spikes = (values != 0).long()
        steps = torch.arange(begin, begin + length, device=x.device)
        present = present.to(x.device)
        arrives = (steps[:, None, None] + delays < T) & present  # [length, out, in]
        fan, fan_nonzero = arrives.sum(1), (arrives & (weight != 0)).sum(1)
        by_value = torch.zeros_like(levels.sums)
        magnitudes = levels.table.magnitudes()
        for slot in levels.sums.any(0).nonzero().flatten().tolist():
            there = (values.abs().double() == magnitudes[slot].to(x.device)).long()
            by_value[:, slot] = (there * fan[:, None]).sum(-1).flatten()
        sop, sop_nz = ((spikes * each[:, None]).sum(-1).flatten() for each in (fan, fan_nonzero))
        counts = {"sop": sop, "sop_nz": sop_nz, "events": events}
        arriving = _arrivals(spikes, torch.where(present, delays, longest + 1), longest, begin, T)
    add_call(site, Rows("multi", T * B), {"arrival": arriving.flatten()})
    whole = int(arrives.sum())
    add_call(
        site,
        rows,
        counts,
        levels={"a": replace(levels, terms=counts["sop"], sums=by_value, rows=rows)},
        dense={
            "dense_exact": whole / length,
            "dense_nominal": int(synapses.elements or weight.numel()) * (longest + 1),
            "in_numel": n_in,
            "out_numel": n_out,
            "bias_adds": n_out * synapses.bias,
            "whole_run": whole * T / length,
        },
    )
    site.facts["operands"] = "param"
    sizes = n_in, n_out, int(present.sum()), n_out * synapses.bias
    site.geometry = Geometry((longest + 1,), (1,), 1, *sizes, max_delay=longest)
    return site


def _arrivals(spikes: Tensor, delays: Tensor, longest: int, begin: int, T: int) -> Tensor:
    """SOP by the step in which they arrive, [T, B], of spikes [length, B, in] that begin at step `begin`."""
    length, B, _ = spikes.shape
    synapses = torch.stack([(delays == d).sum(0) for d in range(longest + 1)])  # [delay, in]
    arriving = torch.zeros(T, B, dtype=torch.long, device=spikes.device)
    for d in range(longest + 1):
        stay = min(length, T - begin - d)
        if stay > 0:
            arriving[begin + d : begin + d + stay] += (spikes[:stay] * synapses[d]).sum(-1)
    return arriving
