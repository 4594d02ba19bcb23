"""A report's pictures with matplotlib, for papers: `plot(report, "layers").savefig("layers.pdf")`.

The page of `Report.to_html` draws the same data itself and does not need matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from spikeloom.energy import figures
from spikeloom.energy.report import Report
from spikeloom.energy.units import count_text, energy_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SNN, ANN, WORSE = "#2458c4", "#b9ae9c", "#b93a10"


def plot(report: Report, picture: str) -> Figure:
    """One picture as a matplotlib figure, which is not shown and belongs to the caller.

    Args:
        picture: "layers" (energy per layer, SNN and ANN, one panel per model), "rates" (layer x time), "samples" (SOP
            per inference), "steps" (energy, and accuracy if known, against T'), "ratios" (SNN over ANN by model).

    Raises:
        ValueError: another name, or the report has no data for the picture.
        ImportError: matplotlib is not installed.
    """
    if picture not in _PICTURES:
        raise ValueError(f"There is no picture {picture!r}; expected one of {', '.join(_PICTURES)}.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Plots need matplotlib, which is not installed. Install it with `pip install 'spikeloom[report]'`; "
            "to_html() draws without it."
        ) from error
    figure = Figure(layout="constrained")
    if not _PICTURES[picture](report, figure):
        raise ValueError(f"The counts hold nothing for the picture {picture!r} (too few samples, steps or models).")
    return figure


def _layers(report: Report, figure: Figure) -> bool:
    panels = figures.layer_energies(report)
    if not panels:
        return False
    figure.set_size_inches(4.0 * len(panels) + 1.5, 0.42 * len(panels[0].names) + 1.2)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for index, (data, each) in enumerate(zip(panels, axes, strict=True)):
        scale, unit = energy_scale([*data.snn, *data.ann])
        y = np.arange(len(data.names))
        each.barh(
            y - 0.2, np.array(data.snn) / scale, 0.38, color=SNN, label=f"{data.labels[0]}, T = {report.counts.T}"
        )
        each.barh(y + 0.2, np.array(data.ann) / scale, 0.38, color=ANN, label=data.labels[1])
        each.set_yticks(y, data.names if index == 0 else [""] * len(y))
        each.invert_yaxis()
        _plain(each, f"{data.model}, {report.prices[data.model].model.evidence}", f"{unit} per inference")
    axes[0].legend(frameon=False)
    return True


def _rates(report: Report, figure: Figure) -> bool:
    data = figures.rate_map(report)
    if data is None:
        return False
    layers, T = data.rates.shape
    figure.set_size_inches(min(3 + 0.5 * T, 11), 0.3 * layers + 1.3)
    axes = figure.subplots()
    image = axes.imshow(data.rates, aspect="auto", cmap="Blues", vmin=0, extent=(0.5, T + 0.5, layers - 0.5, -0.5))
    axes.set_yticks(range(layers), data.names)
    axes.set_xlabel("time step")
    figure.colorbar(image, label=data.of.split(",")[0])
    return True


def _samples(report: Report, figure: Figure) -> bool:
    data = figures.sop_distribution(report)
    if data is None:
        return False
    counts, edges = figures.bins(data.values)
    figure.set_size_inches(6, 3)
    axes = figure.subplots()
    axes.stairs(counts, edges, fill=True, color=SNN, alpha=0.45)
    axes.axvspan(data.low, data.high, color=SNN, alpha=0.2, label="95 % interval of the mean")
    axes.axvline(data.mean, color=SNN, label=f"mean {count_text(data.mean)}")
    axes.legend(frameon=False)
    _plain(axes, f"{len(data.values):,} samples", data.what)
    return True


def _steps(report: Report, figure: Figure) -> bool:
    data = figures.step_curve(report)
    if data is None:
        return False
    rows = 1 if data.accuracy is None else 2
    figure.set_size_inches(6, 2.6 * rows)
    axes = figure.subplots(rows, 1, squeeze=False, sharex=True)[:, 0]
    steps = np.arange(1, len(data.energy) + 1)
    scale, unit = energy_scale([*data.energy, data.ann or 0.0])
    axes[-1].bar(steps, data.energy / scale, 0.6, color=SNN)
    if data.ann is not None:
        axes[-1].axhline(data.ann / scale, color=ANN, linestyle="--", label="ANN")
        axes[-1].legend(frameon=False)
    _plain(axes[-1], "" if rows == 2 else data.model, "time steps T' that are run (prefix sums)")
    axes[-1].set_ylabel(f"{unit} per inference")
    if data.accuracy is not None:
        axes[0].plot(steps, data.accuracy, color=SNN, marker="o")
        axes[0].set_ylabel("accuracy")
        _plain(axes[0], data.model, "")
    return True


def _ratios(report: Report, figure: Figure) -> bool:
    data = figures.ratios(report)
    if data is None:
        return False
    figure.set_size_inches(6, 0.4 * len(data.models) + 1.2)
    axes = figure.subplots()
    y = np.arange(len(data.models))
    logs = [math.log10(ratio) for ratio in data.ratios]
    colours = [WORSE if log > 0 else SNN for log in logs]
    axes.hlines(y, 1.0, data.ratios, color=colours)
    axes.scatter(data.ratios, y, color=colours, zorder=3)
    axes.set_xscale("log")
    axes.axvline(1.0, color="0.5", linewidth=0.8)
    axes.set_yticks(y, [f"{name} ({evidence})" for name, evidence in zip(data.models, data.evidence, strict=True)])
    axes.invert_yaxis()
    _plain(axes, "", "energy of the SNN / energy of the ANN")
    return True


def _plain(axes: Axes, title: str, x: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.spines[["top", "right"]].set_visible(False)


_PICTURES: dict[str, Callable[[Report, Any], bool]] = {
    "layers": _layers,
    "rates": _rates,
    "samples": _samples,
    "steps": _steps,
    "ratios": _ratios,
}
PICTURES = tuple(_PICTURES)
"""Names of the pictures."""
