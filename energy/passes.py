"""Passes: what one call of the network left at its sites, fetched at once, and added up when somebody asks.

At the end of a pass all counts go from their device to the host in one transfer and are kept as one flat array. Passes
of one structure (`Layout`) are added up together, so a pass costs its transfer and little else. Nothing of an
activation is kept.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from spikeloom.energy.counts import IntArray
from spikeloom.energy.kinds import Values
from spikeloom.energy.rows import Batch, Rows, to_steps
from spikeloom.energy.sites import Levels, Site
from spikeloom.kernels.tally import BEYOND_ONE, NEGATIVE, NON_FINITE, OVERFLOW
from spikeloom.kernels.tally.table import SMALL

_CHECKED = ("a", "a+", "b", "spikes")
"""Operands that must be finite; scores may be masked with infinities."""
_BY_STEP = ("a", "spikes")
"""Operands of which units are counted; of the others the set of values is enough."""


@dataclass(frozen=True)
class Slot:
    """Where in the flat array a call's count lies, and what it is multiplied by."""

    rows: Rows
    where: slice
    factor: int = 1


@dataclass(eq=False)
class Layout:
    """The structure of a pass: per site and count, the slots that are added up."""

    batch: Batch
    counts: dict[Site, dict[str, list[Slot]]]
    terms: dict[tuple[Site, str], list[tuple[Slot, int]]]
    """Per site and operand, the slots of the counts of all values, and which of the pass's `Levels` they are of."""


@dataclass(eq=False)
class Pass:
    """One pass: its structure, its counts, and by `Levels` the table's flags and, beyond 0 and 1, counts by value."""

    index: int
    layout: Layout
    flat: IntArray
    flags: IntArray
    found: dict[int, dict[float, IntArray]]
    inputs: list[tuple[bool, bool]]


@dataclass
class Passes:
    """All passes of a run."""

    layouts: dict[Hashable, Layout] = field(default_factory=dict)
    waiting: list[Pass] = field(default_factory=list)

    def close(self, sites: Sequence[Site], index: int, batch: Batch) -> None:
        """Fetch the open calls of all sites and keep them as pass `index`.

        Raises:
            ValueError: an operand held a NaN or an infinity, or is of another size than in earlier passes; the message
                names the layer.
        """
        busy = [site for site in sites if site.open]
        tensors, levels, key = _collect(busy, batch)
        flat = _flat(list(tensors.values()))
        held = list(levels.values())
        flags = _flat([entry.table.flags for entry in held]).reshape(-1, 4)
        _check_finite(busy, levels, flags)
        layout = self.layouts.get(key)
        if layout is None:
            layout = self.layouts[key] = _layout(busy, batch, tensors, levels)
        for site in busy:
            _settle(site)
        split = [i for i, flag in enumerate(flags) if flag[BEYOND_ONE] and not flag[OVERFLOW]]
        found = dict(zip(split, _by_value([held[i] for i in split]), strict=True))
        self.waiting.append(
            Pass(index, layout, flat, flags, found, [(entry.network_input, entry.coarse) for entry in held])
        )
        for site in busy:
            site.open = []

    def gather(self) -> None:
        """Add up the passes that wait, into their sites."""
        groups: dict[Layout, list[Pass]] = {}
        for entry in self.waiting:
            groups.setdefault(entry.layout, []).append(entry)
        self.waiting = []
        for layout, passes in groups.items():
            stacked = np.stack([entry.flat for entry in passes])
            for site, named in layout.counts.items():
                for name, slots in named.items():
                    calls = [(slot.rows, {"": stacked[:, slot.where] * slot.factor}) for slot in slots]
                    totals, known = to_steps(calls, layout.batch)
                    site.known = site.known and known
                    for entry, array in zip(passes, totals[""], strict=True):
                        site.spans.setdefault(name, {})[entry.index] = array
            for (site, operand), slots_of in layout.terms.items():
                for entry in passes:
                    _gather_values(site, operand, entry, slots_of)


def _collect(busy: Sequence[Site], batch: Batch) -> tuple[dict[int, Tensor], dict[int, Levels], Hashable]:
    """The count tensors and levels of a pass, each once, and a key of the pass's structure."""
    tensors: dict[int, Tensor] = {}
    levels: dict[int, Levels] = {}
    numbers: dict[int, int] = {}
    key: list[Hashable] = [batch]
    for site in busy:
        for call in site.open:
            ids = []  # which calls share which tensors is part of the structure
            for tensor in (*call.counts.values(), *(entry.terms for entry in call.levels.values())):
                tensors.setdefault(id(tensor), tensor)
                ids.append(id(tensor))
            for entry in call.levels.values():
                levels.setdefault(id(entry), entry)
                ids.append(id(entry))
            shared = [numbers.setdefault(i, len(numbers)) for i in ids]
            key.append((id(site), call.rows, *call.counts, *call.levels, *call.dense.values(), *shared))
    return tensors, levels, tuple(key)


def _layout(busy: Sequence[Site], batch: Batch, tensors: dict[int, Tensor], levels: dict[int, Levels]) -> Layout:
    ends = np.cumsum([tensor.numel() for tensor in tensors.values()]).tolist()
    where = {key: slice(end - t.numel(), end) for (key, t), end in zip(tensors.items(), ends, strict=True)}
    number = {key: i for i, key in enumerate(levels)}
    layout = Layout(batch, {}, {})
    for site in busy:
        named = layout.counts.setdefault(site, {})
        for call in site.open:
            for name, tensor in call.counts.items():
                slot = Slot(call.rows, where[id(tensor)], call.factors.get(name, 1))
                named.setdefault(name, []).append(slot)
            for operand, entry in call.levels.items():
                slot = Slot(entry.rows, where[id(entry.terms)], call.factors.get(f"levels.{operand}", 1))
                layout.terms.setdefault((site, operand), []).append((slot, number[id(entry)]))
        _check_sizes(site, batch)
    return layout


def _check_sizes(site: Site, batch: Batch) -> None:
    """Settle what holds for one step of one sample: the sum over calls, averaged over steps."""
    dense: dict[str, float] = {}
    steps = sum(call.rows.count // batch.B for call in site.open if call.rows.lead == "step")
    site.once = steps == 1 < batch.T and all(call.rows.lead == "step" for call in site.open)
    for call in site.open:
        weight = {"multi": batch.T * batch.B, "step": call.rows.count, "whole": 1}[call.rows.lead]
        for name, number in call.dense.items():
            dense[name] = dense.get(name, 0) + number * weight
    whole = batch.B if site.once else batch.T * batch.B  # divided once: batches of other sizes round to the same
    dense = {name: total / whole for name, total in dense.items()}
    dense = {name: round(number) if abs(number - round(number)) < 1e-6 else number for name, number in dense.items()}
    if site.dense and site.dense != dense:
        raise ValueError(
            f"{site.name or site.op} worked on {dense} in this batch and on {site.dense} in earlier ones; inputs of "
            "one run must have one size and number of time steps: count different sizes in runs of their own"
        )
    per_step = sum(call.rows.lead != "step" and bool(call.dense) for call in site.open) + -(-steps // batch.T)
    site.dense, site.calls_per_step = dense, max(site.calls_per_step, per_step)


def _settle(site: Site) -> None:
    """Judge what holds for all passes: whether a normalisation folds, whether the input changed over time."""
    if (origins := site.facts.pop("origins", None)) is not None:
        lone = all(
            o is not None and o.consumers == sum(p is o for p in origins) and o.site.facts["operands"] == "param"
            for o in origins
        )
        site.facts["folds_into"] = origins[0].site.name if lone and site.facts.get("folds_into", "") != () else ()
    if site.static_flags:
        unchanged = bool(torch.stack(site.static_flags).all())
        site.static = unchanged and site.static is not False and not site.once
    site.static_flags, site.first_step = [], None


def _gather_values(site: Site, operand: str, entry: Pass, slots: Sequence[tuple[Slot, int]]) -> None:
    values = site.values.setdefault(operand.removesuffix("+"), Values())
    for _, number in slots:
        values.analogue |= bool(entry.flags[number][OVERFLOW])
        values.negative |= bool(entry.flags[number][NEGATIVE])
        values.network_input |= entry.inputs[number][0]
        values.coarse |= entry.inputs[number][1]
    if values.analogue:
        site.level_spans.pop(operand, None)
        return
    batch = entry.layout.batch
    named = []
    for slot, number in slots:
        by_value = entry.found.get(number, {1.0: entry.flat[slot.where]})
        named.append((slot.rows, {str(value): array[None] * slot.factor for value, array in by_value.items()}))
        values.levels |= {value for value, array in by_value.items() if array.any()}
    if operand in _BY_STEP and any(number in entry.found for _, number in slots):
        kept = site.level_spans.setdefault(operand, {})
        totals, _ = to_steps(named, batch)
        kept.setdefault(1.0, {})[entry.index] = np.zeros((batch.T, batch.B), np.int64)
        for name, array in totals.items():
            kept.setdefault(float(name), {})[entry.index] = array[0]


def _flat(tensors: Sequence[Tensor]) -> IntArray:
    """All tensors as one array, with one transfer per device."""
    if not tensors:
        return np.zeros(0, np.int64)
    devices = {tensor.device for tensor in tensors}
    if len(devices) == 1:
        joined = torch.cat([tensor.reshape(-1) for tensor in tensors])
    else:
        joined = torch.cat([tensor.reshape(-1).cpu() for tensor in tensors])
    return joined.to(torch.int64).cpu().numpy()


def _by_value(split: Sequence[Levels]) -> list[dict[float, IntArray]]:
    """|value| -> counts [rows] of tensors of more than zeros and ones, with three transfers for all of a device."""
    results: list[dict[float, IntArray]] = [{}] * len(split)
    for device in {levels.sums.device for levels in split}:
        places = [i for i, levels in enumerate(split) if levels.sums.device == device]
        keys = torch.stack([split[i].table.keys for i in places]).cpu().numpy().view(np.float64)
        used = torch.stack([split[i].sums.any(0) for i in places]).cpu().numpy()
        slots = [np.flatnonzero(mask) for mask in used]
        columns = [split[i].sums[:, torch.from_numpy(found).to(device)] for i, found in zip(places, slots, strict=True)]
        flat, start = _flat(columns), 0
        for i, found, column, key in zip(places, slots, columns, keys, strict=True):
            array = flat[start : start + column.numel()].reshape(column.shape)
            start += column.numel()
            results[i] = {
                float(slot) if slot <= SMALL else float(key[slot]): array[:, n] for n, slot in enumerate(found)
            }
    return results


def _check_finite(sites: Sequence[Site], levels: dict[int, Levels], flags: IntArray) -> None:
    bad = {key for key, flag in zip(levels, flags, strict=True) if flag[NON_FINITE]}
    calls = [(site, call) for site in sites for call in site.open] if bad else []
    for site, call in calls:
        if any(id(entry) in bad for operand, entry in call.levels.items() if operand in _CHECKED):
            raise ValueError(
                f"{site.name or site.op} ({site.op}) read a NaN or an infinity: energy cannot be counted for a "
                "network that has diverged; look at its weights and inputs first"
            )
