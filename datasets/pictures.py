"""A recording as pictures: an animated GIF (Pillow) and a raster with rates and the sum of events (matplotlib).

ON is blue, OFF orange, on white: told apart by colour-blind eyes and in print.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeloom.datasets.events import Events
from spikeloom.datasets.frames import frames_by_time

ON, OFF = (0, 90, 181), (220, 110, 10)
_SIDE = 384  # pixels of the GIF's longer side, about
_DOTS = 60_000  # events drawn in the raster
_INSTALL = "Install it with `pip install 'spikeloom[report]'`."


def write_gif(events: Events, path: str | Path, *, frames: int = 40, seconds: float = 4.0) -> None:
    """Write `frames` pictures of equal stretches of time, played in `seconds`.

    A pixel's colour deepens with its events in the frame, up to the 99th percentile of those that fired.

    Raises:
        ValueError: a recording without events, frames or seconds out of range.
        ImportError: Pillow is not installed.
    """
    if not len(events) or not 1 <= frames <= 2000 or not 0 < seconds <= 600:
        raise ValueError(
            f"{len(events)} events, {frames} frames, {seconds} s; expected 1 or more, 1 to 2000, and up to 600 s."
        )
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"Writing GIFs needs Pillow. {_INSTALL}") from error
    counts = frames_by_time(
        events, frames, start_us=int(events.t[0]), end_us=max(int(events.t[-1]), int(events.t[0]) + 1)
    )
    fired = counts[counts > 0].double().sort().values
    full = float(fired[int((len(fired) - 1) * 0.99)])
    factor = max(1, _SIDE // max(events.height, events.width))
    pictures = [
        Image.fromarray(np.kron(_colours(each, full), np.ones((factor, factor, 1), np.uint8))) for each in counts
    ]
    first, *rest = pictures
    step = max(20, round(1000 * seconds / frames))  # what viewers show at least
    first.save(path, save_all=True, append_images=rest, duration=step, loop=0)


def write_raster(events: Events, path: str | Path, title: str = "") -> None:
    """Write a PNG: rates of ON and OFF events, rows against time, and the sum of events on the sensor.

    Raises:
        ValueError: a recording without events.
        ImportError: matplotlib is not installed.
    """
    if not len(events):
        raise ValueError("The recording has no events; there is nothing to draw.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"Drawing rasters needs matplotlib. {_INSTALL}") from error
    t = (events.t - events.t[0]).numpy() / 1e6
    figure = Figure(figsize=(11, 6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 3), width_ratios=(3, 2))
    rate, raster, total = (figure.add_subplot(grid[place]) for place in ((0, 0), (1, 0), (slice(None), 1)))
    _draw_rates(rate, t, events.p.numpy())
    step = -(-len(events) // _DOTS)
    colours = np.array([OFF, ON])[events.p.numpy()[::step]] / 255
    # in the order of time: neither polarity covers the other
    raster.scatter(t[::step], events.y.numpy()[::step], c=colours, s=1.2, marker="s", linewidths=0, rasterized=True)
    raster.set(xlabel="time, s", ylabel="row", ylim=(events.height - 0.5, -0.5), xlim=(0, max(float(t[-1]), 1e-6)))
    if step > 1:
        raster.set_title(f"one event in {step} is drawn", fontsize=9)
    counts = frames_by_time(events, 1, start_us=int(events.t[0]))[0]
    fired = counts[counts > 0].double().sort().values
    total.imshow(_colours(counts, float(fired[int((len(fired) - 1) * 0.99)])), interpolation="nearest")
    total.set(xlabel="column", ylabel="row", title="all events: blue ON, orange OFF")
    facts = f"{len(events):,} events on {events.height} x {events.width} pixels in {t[-1]:.3f} s"
    figure.suptitle(title or facts, parse_math=False)
    figure.savefig(path, dpi=110)


def _draw_rates(axes: Any, t: NDArray[Any], p: NDArray[Any]) -> None:
    """Thousands of events a second in 100 stretches."""
    span = max(float(t[-1]), 1e-6)
    edges = np.linspace(0, span, 101)
    for value, colour, name in ((1, ON, "ON"), (0, OFF, "OFF")):
        counts, _ = np.histogram(t[p == value], edges)
        axes.stairs(counts * 100 / span / 1e3, edges, color=_hex(colour), label=name)
    axes.set(ylabel="thousand events/s", xlim=(0, span), ylim=(0, None))
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=8, frameon=False)


def _colours(counts: Tensor, full: float) -> NDArray[np.uint8]:
    """Counts `[2, H, W]` -> picture `[H, W, 3]`: each polarity takes away what its colour lacks of white."""
    share = (counts.double() / full).clamp(max=1).sqrt()
    ink = torch.tensor([OFF, ON], dtype=torch.float64)
    taken = torch.einsum("phw,pc->hwc", share, 255 - ink)
    return (255 - taken).clamp(0, 255).round().to(torch.uint8).numpy()


def _hex(colour: tuple[int, int, int]) -> str:
    return "#" + bytes(colour).hex()
