"""Neurons that look at rho steps before they run: calibrated offset spikes (COS) and residual potentials (SRP).

With currents and potentials in thresholds, both start from v = 1/2 and first run the first rho steps of their input:

    SRP  mask = 1 where the potential left is > 0.001; then all T steps from v = 1/2, output = spikes * mask
    COS  m = smallest charged potential of steps that fired, M = largest of steps that did not;
         v_rho < 0 and a spike:  v[0] = 1/2 - max(1, m - 0.999)        one spike too many
         v_rho >= 1:             v[0] = 1/2 + max(1, 1.001 - M)        one spike too few
         else:                   v[0] = 1/2

A layer has to see rho steps before its answer begins, so the honest latency is T + rho steps; where rho > T the layers
in front run max(T, rho) steps (our reading), and the first T logits are the answer.

Papers: Hao et al., AAAI 2023, "Reducing ANN-SNN Conversion Error through Residual Membrane Potential"; Hao et al., ICLR
2023, "Bridging the Gap between ANNs and SNNs by Calibrating Offset Spikes".
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn, where

from spikeloom.conversion.rate_if import RateIF
from spikeloom.kernels import maximum, minimum, spike
from spikeloom.kernels import where as choose
from spikeloom.neurons.module import POSITIVE, Neuron, neuron

Mode = Literal["cos", "srp"]

_FAR = 1e5  # thresholds; stands for infinity where a neuron fired in all steps, or in none
_LEFT = 1e-3


def _half(v_threshold: Any) -> Any:
    return 0.5 * v_threshold


@neuron(
    state={
        "v": _half,
        "fired": 0.0,
        "lowest": lambda v_threshold: _FAR * v_threshold,
        "highest": lambda v_threshold: -_FAR * v_threshold,
    },
    limits={"v_threshold": POSITIVE},
)
def watched_if(x: Any, v: Any, fired: Any, lowest: Any, highest: Any, *, v_threshold: Any = 1.0) -> Any:
    """One step that remembers how low a potential fired, and how high one did not."""
    h = v + x
    s = spike(h - v_threshold, "sigmoid", 4.0)
    low = choose(s, minimum(lowest, h), lowest)
    high = choose(s, highest, maximum(highest, h))
    return s, h - s * v_threshold, fired + s, low, high


class OffsetIF(nn.Module):
    """Integrate-and-fire neurons with COS or SRP on `[T, B, ...]` currents; spikes are 0 or 1.

    In a Stream the first chunk holds the rho steps, later ones continue.

    Args:
        v_threshold: as in `RateIF`.
        rho: steps of the look ahead, >= 1.
        mode: "cos" or "srp".
    """

    streams = True

    def __init__(self, v_threshold: float | Tensor, rho: int, mode: Mode) -> None:
        super().__init__()
        if mode not in ("cos", "srp") or rho < 1:
            raise ValueError(f"OffsetIF got mode {mode!r} and rho {rho}; expected 'cos' or 'srp', and rho >= 1.")
        self.rho, self.mode = rho, mode
        self.fire = RateIF(v_threshold)
        self.watch = Neuron(watched_if, v_threshold=v_threshold)

    @property
    def v_threshold(self) -> Any:
        """The threshold."""
        return self.fire.v_threshold

    def forward(self, x: Tensor, *, state: tuple[Tensor, Tensor] | None = None, return_state: bool = False) -> Any:
        """Run all time steps.

        Raises:
            ValueError: fewer than rho steps to begin with.
        """
        v, mask = self.start(x) if state is None else state
        spikes, (v,) = self.fire(x, state=(v,), return_state=True)
        spikes = spikes * mask if self.mode == "srp" else spikes
        return (spikes, (v, mask)) if return_state else spikes

    def start(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The membranes from which the steps run and the neurons that may fire, both `[B, ...]`, from `x[:rho]`."""
        if x.shape[0] < self.rho:
            raise ValueError(
                f"{self.mode} got {x.shape[0]} time steps to begin with, and looks at rho = {self.rho} before it runs; "
                "pass at least so many, or convert with a smaller rho."
            )
        _, (v, fired, lowest, highest) = self.watch(x[: self.rho], return_state=True)
        theta = self.v_threshold
        half = v * 0 + 0.5 * theta
        if self.mode == "srp":
            return half, (v > _LEFT * theta).to(x.dtype)
        one = half + 0.5 * theta
        fewer = half - (lowest - 0.999 * theta).maximum(one)
        more = half + (1.001 * theta - highest).maximum(one)
        begin = where((v < 0) & (fired > 0), fewer, where(v >= theta, more, half))
        return begin, (begin == begin).to(x.dtype)

    def extra_repr(self) -> str:
        return f"rho={self.rho}, mode={self.mode!r}"
