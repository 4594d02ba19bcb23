"""Two runs compared: what changed per layer, and whether the second one costs more than it may.

    check(load("main.json"), load("branch.json"), tolerance=0.05).demand()    # in CI: raises if SOP rose by over 5 %

The verdict is on synaptic operations per inference, which depend on no hardware model. Runs on other data, or with
other time steps, can be compared, but the table says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape

from spikeloom.energy.counts import Counts, IntArray, Layer
from spikeloom.energy.report import Report
from spikeloom.energy.tables import Cell, Head, Table
from spikeloom.energy.totals import DEFAULT_POLICY, Policy, Totals, layer_ac, layer_mac
from spikeloom.energy.tree import kind_text
from spikeloom.energy.units import count_text

_ROUNDING = 1e-12
"""105 / 100 - 1 is a little more than 0.05."""


class EnergyRegressionError(AssertionError):
    """The second run costs more than the tolerance allows."""


@dataclass(frozen=True)
class Change:
    """A quantity per inference before and after; None where a layer is missing."""

    name: str
    before: float | None
    after: float | None

    @property
    def share(self) -> float:
        """By which fraction it rose; infinite from nothing to something, NaN if one side is missing."""
        if self.before is None or self.after is None:
            return math.nan
        if self.before == 0:
            return 0.0 if self.after == 0 else math.inf
        return self.after / self.before - 1


@dataclass(frozen=True)
class LayerChange:
    """SOP, AC and MAC of a layer, and its kinds where they differ."""

    name: str
    sop: Change
    ac: Change
    mac: Change
    kinds: tuple[str, str] | None = None


@dataclass(frozen=True)
class Diff:
    """The comparison of two runs.

    Attributes:
        total: synaptic operations per inference; `ac`, `mac` likewise.
        layers: in the order of the second run, then those that are gone.
        differs: how the runs themselves differ (time steps, samples, data), in words.
        tolerance: by which fraction SOP may rise.
    """

    total: Change
    ac: Change
    mac: Change
    layers: list[LayerChange]
    differs: list[str]
    tolerance: float

    @property
    def passed(self) -> bool:
        """SOP did not rise by more than the tolerance."""
        return self.total.share <= self.tolerance + _ROUNDING

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        before, after = count_text(self.total.before), count_text(self.total.after)
        allowed = f"{self.tolerance:.1%} is allowed"
        verdict = "passed" if self.passed else "failed: energy regression"
        return f"{verdict}. SOP per inference went from {before} to {after} ({_percent(self.total.share)}; {allowed})."

    def demand(self) -> None:
        """Raise EnergyRegressionError unless it passed; the message names the layers that rose most."""
        if self.passed:
            return
        risen = sorted((y for y in self.layers if _rise(y.sop) > 0), key=lambda y: -_rise(y.sop))[:3]
        layers = ", ".join(f"{y.name} +{count_text(_rise(y.sop))}" for y in risen)
        raise EnergyRegressionError(f"{self.sentence} Most of it: {layers or 'no layer alone'}.")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """A line per layer, the totals, and the verdict."""
        yield diff_table(self)
        for words in self.differs:
            yield f"[yellow]{escape(words)}[/]"
        yield f"[bold {'green' if self.passed else 'red'}]{escape(self.sentence)}[/]"


def check(
    before: Counts | Report, after: Counts | Report, tolerance: float = 0.05, policy: Policy = DEFAULT_POLICY
) -> Diff:
    """Compare two runs.

    Args:
        tolerance: by which fraction the SOP per inference may rise; 0.05 is 5 %.
        policy: for AC and MAC of the table.

    Raises:
        ValueError: the tolerance is negative, or a run has no samples.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance is {tolerance}; expected a fraction >= 0, such as 0.05 for 5 %.")
    old, new = (run.counts if isinstance(run, Report) else run for run in (before, after))
    for run in (old, new):
        if run.samples < 1:
            raise ValueError("A run without samples has no synaptic operations per inference. Count again.")
    if not {layer.name for layer in old.layers} & {layer.name for layer in new.layers}:
        raise ValueError("The two runs have no layer in common: they are of different networks.")
    sums = [_sums(run, policy) for run in (old, new)]
    total, ac, mac = (Change(name, *(s[i] for s in sums)) for i, name in enumerate(("SOP", "AC", "MAC")))
    return Diff(total, ac, mac, _layers(old, new, policy), _differs(old, new), tolerance)


def diff_table(found: Diff) -> Table:
    """What changed, layer by layer."""
    heads = [
        Head("layer", number=False),
        Head("SOP before"),
        Head("after"),
        Head("change"),
        Head("AC change", keep=5),
        Head("MAC change", keep=5),
        Head("input kind", number=False, keep=6),
    ]
    table = Table("SOP per inference, before and after", heads)
    for each in found.layers:
        kinds = "" if each.kinds is None else f"{each.kinds[0]} → {each.kinds[1]}"
        missing = "gone" if each.sop.after is None else "new" if each.sop.before is None else kinds
        table.add(
            each.name,
            count_text(each.sop.before),
            count_text(each.sop.after),
            _cell(each.sop, found.tolerance),
            _cell(each.ac, found.tolerance),
            _cell(each.mac, found.tolerance),
            Cell(missing, "warn" if missing else ""),
        )
    total = found.total
    cells = [_cell(change, found.tolerance) for change in (total, found.ac, found.mac)]
    table.add("total", count_text(total.before), count_text(total.after), *cells, "", style="total")
    return table


def _layers(old: Counts, new: Counts, policy: Policy) -> list[LayerChange]:
    before, after = ({layer.name: layer for layer in run.layers} for run in (old, new))
    names = [*after, *(name for name in before if name not in after)]
    return [_layer(name, before.get(name), after.get(name), old, new, policy) for name in names]


def _layer(name: str, a: Layer | None, b: Layer | None, old: Counts, new: Counts, policy: Policy) -> LayerChange:
    def change(what: str, array: Callable[[Layer], IntArray]) -> Change:
        values = (None if y is None else float(array(y).sum()) / run.samples for y, run in ((a, old), (b, new)))
        return Change(what, *values)

    kinds = None if a is None or b is None else (kind_text(a), kind_text(b))
    return LayerChange(
        name,
        change("SOP", lambda y: y.sop),
        change("AC", lambda y: layer_ac(y, policy)),
        change("MAC", lambda y: layer_mac(y, policy)),
        kinds if kinds is not None and kinds[0] != kinds[1] else None,
    )


def _sums(run: Counts, policy: Policy) -> tuple[float, float, float]:
    """SOP, AC and MAC per inference, those of unassigned layers included."""
    totals = Totals(run, policy)
    pairs = ((totals.sop, "sop"), (totals.ac, "ac"), (totals.mac_effective, "mac"))
    sop, ac, mac = ((float(array.sum()) + totals.unassigned[name]) / run.samples for array, name in pairs)
    return sop, ac, mac


def _differs(old: Counts, new: Counts) -> list[str]:
    found = []
    for what, a, b in (("T", old.T, new.T), ("samples", old.samples, new.samples)):
        if a != b:
            found.append(f"The runs have {what} = {a:,} and {b:,}.")
    for what in ("model", "data"):
        first, second = old.setting.get(what), new.setting.get(what)
        if first != second:
            found.append(f"The {what} differs: {first} and {second}.")
    if len(old.uncounted) != len(new.uncounted):
        found.append(
            f"Operations without a counting rule: {len(old.uncounted)} and {len(new.uncounted)}; SOP miss them."
        )
    return found


def _cell(change: Change, tolerance: float) -> Cell:
    share = change.share
    style = (
        ""
        if math.isnan(share) or abs(share) < 5e-4
        else "more"
        if share > tolerance
        else "less"
        if share < 0
        else "warn"
    )
    return Cell(_percent(share), style)


def _rise(change: Change) -> float:
    return (change.after or 0.0) - (change.before or 0.0)


def _percent(share: float) -> str:
    if math.isnan(share):
        return "-"
    if math.isinf(share):
        return "from 0"
    return "same" if share == 0 else f"{share:+.1%}"
