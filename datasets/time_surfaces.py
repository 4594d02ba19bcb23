"""Time surfaces: how long ago each pixel fired, at T instants.

    surface[k, p, y, x] = exp(-(t_k - last event of polarity p at (x, y) up to t_k) / tau), 0 if there was none

X. Lagorce et al., "HOTS: A Hierarchy of Event-Based Time-Surfaces for Pattern Recognition", IEEE TPAMI 2017; here of
the whole sensor at fixed instants, the ends of T equal bins. On a CPU a compiled loop passes over the events once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikeloom.datasets.events import Events
from spikeloom.datasets.frames import check_whole
from spikeloom.kernels.backends import choose
from spikeloom.kernels.events import cpu


def time_surface(events: Events, T: int, tau_us: float, *, start_us: int = 0, end_us: int | None = None) -> Tensor:
    """Surfaces `[T, 2, H, W]` float32 at t_k = start + (k + 1) (end - start) / T, rounded up.

    end_us None: the last event.

    Raises:
        ValueError: T below 1, tau not above 0, an empty range, times that are no whole numbers.
    """
    T, start_us = check_whole("T", T), check_whole("start_us", start_us)
    if end_us is None:
        end_us = max(start_us + 1, int(events.t[-1]) if len(events) else 0)
    end_us = check_whole("end_us", end_us)
    if T < 1 or not tau_us > 0 or end_us <= start_us:
        raise ValueError(f"T is {T}, tau_us {tau_us}, the range {start_us} to {end_us} us; expected T >= 1, tau > 0.")
    device = events.t.device
    instants = start_us + -(-(torch.arange(1, T + 1, device=device) * (end_us - start_us)) // T)
    if not events.t.is_cuda and choose("auto", device.type) == "cpu":
        return _compiled(events, start_us, instants, float(tau_us))
    cells = 2 * events.height * events.width
    chosen = events[(events.t >= start_us) & (events.t <= end_us)]
    step = torch.searchsorted(instants, chosen.t).clamp(max=T - 1)  # the first instant at or after the event
    pixel = (chosen.p.long() * events.height + chosen.y) * events.width + chosen.x
    last = torch.full((T * cells,), -1, dtype=torch.int64, device=device)
    last.scatter_reduce_(0, step * cells + pixel, chosen.t, "amax")
    last = last.view(T, cells).cummax(0).values
    age = (instants[:, None] - last).double()
    surface = torch.where(last < 0, 0.0, torch.exp(-age / tau_us))
    return surface.to(torch.float32).view(T, 2, events.height, events.width)


def _compiled(events: Events, start_us: int, instants: Tensor, tau_us: float) -> Tensor:
    t, x, y, p = (column.contiguous() for column in (events.t, events.x, events.y, events.p))
    times = torch.cat((torch.tensor([start_us]), instants + 1))  # an event at an instant counts there
    edges = cpu.edges(t, torch.tensor([0, len(t)]), times[None])[0]
    return cpu.surface(t, x, y, p, edges, instants, tau_us, events.height, events.width)
