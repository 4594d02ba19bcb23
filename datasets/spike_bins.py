"""Spikes of a cochlea model as frames, as the delay networks read them: counts per 10 ms and five channels.

For the files of the Spiking Heidelberg Digits and Spiking Speech Commands (Cramer, Stradmann, Schemmel, Zenke 2022,
doi:10.1109/TNNLS.2020.3044364): times in seconds, units 0 ... 699.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def bin_spikes(times: Tensor, units: Tensor, duration: float = 10.0, n_units: int = 700, merge: int = 5) -> Tensor:
    """Spikes of one recording -> counts `[T, n_units / merge]`, float32.

    Time is measured from the first spike, in the type of `times`: files hold float16, in which a spike next to the
    border of a frame falls into another one than in float32. T = ceil(time of the last spike / duration), and a spike
    at the very end belongs to the last frame.

    Args:
        times: seconds `[events]`, ascending.
        units: whole numbers `[events]`.
        duration: of a frame, ms. merge: neighbouring units summed.

    Raises:
        ValueError: no spikes, times that do not ascend, units out of range, or n_units that `merge` does not divide.
    """
    ends = torch.tensor([0, len(times)])
    return bin_recordings(times, units, ends, duration, n_units, merge)[0].float()


def bin_recordings(
    times: Tensor, units: Tensor, offsets: Tensor, duration: float = 10.0, n_units: int = 700, merge: int = 5
) -> tuple[Tensor, Tensor]:
    """`bin_spikes` of R recordings -> counts `[S, n_units / merge]` int64 and offsets `[R + 1]` of their frames.

    Args:
        times, units: `[events]` of all recordings, one after the other.
        offsets: `[R + 1]` int64; recording i is the spikes `offsets[i]` to `offsets[i + 1]`, at least one.
    """
    _check_spikes(times, units, offsets, duration, n_units, merge)
    counts, first, last = offsets.diff(), offsets[:-1], offsets[1:] - 1
    recording = torch.repeat_interleave(torch.arange(len(counts)), counts, output_size=len(times))
    ms = times * 1000
    ms = ms - ms[first][recording]
    T = torch.ceil(ms[last] / duration).long().clamp(min=1)
    ends = torch.cat((T.new_zeros(1), T.cumsum(0)))
    frame = torch.minimum(torch.floor(ms / duration).long(), (T - 1)[recording]) + ends[recording]
    channels = n_units // merge
    places = frame * channels + torch.div(units.long(), merge, rounding_mode="floor")
    return torch.bincount(places, minlength=int(ends[-1]) * channels).view(-1, channels), ends


def _check_spikes(times: Tensor, units: Tensor, offsets: Tensor, duration: float, n_units: int, merge: int) -> None:
    if times.ndim != 1 or times.shape != units.shape or not len(times) or not times.is_floating_point():
        raise ValueError(
            f"bin_spikes got times {times.dtype} {list(times.shape)} and units {list(units.shape)}; expected one or "
            "more spikes, both [events], times floating point in seconds."
        )
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(times) or bool((offsets.diff() < 1).any()):
        raise ValueError(
            f"bin_spikes: offsets do not rise from 0 to {len(times)}, a spike or more per recording: "
            f"{offsets[:6].tolist()} ... {int(offsets[-1])}. Leave recordings without spikes out."
        )
    descends = times[1:] < times[:-1]
    descends[offsets[1:-1] - 1] = False  # from one recording to the next
    if bool(descends.any()) or not bool((times * 1000).isfinite().all()):
        raise ValueError(
            "bin_spikes: times are not ascending (or, in ms, not finite in their type); sort times and units by time "
            "first."
        )
    if units.is_floating_point() or int(units.min()) < 0 or int(units.max()) >= n_units:
        raise ValueError(
            f"bin_spikes: units are {units.dtype} from {units.min().item()} to {units.max().item()}; expected whole "
            f"numbers from 0 to {n_units - 1}."
        )
    if not 0 < duration < math.inf or merge < 1 or n_units % merge:
        raise ValueError(
            f"bin_spikes: duration={duration}, n_units={n_units}, merge={merge}; expected a duration > 0 ms and a "
            "merge that divides n_units."
        )
