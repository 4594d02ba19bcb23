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
_CELLS = (360, 640)  # rows and stretches of time of the raster at most
_DPI = 200
_INSTALL = "Install it with `pip install 'spikeloom[report]'`."


def write_gif(events: Events, path: str | Path, *, frames: int = 40, seconds: float = 4.0) -> None:
    """Write `frames` pictures of equal stretches of time, played in `seconds`.

    A pixel's colour deepens with its events in the frame, up to the 99th percentile of those that fired.

    Raises:
        ValueError: a recording without events, frames or seconds out of range.
        ImportError: Pillow is not installed.
    """
    _check_any(events)
    if not 1 <= frames <= 2000 or not 0 < seconds <= 600:
        raise ValueError(
            f"A GIF of {frames} frames in {seconds} s was asked for; expected 1 to 2000 frames, in more than 0 and up "
            "to 600 s."
        )
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"Writing GIFs needs Pillow. {_INSTALL}") from error
    counts = frames_by_time(
        events, frames, start_us=int(events.t[0]), end_us=max(int(events.t[-1]), int(events.t[0]) + 1)
    )
    full = _full(counts)
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
    _check_any(events)
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
    _draw_raster(raster, events)
    counts = frames_by_time(events, 1, start_us=int(events.t[0]))[0]
    total.imshow(_colours(counts, _full(counts)), interpolation="nearest")
    total.set(xlabel="column", ylabel="row")
    total.set_title("all events: blue ON, orange OFF, dark both", fontsize=10)
    facts = f"{len(events):,} events on {events.height} x {events.width} pixels in {t[-1]:.3f} s"
    figure.suptitle(title or facts, parse_math=False)
    figure.savefig(path, dpi=_DPI)


def _check_any(events: Events) -> None:
    if not len(events):
        raise ValueError("The recording has no events; there is nothing to draw.")


def _draw_raster(axes: Any, events: Events) -> None:
    """Events by row and stretch of time, none left out of the count; rows of large sensors are drawn together."""
    rows, steps = min(events.height, _CELLS[0]), _CELLS[1]
    start, span = int(events.t[0]), max(int(events.t[-1] - events.t[0]), 1)
    step = ((events.t - start) * steps // span).clamp(max=steps - 1)
    cell = (events.p.long() * rows + events.y.long() * rows // events.height) * steps + step
    counts = cell.bincount(minlength=2 * rows * steps).reshape(2, rows, steps)
    extent = (0.0, span / 1e6, events.height - 0.5, -0.5)
    # busy rows have both in most cells: the more frequent one is drawn, and of as many both, dark
    counts = torch.where(counts < counts.flip(0), 0, counts)
    axes.imshow(_colours(counts, _full(counts)), extent=extent, aspect="auto", interpolation="nearest")
    axes.set(xlabel="time, s", ylabel="row")


def _draw_rates(axes: Any, t: NDArray[Any], p: NDArray[Any]) -> None:
    """Thousands of events a second in 100 stretches."""
    span = max(float(t[-1]), 1e-6)
    edges = np.linspace(0, span, 101)
    for value, colour, name in ((1, ON, "ON"), (0, OFF, "OFF")):
        counts, _ = np.histogram(t[p == value], edges)
        axes.stairs(counts * 100 / span / 1e3, edges, color=_hex(colour), label=name)
    axes.set(ylabel="thousand events/s", xlim=(0, span), ylim=(0, None))
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=8, frameon=False)


def _full(counts: Tensor) -> float:
    """The count that is drawn in full colour: the 99th percentile of those that are not 0."""
    fired = counts[counts > 0].double().sort().values
    return float(fired[int((len(fired) - 1) * 0.99)])


def _colours(counts: Tensor, full: float) -> NDArray[np.uint8]:
    """Counts `[2, H, W]` -> picture `[H, W, 3]`: each polarity takes away what its colour lacks of white."""
    share = (counts.double() / full).clamp(max=1).sqrt()
    ink = torch.tensor([OFF, ON], dtype=torch.float64)
    taken = torch.einsum("phw,pc->hwc", share, 255 - ink)
    return (255 - taken).clamp(0, 255).round().to(torch.uint8).numpy()


def _hex(colour: tuple[int, int, int]) -> str:
    return "#" + bytes(colour).hex()
