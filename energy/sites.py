"""`Site`: one place of the network where something is counted, and what it counted so far.

A pass through the network leaves calls (counts still on their device); `close_pass` fetches them all at once and adds
them up per step and sample. Nothing of an activation is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikeloom.energy.counts import Geometry, IntArray
from spikeloom.energy.kinds import Values
from spikeloom.energy.rows import Batch, Rows, to_steps
from spikeloom.kernels.tally import Table
from spikeloom.kernels.tally.table import SMALL

_CHECKED = ("a", "a+", "b", "spikes")
"""Operands that must be finite; scores may be masked with infinities."""
_BY_STEP = ("a", "spikes")
"""Operands of which units are counted; of the others the set of values is enough."""


@dataclass(eq=False)
class Levels:
    """Counts by distinct |value| of one tensor, as the kernel left them, and what is known of the tensor.

    Attributes:
        terms: the counts of all values together, [rows]; sums: the same per slot of the table, [rows, SLOTS].
        flags: overflow, non-finite, negative, beyond one; empty until fetched.
        found: |value| -> counts [rows], once fetched; empty if there were too many values.
    """

    table: Table
    terms: Tensor
    sums: Tensor
    rows: Rows
    network_input: bool
    coarse: bool
    flags: tuple[int, ...] = ()
    found: dict[float, IntArray] = field(default_factory=dict)


@dataclass
class Call:
    """One call of a site. `counts`: device tensors [rows]; `factors`: what each is multiplied by on the host."""

    rows: Rows
    counts: dict[str, Tensor] = field(default_factory=dict)
    factors: dict[str, int] = field(default_factory=dict)
    levels: dict[str, Levels] = field(default_factory=dict)
    dense: dict[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class Site:
    """Everything counted at one place, over all passes.

    Attributes:
        op: what runs here; `facts`: further facts of the place, set by its rule.
        dense: numbers that hold for one step of one sample.
        static: the operand was the same at every step so far; None before two steps were seen.
        spans: the arrays of closed passes, by name; `values`: the values of each operand.
        level_spans: counts by |value|: operand -> value -> {pass: array}.
    """

    name: str
    op: str
    facts: dict[str, Any] = field(default_factory=dict)
    geometry: Geometry = field(default_factory=Geometry)
    dense: dict[str, float] = field(default_factory=dict)
    calls_per_step: int = 0
    static: bool | None = None
    static_flags: list[Tensor] = field(default_factory=list)
    first_step: list[Tensor] | None = None
    open: list[Call] = field(default_factory=list)
    spans: dict[str, dict[int, IntArray]] = field(default_factory=dict)
    known: bool = True
    values: dict[str, Values] = field(default_factory=dict)
    level_spans: dict[str, dict[float, dict[int, IntArray]]] = field(default_factory=dict)

    def array(self, name: str, sizes: Sequence[tuple[int, int]]) -> IntArray:
        """A count over all passes, [T, N], zero in passes without a call; [1, 1] if steps and samples are unknown."""
        return self._joined(self.spans.get(name, {}), sizes)

    def _joined(self, spans: dict[int, IntArray], sizes: Sequence[tuple[int, int]]) -> IntArray:
        if not self.known:
            return np.array([[sum(int(array.sum()) for array in spans.values())]], np.int64)
        parts = [spans.get(i, np.zeros(size, np.int64)) for i, size in enumerate(sizes)]
        return np.concatenate(parts, axis=1)

    def level_arrays(self, operand: str, total: str, sizes: Sequence[tuple[int, int]]) -> dict[float, IntArray]:
        """Counts by |value|, each [T, N]; the passes in which all values were 0 and 1 count under 1."""
        by_value = self.level_spans.get(operand, {})
        ones = by_value.get(1.0, {})
        plain = {index: array for index, array in self.spans.get(total, {}).items() if index not in ones}
        spans = {**by_value, 1.0: {**ones, **plain}}
        return {value: self._joined(held, sizes) for value, held in spans.items()}


def close_pass(sites: Sequence[Site], index: int, batch: Batch) -> None:
    """Fetch the open calls of all sites, add them up and file them as pass `index`.

    Raises:
        ValueError: an operand held a NaN or an infinity; the message names the layer.
    """
    busy = [site for site in sites if site.open]
    _fetch_levels([levels for site in busy for call in site.open for levels in call.levels.values()])
    _check_finite(busy)
    columns = [tensor for site in busy for call in site.open for tensor in call.counts.values()]
    flags = [flag for site in busy for flag in site.static_flags]
    fetched = iter(fetch([*columns, *[flag.to(torch.int64).reshape(1) for flag in flags]]))
    held = {id(call): {name: next(fetched) for name in call.counts} for site in busy for call in site.open}
    for site in busy:
        if (origins := site.facts.pop("origins", None)) is not None:
            lone = all(o is not None and o.consumers == 1 and o.site.facts["operands"] == "param" for o in origins)
            site.facts["folds_into"] = origins[0].site.name if lone and site.facts.get("folds_into", "") != () else ()
        unchanged = [bool(next(fetched)[0]) for _ in site.static_flags]
        if unchanged:
            site.static = all(unchanged) and site.static is not False
        site.static_flags, site.first_step = [], None
        _file(site, index, batch, held)
        site.open = []


def _file(site: Site, index: int, batch: Batch, held: dict[int, dict[str, IntArray]]) -> None:
    numbered = [(call.rows, held[id(call)], call) for call in site.open]
    scaled = [(rows, {n: a * call.factors.get(n, 1) for n, a in arrays.items()}) for rows, arrays, call in numbered]
    totals, known = to_steps(scaled, batch)
    site.known = site.known and known
    for name, array in totals.items():
        site.spans.setdefault(name, {})[index] = array
    for operand in {name for call in site.open for name in call.levels}:
        _file_levels(site, operand, index, batch)
    steps = sum(call.rows.count // batch.B for call in site.open if call.rows.lead == "step")
    per_step = sum(call.rows.lead != "step" and bool(call.dense) for call in site.open) + -(-steps // batch.T)
    dense: dict[str, float] = {}
    for call in site.open:
        share = {"multi": 1.0, "step": call.rows.count / batch.B / batch.T, "whole": 1 / (batch.T * batch.B)}
        for name, number in call.dense.items():
            dense[name] = dense.get(name, 0) + number * share[call.rows.lead]
    dense = {name: round(number) if abs(number - round(number)) < 1e-6 else number for name, number in dense.items()}
    if site.dense and site.dense != dense:
        raise ValueError(
            f"{site.name or site.op} worked on {dense} in this batch and on {site.dense} in earlier ones; inputs of one "
            "run must have one size and number of time steps: count different sizes in runs of their own"
        )
    site.dense, site.calls_per_step = dense, max(site.calls_per_step, per_step)


def _file_levels(site: Site, operand: str, index: int, batch: Batch) -> None:
    values = site.values.setdefault(operand.removesuffix("+"), Values())
    held = [(call, call.levels[operand]) for call in site.open if operand in call.levels]
    for _, levels in held:
        overflow, _, negative, _ = levels.flags
        values.analogue |= bool(overflow)
        values.negative |= bool(negative)
        values.network_input |= levels.network_input
        values.coarse |= levels.coarse
    if values.analogue:
        site.level_spans.pop(operand, None)
        return
    factor = next((call.factors.get(f"levels.{operand}", 1) for call, _ in held), 1)
    named = [(levels.rows, {str(v): a * factor for v, a in levels.found.items()}) for _, levels in held]
    present = {float(name): array for name, array in to_steps(named, batch)[0].items() if array.any()}
    values.levels |= set(present)
    if operand in _BY_STEP and any(levels.flags[3] for _, levels in held):
        kept = site.level_spans.setdefault(operand, {})
        kept.setdefault(1.0, {})[index] = np.zeros((batch.T, batch.B), np.int64)
        for value, array in present.items():
            kept.setdefault(value, {})[index] = array


def fetch(tensors: Sequence[Tensor]) -> list[IntArray]:
    """Device tensors as arrays, with one transfer per device."""
    results: list[IntArray] = [np.zeros(0, np.int64)] * len(tensors)
    by_device: dict[torch.device, list[int]] = {}
    for position, tensor in enumerate(tensors):
        by_device.setdefault(tensor.device, []).append(position)
    for positions in by_device.values():
        flat = torch.cat([tensors[p].reshape(-1) for p in positions]).cpu().numpy()
        ends = np.cumsum([tensors[p].numel() for p in positions])
        for position, part in zip(positions, np.split(flat, ends[:-1]), strict=True):
            results[position] = part
    return results


def _fetch_levels(all_levels: Sequence[Levels]) -> None:
    """Fetch flags and counts by value; tensors of zeros and ones, the rule, cost no transfer of their own."""
    fresh = list({id(levels): levels for levels in all_levels if not levels.flags}.values())
    flags = fetch([levels.table.flags.to(torch.int64) for levels in fresh])
    for levels, flag in zip(fresh, flags, strict=True):
        levels.flags = tuple(int(f) for f in flag)
    plain = [levels for levels in fresh if not levels.flags[0] and not levels.flags[3]]
    for levels, terms in zip(plain, fetch([levels.terms for levels in plain]), strict=True):
        levels.found = {1.0: terms}
    for levels in fresh:
        if levels.flags[3] and not levels.flags[0]:
            keys = levels.table.keys.cpu().numpy().view(np.float64)
            slots = np.flatnonzero(levels.sums.any(0).cpu().numpy())
            columns = levels.sums[:, torch.from_numpy(slots).to(levels.sums.device)].cpu().numpy()
            values = [float(slot) if slot <= SMALL else float(keys[slot]) for slot in slots]
            levels.found = {value: columns[:, i] for i, value in enumerate(values)}


def _check_finite(sites: Sequence[Site]) -> None:
    for site in sites:
        for call in site.open:
            if any(levels.flags[1] for operand, levels in call.levels.items() if operand in _CHECKED):
                raise ValueError(
                    f"{site.name or site.op} ({site.op}) read a NaN or an infinity: energy cannot be counted for a network "
                    "that has diverged; look at its weights and inputs first"
                )
