"""What each number of a report means, in a sentence: printed beside the numbers, never apart from them."""

from __future__ import annotations

from spikeloom.energy.counts import Counts
from spikeloom.energy.subject import subject
from spikeloom.energy.totals import Policy

INTEGERS = {
    "unit": "an integer spike of value k costs k ACs",
    "mac": "an integer spike costs a MAC per SOP",
    "graded": "an integer spike costs an AC per SOP and one payload multiplication beside it",
}


def basis(counts: Counts) -> str:
    """What "per inference" is."""
    samples = f"{counts.samples:,} samples" if counts.samples != 1 else "1 sample"
    return f"per inference: summed over T = {counts.T} time steps, mean over {samples}"


def short(policy: Policy) -> str:
    """The policy in one line."""
    parts = [
        f"integers: {policy.integers}",
        f"batch norm: {policy.bn}",
        f"bias: {'in AC' if policy.include_bias else 'apart'}",
        f"static input: {'computed once' if policy.static_once else 'recomputed every step'}",
    ]
    return " · ".join(parts)


def conventions(counts: Counts, policy: Policy) -> list[tuple[str, str]]:
    """Terms with what they mean under this policy, for the box at the end of a report."""
    norm = (
        "folded into the linear operation in front, which then has a bias; those that cannot be are 1 MAC per element"
    )
    return [
        ("Per inference", f"{basis(counts)[len('per inference: ') :]}."),
        (
            "Term",
            "One product of an input element and a weight (or of two activations) that a linear operation really "
            "performs. Zero padding makes none; strides, groups and dilation are exact.",
        ),
        (
            "SOP",
            "Synaptic operation: a term whose activations are all non-zero. A weight of value 0 counts as present; "
            "SOP-nz leaves those out.",
        ),
        (
            "Kind",
            "What the non-zero inputs of a layer were over the whole run: binary, ternary, integer, scaled by one "
            f"factor, or float. Up to {counts.max_levels} levels are told apart.",
        ),
        (
            "AC",
            f"Accumulate: a SOP of spikes; {INTEGERS[policy.integers]}. Two activations cost an AC where one of "
            "them spikes.",
        ),
        (
            "MAC",
            "Multiply-accumulate: a SOP of analogue values, zeros skipped. Dense: all terms, zero or not; nominal: "
            "with the taps on padding, as a FLOPs counter counts (1 MAC = 1).",
        ),
        ("Rate", "Non-zero elements per element and time step: of a layer's input, or of a neuron's output."),
        (
            "Bias",
            f"One addition per output element and step, spike or not; "
            f"{'counted as ACs' if policy.include_bias else 'listed, in no total'}.",
        ),
        ("Batch norm", f"{norm}." if policy.bn == "fold" else "1 MAC per element, listed, in no total of AC and MAC."),
        (
            "Static input",
            "A layer whose input has the same bits at every step is "
            f"{'charged once' if policy.static_once else 'charged at every step'}; the other way is given beside it.",
        ),
        (
            "Neurons, pools, additions",
            f"Listed with their counts; in no total of AC, MAC or SOP. Their energy is {_included(policy)}",
        ),
        (
            "ANN",
            f"The same graph{', zeros too' if subject(counts).ann else ' with ReLUs for neurons'}, one step, every "
            "term a MAC. Exact: without taps on padding, as in the counts; nominal where it says so.",
        ),
        (
            "95 % interval",
            "Of the mean over samples, Student's t. It says nothing of samples that were not drawn from "
            "the same source.",
        ),
    ]


def static_text(policy: Policy) -> str:
    """How the totals treat layers whose input never changes."""
    return "computed once, current kept" if policy.static_once else "recomputed every step"


def _included(policy: Policy) -> str:
    """Which of neurons and auxiliary operations the energy holds."""
    inside = [name for name in ("aux", "neurons", "graded_mul") if getattr(policy, f"include_{name}")]
    return f"included for {', '.join(inside)}." if inside else "left out, unless a hardware model names it."
