"""Totals, energies and rules computed from `Counts` against those in a golden file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from spikeloom_tests.golden.energy.compare import Findings
from torch import Tensor

from spikeloom.energy.counts import Counts, NeuronCount
from spikeloom.energy.exits import confidences, early_exit, exit_energy
from spikeloom.energy.lemaire import lemaire2022
from spikeloom.energy.literature import literature_rule
from spikeloom.energy.models import get_model
from spikeloom.energy.pricing import price
from spikeloom.energy.totals import Totals

Golden = Mapping[str, Any]


def compare_totals(found: Findings, golden: Golden, counts: Counts) -> None:
    """Sums over layers."""
    stored, totals, T = golden["totals"], Totals(counts), counts.T
    every = np.ones(counts.samples)
    found.expect("ac_per_step", totals.ac, stored["ac_per_step"])
    found.expect("mac_per_step", totals.mac_effective, stored["mac_per_step"])
    per_sample = {
        "ac": totals.ac.sum(0),
        "mac_effective": totals.mac_effective.sum(0),
        "mac_dense_exact": totals.mac_dense_exact * T * every,
        "mac_dense_nominal": totals.mac_dense_nominal * T * every,
        "sop": totals.sop.sum(0),
        "aux_pool_ac": totals.pool_ac.sum(0),
        "aux_residual_ac": totals.residual_ac.sum(0),
        "aux_sum_ac": totals.sum_ac.sum(0),
    }
    for key, wanted in stored["per_sample"].items():
        found.expect(f"per_sample.{key}", per_sample.get(key), wanted)
    found.expect("bias_adds", totals.bias_adds_own * T, stored["bias_adds_per_sample"])
    found.expect("bias_adds bn folded", totals.bias_adds * T, stored["bias_adds_per_sample_bn_folded"])
    found.expect("neuron_updates", totals.neuron_updates * T, stored["neuron_updates_per_sample"])
    found.expect("ann exact", totals.ann_mac_exact, stored["ann_baseline"]["mac_dense_exact"])
    found.expect("ann nominal", totals.ann_mac_nominal, stored["ann_baseline"]["mac_dense_nominal"])
    for key, wanted in stored["memory_words_per_sample"].items():
        same_for_all = isinstance(wanted, int)
        found.expect(f"words.{key}", totals.memory_words[key], [wanted] * counts.samples if same_for_all else wanted)
    compare_rates(found, golden, counts)


def compare_rates(found: Findings, golden: Golden, counts: Counts) -> None:
    """The non-zero fraction of each layer of neurons, in the order of the graph."""
    neurons = [n for n in counts.of(NeuronCount) if n.spiking]
    rates = [float(n.spikes.sum()) / (n.updates * counts.T * counts.samples) for n in neurons]
    found.expect("firing_rates", rates, list(golden["firing_rates"].values()))


def compare_energies(found: Findings, golden: Golden, counts: Counts) -> None:
    """Picojoules of the linear operations, the literature's rule, and Lemaire et al."""
    stored = golden["totals"]
    horowitz = price(counts, "horowitz45_fp32")
    known = {
        "horowitz45_fp32": horowitz.per_sample,
        "loihi_synop_plus_update": price(counts, get_model("loihi2018", updates="all")).per_sample,
        "ann_horowitz45_fp32_nominal": horowitz.model.constants["mac"] * Totals(counts).ann_mac_nominal,
    }
    for key, wanted in stored["energy_pj_per_sample"].items():
        found.expect(f"energy.{key}", known.get(key), wanted)
    compare_statistics(found, stored["dataset_stats_horowitz45"], horowitz.per_sample)
    rule = literature_rule(counts)
    for key, wanted in stored["literature_rule_per_sample_mean"].items():
        found.expect(f"literature.{key}", getattr(rule, key), wanted)
    for fanout, samples in stored.get("lemaire2022", {}).items():
        result = lemaire2022(counts, fanout=fanout)
        for key in samples[0]:
            found.expect(f"lemaire {fanout} {key}", getattr(result, key), [float(sample[key]) for sample in samples])


def compare_statistics(found: Findings, stored: Golden, pj: np.ndarray) -> None:
    """Mean, standard deviation (n - 1) and standard error over samples."""
    n = len(pj)
    found.expect("stats.n", n, stored["n"])
    found.expect("stats.mean", pj.mean(), stored["mean"])
    if n > 1:
        found.expect("stats.sd", pj.std(ddof=1), stored["sd"])
        found.expect("stats.sem", pj.std(ddof=1) / n**0.5, stored["sem"])


def compare_early_exit(found: Findings, golden: Golden, counts: Counts, head: Tensor) -> None:
    """Stop at the first step whose running mean of head outputs [T, B, classes] is confident enough."""
    stored = golden.get("early_exit")
    if stored is None:
        return
    confidence = confidences(head)
    off = float(np.abs(confidence - np.array(stored["confidence"])).max())
    # nine digits are stored; a single-precision output is off by up to 4e-7
    found.expect(f"confidence differs by {off:.1e}", off < (1e-8 if head.dtype == torch.float64 else 1e-6), True)
    used = early_exit(head, stored["threshold"])
    found.expect("steps_used", used, stored["steps_used"])
    found.expect("min_gap", np.abs(confidence - stored["threshold"]).min(), stored["min_gap"])
    cost = exit_energy(counts, used, "horowitz45_fp32")
    found.expect("early ac", cost.ac, stored["ac"])
    found.expect("early mac", cost.mac, stored["mac_effective"])
    found.expect("early pj", cost.energy_pj, stored["energy_pj_horowitz45"])
