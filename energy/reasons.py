"""Why two energies of the same run differ: a sum of reasons, each with its numbers, that adds up to the gap.

For every layer the gap is split along a chain of ways to count, from one end to the other; each link is a reason. The
same link of different layers is one reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from spikeloom.energy.counts import Counts, IntArray, Layer
from spikeloom.energy.literature import rule_is_mac, rule_operations
from spikeloom.energy.pricing import Price
from spikeloom.energy.totals import Policy, books_mac, charged, charged_steps, layer_ac, layer_mac

NEGLIGIBLE = 1e-9
"""Reasons below this share of the exact energy are rounding."""

TEXTS = {
    "borders": "taps beyond the borders are counted: {a:,.0f} terms per step against {b:,.0f} inside",
    "delays": "a delay is counted as a dense kernel of all its taps: {a:,.0f} terms per step against {b:,.0f}",
    "zeros": "zero inputs are multiplied too: {a:,.0f} terms against {b:,.0f} with a non-zero input",
    "position": "one rate for all positions: {a:,.0f} operations against {b:,.0f} by the fan-out of each spike",
    "units": "an integer spike of value k is one operation, not k: {a:,.0f} operations against {b:,.0f} units",
    "integer_mac": "integer spikes are additions, not the {b:,.0f} MACs of this policy",
    "one_sided": "a product of activations is charged for its first operand alone: {a:,.0f} operations against "
    "{b:,.0f} in which both are non-zero",
    "float_product": "products of two analogue activations are charged as {a:,.0f} additions, not as MACs",
    "cached": "layers whose input never changes are computed in every step: {a:,.0f} operations against {b:,.0f} when "
    "their current is kept",
    "repeat_static": "layers whose input never changes are computed once, not in every step: {a:,.0f} MACs against "
    "{b:,.0f}",
    "repeat": "analogue inputs come once, not in every step: {a:,.0f} MACs against {b:,.0f}",
    "mac_for_ac": "a MAC in place of an AC for each of {a:,.0f} terms whose input spikes",
    "activity": "each of {a:,.0f} terms is computed once; spikes cost {b:,.0f} ACs over all steps, {ratio:.3g} per "
    "term",
    "other": "the exact energy includes {names}",
    "precision": "8-bit constants: the exact counts cost {a:,.1f} pJ with horowitz45_int8",
    "bits": "one {bits}-bit MAC of {price:.4g} pJ (estimated) for each of {a:,.0f} terms, not {b:,.0f} ACs and "
    "{c:,.0f} MACs",
}
"""What each link of the chains says; numbers are per sample, averaged."""


@dataclass(frozen=True)
class Reason:
    """A part of a gap: `pj` (mean per sample; negative where the exact count is larger), said in words, and where."""

    key: str
    text: str
    pj: float
    layers: tuple[str, ...] = ()


@dataclass
class Gap:
    """Collects the links of all layers."""

    pj: dict[str, float] = field(default_factory=dict)
    numbers: dict[str, list[float]] = field(default_factory=dict)
    layers: dict[str, list[str]] = field(default_factory=dict)

    def add(self, key: str, layer: str, pj: float, a: float, b: float = 0.0) -> None:
        """One link of one layer: what it costs, and the two numbers that it goes from and to."""
        if a == b and pj == 0:
            return
        self.pj[key] = self.pj.get(key, 0.0) + pj
        total = self.numbers.setdefault(key, [0.0, 0.0])
        total[0] += a
        total[1] += b
        self.layers.setdefault(key, []).append(layer)

    def reasons(self, scale: float) -> list[Reason]:
        """Largest first, without rounding errors."""
        found = []
        for key, pj in self.pj.items():
            if abs(pj) > NEGLIGIBLE * scale:
                a, b = self.numbers[key]
                text = TEXTS[key].format(a=a, b=b, ratio=b / a if a else 0.0)
                found.append(Reason(key, f"{text} ({_listed(self.layers[key])})", pj, tuple(self.layers[key])))
        return sorted(found, key=lambda reason: -abs(reason.pj))


def rule_reasons(counts: Counts, exact: Price, policy: Policy) -> list[Reason]:
    """Why the literature's rule, priced with the constants of the exact energy, says something else."""
    ac, mac = exact.model.constants["ac"], exact.model.constants["mac"]
    gap = Gap()
    for layer in counts.layers:
        split = _product if not layer.is_param else _analog if rule_is_mac(layer) else _spikes
        split(gap, counts, layer, policy, ac, mac)
        _cached(gap, counts, layer, policy, ac, mac)
    return _with_other(gap.reasons(exact.mean), exact)


def ann_reasons(counts: Counts, exact: Price, policy: Policy, nominal: bool) -> list[Reason]:
    """Why the same network with ReLUs, one step of dense MACs, costs something else."""
    ac, mac = exact.model.constants["ac"], exact.model.constants["mac"]
    gap = Gap()
    for layer in counts.layers:
        dense, name = layer.dense_exact, layer.name
        if nominal:
            _borders(gap, layer, mac * (layer.dense_nominal - dense))
        if books_mac(layer, policy):
            macs = _mean(counts, charged(layer, layer_mac(layer, policy), policy, counts.T))
            once = macs / int(charged_steps(layer, policy, counts.T).sum())
            gap.add("zeros", name, mac * (dense - once), dense, once)
            key = "repeat_static" if layer.static_input else "repeat"
            gap.add(key, name, mac * (once - macs), once, macs)
        else:
            acs = _mean(counts, charged(layer, layer_ac(layer, policy), policy, counts.T))
            gap.add("mac_for_ac", name, (mac - ac) * dense, dense)
            gap.add("activity", name, ac * (dense - acs), dense, acs)
    return _with_other(gap.reasons(exact.mean), exact)


def _listed(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _with_other(reasons: list[Reason], exact: Price) -> list[Reason]:
    """Terms of the exact energy that neither the rule nor an ANN is charged for."""
    others = {name: float(pj.mean()) for name, pj in exact.terms.items() if name != "synaptic"}
    if not any(others.values()):
        return reasons
    names = ", ".join(f"{name} ({pj:,.1f} pJ)" for name, pj in others.items())
    return [*reasons, Reason("other", TEXTS["other"].format(names=names), -sum(others.values()))]


def _mean(counts: Counts, array: IntArray) -> float:
    """Per sample, over all steps; also where only the sum over the run is known."""
    return float(array.sum()) / counts.samples


def _borders(gap: Gap, layer: Layer, pj: float) -> None:
    key = "delays" if layer.geometry.max_delay is not None or layer.sop_at_arrival is not None else "borders"
    gap.add(key, layer.name, pj, layer.dense_nominal, layer.dense_exact)


def _analog(gap: Gap, counts: Counts, layer: Layer, policy: Policy, ac: float, mac: float) -> None:
    """Nominal MACs of every step -> exact terms -> terms with a non-zero input."""
    steps = 1 if layer.once else counts.T
    exact, sop = layer.dense_exact * steps, _mean(counts, layer.sop)
    _borders(gap, layer, mac * steps * (layer.dense_nominal - layer.dense_exact))
    gap.add("zeros", layer.name, mac * (exact - sop), exact, sop)


def _spikes(gap: Gap, counts: Counts, layer: Layer, policy: Policy, ac: float, mac: float) -> None:
    """FLOPs x T x rate -> exact terms x T x rate -> SOP -> what the policy makes of a SOP."""
    nominal, sop = _mean_float(counts, layer), _mean(counts, layer.sop)
    spread = nominal * layer.dense_exact / layer.dense_nominal if layer.dense_nominal else 0.0
    _borders(gap, layer, ac * (nominal - spread))
    gap.add("position", layer.name, ac * (spread - sop), spread, sop)
    if books_mac(layer, policy):
        gap.add("integer_mac", layer.name, (ac - mac) * sop, 0.0, sop)
    else:
        units = _mean(counts, layer_ac(layer, policy))
        gap.add("units", layer.name, ac * (sop - units), sop, units)


def _mean_float(counts: Counts, layer: Layer) -> float:
    return float(rule_operations(counts, layer).sum()) / counts.samples


def _product(gap: Gap, counts: Counts, layer: Layer, policy: Policy, ac: float, mac: float) -> None:
    """FLOPs x T x rate of the first operand -> terms with both non-zero -> ACs or MACs."""
    first, sop = _mean_float(counts, layer), _mean(counts, layer.sop)
    gap.add("one_sided", layer.name, ac * (first - sop), first, sop)
    if books_mac(layer, policy):
        gap.add("float_product", layer.name, (ac - mac) * sop, sop)


def _cached(gap: Gap, counts: Counts, layer: Layer, policy: Policy, ac: float, mac: float) -> None:
    """The rule repeats what `static_once` charges in the first step only."""
    if policy.static_once and layer.static_input:
        for price, array in ((ac, layer_ac(layer, policy)), (mac, layer_mac(layer, policy))):
            every, once = _mean(counts, array), _mean(counts, charged(layer, array, policy, counts.T))
            gap.add("cached", layer.name, price * (every - once), every, once)
