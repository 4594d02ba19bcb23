"""The neuron of Spike-driven Transformer V3: memoryless, with integer spikes.

    s = round(clamp(x, 0, D)) / D         D = 4: values 0, 1/4, 1/2, 3/4, 1;  gradient 1/D inside the interval, else 0

A value n / 4 stands for n spikes: W (n / 4) is the sum of n rows of W / 4, so a machine that knows binary spikes only
runs four virtual steps, in n of which the neuron fires, in any order. This is exact for convolutions and linear maps
with the batch normalisation folded in; a product of spikes is expanded in one operand at a time.

Paper: Yao et al. 2025, "Scaling Spike-driven Transformer with Efficient Spike Firing Approximation Training",
arXiv:2411.16061.
"""

from __future__ import annotations

from spikeloom.neurons import ILIF


def integer_neuron(max_spikes: int = 4, *, norm: float | None = None, rounding: str = "half_even") -> ILIF:
    """Up to `max_spikes` spikes per step, each step alone; the output is divided by `norm`, None: by `max_spikes`.

    max_spikes: 4 in the paper's "1 x 4" models, 8 in its "1 x 8". rounding: `half_even` is the paper's base models'
    (gradient on the closed interval), `half_up` the large ones' (gradient on the open interval).
    """
    return ILIF(tau=1.0, max_spikes=max_spikes, norm=max_spikes if norm is None else norm, rounding=rounding)
