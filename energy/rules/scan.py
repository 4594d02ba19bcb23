"""Selective scans: the recurrence of Mamba, counted as other recurrences are, by the operations of one update.

Per channel, token and n states: exp(dt A), h = exp(dt A) h + (dt u) B and y = C h; on top of that what is there of
bias, softplus, skip and gate. All of it is real-valued.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from spikeloom.energy.meter import rule
from spikeloom.energy.rules.measure import place_name
from spikeloom.energy.rules.neurons import NeuronFacts, count_neurons
from spikeloom.kernels.scan.given import INPUTS

if TYPE_CHECKING:
    from spikeloom.energy.run import Run


@rule("spikeloom::selective_scan")
def scan_rule(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """Count a scan as n states per element of y, none of which spikes."""
    with run.paused():
        result = func(*args, **kwargs)
    given = dict(zip(INPUTS, args, strict=False))
    states, softplus = args[2].shape[1], bool(args[len(INPUTS)])
    skip, gate, bias = (given[name] is not None for name in ("D", "z", "delta_bias"))
    operations = {
        "adds": 2 * states - 1 + skip + bias + softplus,
        "multiplies": 4 * states + 1 + skip + 2 * gate,
        "divides": 0,
        "compares": int(softplus),
        "transcendental": states + 2 * softplus + gate,
    }
    with run.paused(), torch.no_grad():
        facts = NeuronFacts("selective_scan", args[0], result[0], states, spiking=False)
        count_neurons(run, place_name(run, "scan"), facts, operations)
    run.mark_outputs(result)
    return result
