"""Side by side: exact counts, the literature's rule, the same network with ReLUs, and the same quantised.

* exact: `price(counts, model, policy)`;
* paper: the rule of `spikeloom.energy.literature` with the constants of the same model, layers repeated in every step;
* ann_nominal, ann_exact: one step, one MAC per dense term, with and without the taps on zero padding;
* qann: one step of exact dense terms with k = ceil(log2(T + 1))-bit activations, which tell as many values apart as T
  steps of spikes (Z. Yan et al., arXiv 2409.08290), and 8-bit weights.

A k-bit MAC is priced here as 0.03 + 0.2 k / 8 pJ: of Horowitz (ISSCC 2014, 45 nm) the 8-bit addition, and the 8-bit
multiplication scaled by k * 8 / 64, its share of partial products. That is an estimate of ours. For 8 bits it is the
MAC of `horowitz45_int8`, so the row is to be read against the exact counts in that model: `Row.ratio_equal`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, log2

from spikeloom.energy.counts import Counts, Layer, NeuronCount
from spikeloom.energy.literature import literature_rule
from spikeloom.energy.models import EnergyModel, get_model
from spikeloom.energy.pricing import DEFAULT_MODEL, Price, price
from spikeloom.energy.reasons import TEXTS, Reason, ann_reasons, rule_reasons
from spikeloom.energy.totals import DEFAULT_POLICY, Policy, Totals, books_mac

YAN_RATE = {5: 0.057}
"""By T, the firing rate below which an SNN takes less energy than a QANN of equal precision. Estimated, with an
analytical model: Z. Yan et al., arXiv 2409.08290, version 4."""
YAN_RATE_5_TO_10 = 0.064
"""The same for T from 5 to 10, version 3."""
DAMPFHOFFER = (0.15, 1.38)
"""Spikes per synapse and inference up to which IF networks compete with ANNs, from the least to the most favourable
assumption. Estimated: M. Dampfhoffer et al., "Are SNNs really more energy-efficient than ANNs?", 2023."""


@dataclass(frozen=True)
class Row:
    """One way to put a number on the same run.

    Attributes:
        energy_pj: mean per sample.
        ratio: over the energy of the exact row.
        ratio_equal: over that of the exact counts at the precision of this row; differs from `ratio` for qann alone.
        ac, mac: operations per sample, averaged (of linear operations).
        how: formula and constants in words.
        evidence: how the constants are known.
        reasons: why it differs from the exact row; their pJ add up to the difference.
    """

    name: str
    energy_pj: float
    ratio: float
    ratio_equal: float
    ac: float
    mac: float
    how: str
    evidence: str
    reasons: tuple[Reason, ...] = ()


def compare(counts: Counts, policy: Policy = DEFAULT_POLICY, model: str | EnergyModel = DEFAULT_MODEL) -> list[Row]:
    """The rows exact, paper, ann_nominal, ann_exact and qann.

    Args:
        policy: of the exact row.
        model: a model of arithmetic, with prices of an AC and a MAC and no memory: an ANN has no price on a chip that
            only knows synaptic operations, and its memory words are not counted here.

    Raises:
        ValueError: another model; as `price`.
    """
    model = get_model(model) if isinstance(model, str) else model
    if not model.per_operation or model.memory is not None:
        raise ValueError(
            f"compare() with energy model {model.name!r}: expected one that prices AC and MAC, without memory, such as "
            "horowitz45_fp32 or horowitz45_int8"
        )
    exact = price(counts, model, policy)
    totals = Totals(counts, policy)
    acs = (int(totals.ac.sum()) + totals.unassigned["ac"]) / counts.samples
    macs = (int(totals.mac_effective.sum()) + totals.unassigned["mac"]) / counts.samples
    first = Row("exact", exact.mean, 1.0, 1.0, acs, macs, model.formula, model.evidence)
    return [first, *_others(counts, exact, policy, totals), _quantised(counts, exact, totals, acs, macs)]


def _others(counts: Counts, exact: Price, policy: Policy, totals: Totals) -> Iterable[Row]:
    model = exact.model
    ac, mac = model.constants["ac"], model.constants["mac"]
    rule = literature_rule(counts, ac, mac)
    how = f"{mac:g} FLOPs T for weights on analogue values, {ac:g} FLOPs T rate for the rest"
    yield _row("paper", rule.energy_pj, exact, rule.ac, rule.mac, how, model, rule_reasons(counts, exact, policy))
    for name, terms, nominal in (
        ("ann_nominal", totals.ann_mac_nominal, True),
        ("ann_exact", totals.ann_mac_exact, False),
    ):
        how = f"{mac:g} per dense term of one step, taps on zero padding {'counted' if nominal else 'left out'}"
        reasons = ann_reasons(counts, exact, policy, nominal)
        yield _row(name, mac * terms, exact, 0.0, terms, how, model, reasons)


def _row(
    name: str, pj: float, exact: Price, ac: float, mac: float, how: str, model: EnergyModel, reasons: list[Reason]
) -> Row:
    ratio = _ratio(pj, exact.mean)
    return Row(name, pj, ratio, ratio, ac, mac, how, model.evidence, tuple(reasons))


def _ratio(pj: float, exact: float) -> float:
    return pj / exact if exact else float("nan")


def activation_bits(T: int) -> int:
    """Bits that tell apart 0 to T spikes: ceil(log2(T + 1))."""
    return ceil(log2(T + 1))


def quantised_mac_pj(bits: int) -> float:
    """pJ of a MAC of a `bits`-bit activation and an 8-bit weight: our estimate, see the top of this file."""
    low = get_model("horowitz45_int8").constants
    return low["ac"] + low["mul"] * bits / 8


def _quantised(counts: Counts, exact: Price, totals: Totals, acs: float, macs: float) -> Row:
    low = get_model("horowitz45_int8")
    bits = activation_bits(counts.T)
    each, terms = quantised_mac_pj(bits), totals.ann_mac_exact
    pj, same = each * terms, price(counts, low, exact.policy).mean
    text = TEXTS["bits"].format(bits=bits, price=each, a=terms, b=acs, c=macs)
    reasons = (
        Reason("precision", TEXTS["precision"].format(a=same), same - exact.mean),
        Reason("bits", text, pj - same),
    )
    how = f"{each:.4g} per dense term of one step: {bits}-bit activations, 8-bit weights (0.03 + 0.2 k / 8)"
    return Row("qann", pj, _ratio(pj, exact.mean), _ratio(pj, same), 0.0, terms, how, low.evidence, reasons)


def context(counts: Counts, policy: Policy = DEFAULT_POLICY) -> list[str]:
    """What the literature says about a run like this, in sentences; empty where nothing applies.

    The rate is that of all inputs of layers that the policy books as ACs, over all steps and samples. Spikes per
    synapse are the SOP per inference of those of them that have weights, over their synapses.
    """
    spiking = [layer for layer in counts.layers if not books_mac(layer, policy)]
    found = []
    inputs = sum(_inputs(layer) for layer in spiking) * counts.T * counts.samples
    if inputs and 5 <= counts.T <= 10:
        rate = sum(_events(layer) for layer in spiking) / inputs
        found.append(_rate_sentence(rate, counts.T))
    weighted = [layer for layer in spiking if layer.is_param]
    synapses = sum(_synapses(layer) for layer in weighted)
    if synapses and any(neuron.spiking for neuron in counts.of(NeuronCount)):
        each = sum(int(layer.sop.sum()) for layer in weighted) / counts.samples / synapses
        found.append(_synapse_sentence(each))
    return found


def _inputs(layer: Layer) -> int:
    return layer.in_numel + (layer.in_numel_b or 0)


def _events(layer: Layer) -> int:
    return int(layer.events.sum()) + (0 if layer.events_b is None else int(layer.events_b.sum()))


def _synapses(layer: Layer) -> float:
    """Dense terms of a step; `dense_exact` of a delay layer leaves out what arrives after the run."""
    return layer.dense_exact if layer.sop_at_arrival is None else layer.in_numel * layer.out_numel


def _rate_sentence(rate: float, T: int) -> str:
    limit = YAN_RATE.get(T, YAN_RATE_5_TO_10)
    version = "version 4, T = 5" if T in YAN_RATE else "version 3, T from 5 to 10"
    side = "below" if rate < limit else "above"
    return (
        f"The rate of the spiking inputs is {rate:.1%}, {side} the {limit:.1%} under which an SNN takes less energy "
        f"than a quantised ANN of equal precision in the model of Yan et al. (arXiv 2409.08290, {version})."
    )


def _synapse_sentence(each: float) -> str:
    low, high = DAMPFHOFFER
    side = "below these limits" if each < low else "between these limits" if each <= high else "above these limits"
    return (
        f"Each synapse carries {each:.3g} spikes per inference, {side}: SNNs of IF neurons compete with ANNs up to "
        f"{low} to {high}, depending on what is assumed (Dampfhoffer et al., 2023)."
    )
