"""Events to dense tensors, for a whole batch at once.

The events of a bin follow one another, so only the edges of the bins are searched, and a compiled loop or a CUDA kernel
counts. Where neither can be compiled (`spikeloom doctor` says why) there is one flat index per event and one histogram.

All functions take one recording (`Events` -> `[T, 2, H, W]`) or many (`PackedEvents` or a sequence of `Events` ->
`[T, B, 2, H, W]`). Channel 0 counts OFF events (p = 0), channel 1 ON events (p = 1). Counts are int32. Integer sums do
not depend on the order of additions, so CPU and GPU give the same numbers, run after run. The host does not wait for a
GPU. So it cannot know there how long a range is that ends with each recording's last event: one too long for exact
arithmetic in 64 bits is an error on a CPU, and binned exactly on a GPU.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from spikeloom.datasets.events import Events
from spikeloom.datasets.packed import PackedEvents
from spikeloom.kernels.backends import choose
from spikeloom.kernels.events import cpu, cuda

Recordings = Events | PackedEvents | Sequence[Events]

_MAX_INT64 = 2**63 - 1
# voxel weights are whole multiples of 1 / _UNIT (float32 holds that exactly up to 16 events in a voxel)
_UNIT = 2**cuda.UNIT_BITS


def frames_by_time(events: Recordings, T: int, *, start_us: int = 0, end_us: int | None = None) -> Tensor:
    """T equal bins over [start_us, end_us], both ends included: an event is in bin (t - start) * T // (end - start).

    end_us None: each recording's own last event, so nothing is lost and nothing is aligned between recordings; give the
    same end_us to all for bins of one length. Events outside the range are not counted.
    """
    T, start_us, end_us = _checked_range(T, start_us, end_us)
    packed = _pack(events)
    backend = _backend(packed)
    if backend == "cuda":
        return _unpack(cuda.count(_columns(packed), T, cuda.Rule("time", start_us, end_us)), events)
    if backend == "cpu":
        times = start_us + time_edges(_spans(packed, T, start_us, end_us), T)
        return _unpack(_count_between(packed, _edges(packed, times)), events)
    return _unpack(_count(packed, _time_bins(packed, T, start_us, end_us), T), events)


def frames_by_window(events: Recordings, T: int, window_us: int) -> Tensor:
    """T bins of window_us each, aligned to t = 0: bin k holds k * window_us <= t < (k + 1) * window_us.

    A short recording ends in empty bins; events at or after T * window_us are not counted.
    """
    T, window_us = _check_positive("T", T), _check_positive("window_us", window_us)
    packed = _pack(events)
    backend = _backend(packed)
    if backend == "cuda":
        return _unpack(cuda.count(_columns(packed), T, cuda.Rule("window", size=window_us)), events)
    if backend == "cpu":
        times = torch.tensor([min(k * window_us, _MAX_INT64) for k in range(T + 1)]).expand(len(packed), T + 1)
        return _unpack(_count_between(packed, _edges(packed, times)), events)
    return _unpack(_count(packed, packed.t // window_us, T), events)


def frames_by_count(
    events: Recordings,
    T: int,
    *,
    events_per_frame: int | None = None,
    remainder: Literal["spread", "last"] = "spread",
) -> Tensor:
    """Bins of equal event counts: event i of N goes to bin i * T // N, so that frames differ by one event at most.

    remainder="last": T slices of N // T events, the last takes what is left of N: event i goes to bin
    min(i // (N // T), T - 1). So does SpikingJelly's split_by="number", on which most published accuracies rest; with
    N < T all events are in the last bin.
    With events_per_frame the bin is i // events_per_frame: later events are not counted, missing ones leave empty bins.
    """
    T = _check_positive("T", T)
    if remainder not in ("spread", "last"):
        raise ValueError(f"remainder is {remainder!r}; expected 'spread' or 'last'.")
    if events_per_frame is not None and remainder != "spread":
        raise ValueError(f"events_per_frame={events_per_frame} leaves no remainder to place; drop remainder='last'.")
    if events_per_frame is not None:
        events_per_frame = _check_positive("events_per_frame", events_per_frame)
    packed = _pack(events)
    backend = _backend(packed)
    if backend == "cuda":
        kind = "number" if events_per_frame is not None else "slice" if remainder == "last" else "share"
        return _unpack(cuda.count(_columns(packed), T, cuda.Rule(kind, size=events_per_frame or 0)), events)
    if backend == "cpu":
        edges = number_edges(packed.lengths[:, None], T, events_per_frame, remainder)
        return _unpack(_count_between(packed, edges + packed.offsets[:-1, None]), events)
    recording = packed.recording_index()
    number = torch.arange(len(packed.t), device=packed.t.device) - packed.offsets[recording]
    if remainder == "last":
        slice_length = packed.lengths[recording] // T
        bins = (number // slice_length.clamp(min=1)).clamp_(max=T - 1).masked_fill_(slice_length == 0, T - 1)
    elif events_per_frame is None:
        bins = (number * T).floor_divide_(packed.lengths[recording])
    else:
        bins = number // events_per_frame
    return _unpack(_count(packed, bins, T), events)


def voxel_grid(events: Recordings, T: int, *, start_us: int = 0, end_us: int | None = None) -> Tensor:
    """Signed sums (ON +1, OFF -1), each event shared linearly by its two nearest of T instants.

    Returns float32 `[T, 1, H, W]`, of many recordings `[T, B, 1, H, W]`. The instants are spread evenly over
    [start_us, end_us] (end_us None: each recording's last event). The sum over T equals ON minus OFF events in range.
    The event volume of Zhu et al. 2019, "Unsupervised Event-based Learning of Optical Flow, Depth, and Egomotion".
    """
    T, start_us, end_us = _checked_range(T, start_us, end_us)
    packed = _pack(events)
    backend = _backend(packed)
    if backend == "cuda":
        return _unpack(cuda.voxels(_columns(packed), T, start_us, end_us).unsqueeze(2), events)
    if backend == "cpu":
        spans = _spans(packed, T, start_us, end_us)
        edges = _edges(packed, start_us + _instant_edges(spans, T))
        t, x, y, p = (column.contiguous() for column in (packed.t, packed.x, packed.y, packed.p))
        grid = cpu.voxels(t, x, y, p, edges, spans, start_us, packed.height, packed.width)
        return _unpack(grid.unsqueeze(2), events)
    span, outside = _range(packed, T, start_us, end_us)
    position = (packed.t - start_us).masked_fill_(outside, 0).mul_(T - 1)
    left = position // span  # the last event falls on instant T - 1 exactly: its right-hand weight is 0
    right_weight = position % span * _UNIT // span
    sign = packed.p.to(torch.int64) * 2 - 1
    size = (T, len(packed), packed.height, packed.width)
    pixel = (packed.recording_index() * packed.height + packed.y) * packed.width + packed.x
    plane = size[1] * size[2] * size[3]
    grid = torch.zeros(T * plane + 1, dtype=torch.int64, device=packed.t.device)  # + 1: a bin for what is outside
    for instant, weight in ((left, _UNIT - right_weight), (left + 1, right_weight)):
        index = (instant * plane + pixel).masked_fill_(outside | (instant >= T), T * plane)
        grid.scatter_add_(0, index, sign * weight)
    return _unpack((grid[:-1].to(torch.float64) / _UNIT).to(torch.float32).view(size).unsqueeze(2), events)


def to_binary(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """1 where a pixel had any event in the bin, else 0; same shape as `frames`."""
    return (frames > 0).to(dtype)


def collate(batch: Sequence[tuple[Events, int]], to_frames: Callable[[PackedEvents], Tensor]) -> tuple[Tensor, Tensor]:
    """Turn B pairs (events, label) into frames `[T, B, 2, H, W]` and labels `[B]` int64, for a DataLoader.

    to_frames: one of the functions above with its settings, e.g. `partial(frames_by_time, T=8, end_us=300_000)`.
    """
    packed = PackedEvents.from_events([events for events, _ in batch])
    return to_frames(packed), torch.tensor([label for _, label in batch], dtype=torch.int64)


def time_edges(spans: Tensor, T: int) -> Tensor:
    """Times `[B, T + 1]` between the bins of `frames_by_time` over spans `[B]` us: bin k begins at ceil(k * span / T),
    and the last includes its end.
    """
    span = spans[:, None]
    return torch.cat(((torch.arange(T) * span + T - 1) // T, span + 1), dim=1)


def _instant_edges(spans: Tensor, T: int) -> Tensor:
    """Times `[B, T + 1]` at which the intervals behind T instants over spans `[B]` us begin, and their end."""
    span, parts = spans[:, None], max(T - 1, 1)
    return torch.cat(((torch.arange(T) * span + parts - 1) // parts, span + 1), dim=1)


def number_edges(lengths: Tensor, T: int, events_per_frame: int | None, remainder: str) -> Tensor:
    """Bounds `[B, T + 1]` of the bins of `frames_by_count`, in events from the start of each; lengths `[B, 1]`."""
    k = torch.arange(T + 1, device=lengths.device)
    if events_per_frame is not None:
        size = lengths.clamp(max=min(events_per_frame, _MAX_INT64))  # k * events_per_frame could overflow
        return torch.minimum(k * size, lengths)
    if remainder == "last":
        return torch.cat((k[:-1] * (lengths // T), lengths), dim=1)
    return (k * lengths + T - 1) // T


def _count(packed: PackedEvents, bins: Tensor, T: int) -> Tensor:
    """Counts `[T, B, 2, H, W]` int32 of the events whose bin is below T; `bins` `[N]` int64, >= 0, is overwritten."""
    size = (T, len(packed), 2, packed.height, packed.width)
    cells = math.prod(size)
    # What is in no bin is counted in one more and cut off; to select the rest would make a GPU wait for its number.
    index = bins.clamp_(max=T)  # in place from here on: fresh memory for each step would cost more than the arithmetic
    for length, position in zip(size[1:], (packed.recording_index(), packed.p, packed.y, packed.x), strict=True):
        index.mul_(length).add_(position)
    if index.is_cuda:  # bincount would read the largest index, and wait for it
        counts = torch.zeros(cells // T * (T + 1), dtype=torch.int32, device=index.device)
        return counts.scatter_add_(0, index, counts.new_ones(()).expand(len(index)))[:cells].view(size)
    return torch.bincount(index, minlength=cells)[:cells].to(torch.int32).view(size)


def _backend(packed: PackedEvents) -> str:
    return choose("auto", packed.t.device.type)


def _columns(packed: PackedEvents) -> cuda.Columns:
    return cuda.Columns(packed.t, packed.x, packed.y, packed.p, packed.offsets, packed.height, packed.width)


def _edges(packed: PackedEvents, times: Tensor) -> Tensor:
    """Numbers `[B, K]` of the first event of each recording at or after times `[B, K]`."""
    return cpu.edges(packed.t.contiguous(), packed.offsets.contiguous(), times.contiguous())


def _count_between(packed: PackedEvents, edges: Tensor) -> Tensor:
    """Counts `[T, B, 2, H, W]` of events edges[b, k] to edges[b, k + 1]."""
    x, y, p = (column.contiguous() for column in (packed.x, packed.y, packed.p))
    return cpu.count(x, y, p, edges, packed.height, packed.width)


def _time_bins(packed: PackedEvents, T: int, start_us: int, end_us: int | None) -> Tensor:
    span, outside = _range(packed, T, start_us, end_us)
    bins = (packed.t - start_us).mul_(T).floor_divide_(span).clamp_(max=T - 1)  # an event at the end: the last bin
    return bins.masked_fill_(outside, T)


def _range(packed: PackedEvents, T: int, start_us: int, end_us: int | None) -> tuple[Tensor, Tensor]:
    """Length of the range in us, >= 1, `[N]`, and which events are outside, `[N]` bool."""
    span = _spans(packed, T, start_us, end_us)[packed.recording_index()]
    return span, (packed.t < start_us) | (packed.t > start_us + span)


def _spans(packed: PackedEvents, T: int, start_us: int, end_us: int | None) -> Tensor:
    """Length of each recording's range in us, >= 1, `[B]`."""
    if end_us is None:
        last = (packed.offsets[1:] - 1).clamp(min=0)  # an empty recording: any value
        end = packed.t[last] if len(packed.t) else last
    else:
        end = torch.full((len(packed),), end_us, dtype=torch.int64, device=packed.t.device)
    span = (end - start_us).clamp_(min=1)  # all events at one instant: one microsecond, not 0 / 0
    if end_us is None and span.numel():
        _check_length(int(span.max()), T, start_us)
    return span


def _checked_range(T: int, start_us: int, end_us: int | None) -> tuple[int, int, int | None]:
    """The three, with what can be said of them without a look at the events."""
    T, start_us = _check_positive("T", T), check_whole("start_us", start_us)
    if end_us is not None:
        end_us = check_whole("end_us", end_us)
        if end_us <= start_us:
            raise ValueError(f"The range is {start_us} us to {end_us} us; expected start_us < end_us.")
        _check_length(end_us - start_us, T, start_us)
    return T, start_us, end_us


def _check_length(longest: int, T: int, start_us: int) -> None:
    if longest > _MAX_INT64 // max(T, _UNIT):
        raise ValueError(f"A range of {longest} us is too long to bin exactly; set start_us (it is {start_us}).")


def _pack(events: Recordings) -> PackedEvents:
    if isinstance(events, PackedEvents):
        return events
    return PackedEvents.from_events([events] if isinstance(events, Events) else events)


def _unpack(frames: Tensor, events: Recordings) -> Tensor:
    return frames.squeeze(1) if isinstance(events, Events) else frames  # [T, 1, C, H, W] -> [T, C, H, W]


def check_whole(name: str, value: int) -> int:
    """A whole number that an argument is by its type, also one of NumPy or of a tensor: the kernels take int64, and
    would take a tensor for an address.
    """
    try:
        found = operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name} is {value!r}; expected a whole number, such as {name}=1000.") from error
    if not -_MAX_INT64 <= found <= _MAX_INT64:
        raise ValueError(f"{name} is {found}; expected a whole number of 64 bits.")
    return found


def _check_positive(name: str, value: int) -> int:
    value = check_whole(name, value)
    if value < 1:
        raise ValueError(f"{name} is {value}; expected a whole number >= 1.")
    return value
