"""The confidence smoothing alpha: what makes a spiking classifier's confidence mean how often it is right.

"ece": the alpha of a grid around T at which the calibration error after T steps is least, on held-out samples; of equal
ones the largest, which is the least sure of itself. Where all held-out samples are recognised (training images often
are) nothing is too sure and the least alpha would win: then, and by "T", it is the number of steps, so that the last
confidence is that of the mean output.

Paper: as in `confidence`; the paper compares values of alpha by the same error.
"""

from __future__ import annotations

from torch import Tensor

from spikeloom.conversion.confidence import calibration_error, check_alpha, confidence_of

WAYS = ("ece", "T")
PER_OCTAVE = 4
OCTAVES = 6


def alpha_grid(T: int) -> list[float]:
    """T times powers of two from 2^-6 to 2^6, four per octave, rising."""
    return [T * 2 ** (k / PER_OCTAVE) for k in range(-OCTAVES * PER_OCTAVE, OCTAVES * PER_OCTAVE + 1)]


def least_error_alpha(summed: Tensor, right: Tensor, T: int) -> float:
    """The alpha with the least calibration error at T.

    Args:
        summed: logits summed over T steps, float64 `[N, K]`. right: bool `[N]`.
    """
    if bool(right.all()):
        return float(T)
    found = [(calibration_error(confidence_of(summed / alpha), right), -alpha) for alpha in alpha_grid(T)]
    return -min(found)[1]


def chosen_alpha(way: str | float, logits: Tensor, labels: Tensor) -> float:
    """alpha by a way of `WAYS`, or the number itself.

    Args:
        logits: `[T, N, K]` of every step. labels: int64 `[N]`.

    Raises:
        ValueError: another way, a number that is not > 0.
    """
    if isinstance(way, str):
        if way not in WAYS:
            raise ValueError(f"alpha={way!r}; expected {' or '.join(map(repr, WAYS))}, or a number > 0")
        summed = logits.double().sum(0)
        T = len(logits)
        return float(T) if way == "T" else least_error_alpha(summed, summed.argmax(-1) == labels, T)
    check_alpha(way)
    return float(way)
