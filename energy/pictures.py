"""The pictures of a report as inline SVG: energy per layer, firing rates, SOP per inference, energy by T', ratios."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from spikeloom.energy.figures import Distribution, LayerEnergy, RateMap, Ratios, StepCurve, bins
from spikeloom.energy.svg import Drawing, shorten, text_width
from spikeloom.energy.units import (
    FULL_BELOW,
    count_scale,
    count_text,
    digits,
    energy_scale,
    energy_text,
    nice_ticks,
    rate_text,
    ratio_text,
    tick_text,
)

WIDTH = 900.0
"""Of a picture as wide as the page's column."""
SIZE = 12.5
"""Of the letters."""
NAME = 30
"""Characters of a layer's name."""


def layer_energy(data: LayerEnergy, width: float = WIDTH) -> str:
    """Two bars a layer: the SNN's energy and the ANN's."""
    names = [shorten(name, NAME) for name in data.names]
    left = 14 + max((text_width(name, SIZE) for name in names), default=40)
    row, top = 34.0, 22.0
    bottom = top + row * len(names)
    scale, unit = energy_scale([*data.snn, *data.ann])
    ticks = nice_ticks(max([*data.snn, *data.ann, 1e-12]) / scale)
    span = (width - left - 78) / ticks[-1]
    own, other = data.labels
    out = Drawing(width, bottom + 34, f"Energy per layer under {data.model}: {own} against {other}.")
    for tick in ticks:
        x = left + tick * span
        out.line(x, top - 6, x, bottom, "grid" if tick else "axis")
        out.text(x, bottom + 15, tick_text(tick), "tick", "middle")
    out.text(left + ticks[-1] * span / 2, bottom + 31, f"{unit} per inference", "tick", "middle")
    for i, (name, snn, ann) in enumerate(zip(names, data.snn, data.ann, strict=True)):
        y = top + i * row
        out.text(left - 10, y + 17, name, "label", "end", tip=data.names[i])
        for energy, style, what, below in ((snn, "snn", own, 2.0), (ann, "ann", other, 15.0)):
            length = energy / scale * span
            out.bar(left, y + below, length, 12, style, tip=f"{data.names[i]}, {what}: {energy_text(energy)}")
            out.text(left + length + 6, y + below + 10, digits(energy / scale), f"value {style}-ink")
    return out.render()


def rate_map(data: RateMap, width: float = WIDTH) -> str:
    """A cell a layer and step, the darker the more it fires; rates are written in where there is room."""
    layers, T = data.rates.shape
    names = [shorten(name, NAME) for name in data.names]
    left = 14 + max((text_width(name, SIZE) for name in names), default=40)
    cell, row = (width - left - 70) / max(T, 1), 26.0 if layers <= 24 else 16.0
    cell = min(cell, 150.0)
    top, largest = 8.0, float(data.rates.max(initial=0.0)) or 1.0
    bottom = top + row * layers
    out = Drawing(width, bottom + 40, f"{data.of[0].upper()}{data.of[1:]}: {layers} layers, {T} time steps.")
    for i in range(layers):
        y = top + i * row
        out.text(left - 10, y + row / 2 + 4, names[i], "label", "end", tip=data.names[i])
        for t in range(T):
            rate = float(data.rates[i, t])
            strength, x = rate / largest, left + t * cell
            tip = f"{data.names[i]}, t = {t + 1}: {rate_text(rate)}"
            out.rect(x + 1, y + 1, cell - 2, row - 2, "cell", tip=tip)
            out.rect(x + 1, y + 1, cell - 2, row - 2, "heat", fill_opacity=round(strength, 3))
            if cell >= 38 and row >= 20:
                ink = "on-heat" if strength > 0.55 else "on-cell"
                out.text(x + cell / 2, y + row / 2 + 4, rate_text(rate), f"value {ink}", "middle")
        mean = float(data.rates[i].mean()) if T else 0.0
        out.text(left + T * cell + 10, y + row / 2 + 4, rate_text(mean), "value", tip=f"{data.names[i]}: mean")
    every = max(1, math.ceil(T * 22 / max(cell * T, 1)))
    for t in range(0, T, every):
        out.text(left + (t + 0.5) * cell, bottom + 16, str(t + 1), "tick", "middle")
    out.text(left + T * cell + 10, bottom + 16, "mean", "tick")
    out.text(left + T * cell / 2, bottom + 33, "time step t", "tick", "middle")
    return out.render()


def distribution(data: Distribution, width: float = WIDTH) -> str:
    """A histogram over samples (dots, if they are few) with the mean and its interval."""
    values = data.values
    low, high = float(values.min()), float(values.max())
    pad = (high - low) * 0.04 or max(abs(high) * 0.02, 0.5)
    low, high = low - pad, high + pad
    left, right, top, base = 46.0, width - 20, 40.0, 208.0
    out = Drawing(width, base + 46, f"Distribution of {data.what} over {len(values)} samples.")

    def x_of(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    if len(values) < 20:
        base = 128.0
        out.height = base + 46
        y = (top + base) / 2 + 8
        for value, times in Counter(values.tolist()).items():  # equal samples are one dot with their number
            out.dot(x_of(value), y, 6, "snn dot", tip=count_text(value) + (f", {times} samples" if times > 1 else ""))
            if times > 1:
                out.text(x_of(value), y - 11, f"×{times}", "value halo", "middle")
    else:
        _columns(out, data, x_of, left, right, top, base)
    if math.isfinite(data.low):
        tip = f"95 % interval of the mean: {count_text(data.low)} to {count_text(data.high)}"
        out.rect(x_of(data.low), top - 4, x_of(data.high) - x_of(data.low), base - top + 4, "interval", tip=tip)
    x = x_of(data.mean)
    out.line(x, top - 10, x, base, "mean")
    anchor = "start" if x < left + 90 else "end" if x > right - 90 else "middle"
    out.text(x, top - 18, f"mean {count_text(data.mean)}", "value strong", anchor)
    out.line(left, base, right, base, "axis")
    _range_ticks(out, low, high, x_of, base)
    out.text((left + right) / 2, base + 36, data.what, "tick", "middle")
    return out.render()


def step_curve(data: StepCurve, width: float = WIDTH) -> str:
    """Energy against T', the ANN's as a line across, and the accuracy above on an axis of its own."""
    steps = len(data.energy)
    left, right = 58.0, width - 112
    accuracy = data.accuracy
    top, high = 30.0, 170.0
    split = top + 110 if accuracy is not None else 0.0
    ceiling = split + 46 if accuracy is not None else top
    base = ceiling + high
    out = Drawing(width, base + 44, f"Energy per inference under {data.model} after each of {steps} time steps.")

    def x_of(step: int) -> float:
        return left + (step - 0.5) / steps * (right - left)

    if accuracy is not None:
        _accuracy(out, accuracy, x_of, (left, right, top, split))
    peak = max(float(data.energy.max(initial=0.0)), data.ann or 0.0, 1e-12)
    scale, unit = energy_scale([peak])
    ticks = nice_ticks(peak / scale, 4)
    height = high / ticks[-1]
    out.text(left, ceiling - 12, f"energy, {unit} per inference", "plain")
    for tick in ticks:
        y = base - tick * height
        out.line(left, y, right, y, "grid" if tick else "axis")
        out.text(left - 8, y + 4, tick_text(tick), "tick", "end")
    thick = min(44.0, (right - left) / steps * 0.62)
    tops = [base - energy / scale * height for energy in data.energy.tolist()]
    for i, (energy, y) in enumerate(zip(data.energy.tolist(), tops, strict=True)):
        style, tip = "snn" if i == steps - 1 else "snn soft", f"T' = {i + 1}: {energy_text(energy)}"
        out.column(x_of(i + 1) - thick / 2, base, thick, base - y, style, tip=tip)
    if data.ann is not None:
        y = base - data.ann / scale * height
        out.line(left, y, right, y, "ann-line", tip=f"ANN: {energy_text(data.ann)}")
        out.text(right + 8, y + 4, f"ANN {energy_text(data.ann)}", "value ann-ink")
    if steps <= 16:  # over the line, so that it does not strike them out
        for i, (energy, y) in enumerate(zip(data.energy.tolist(), tops, strict=True)):
            out.text(x_of(i + 1), y - 6, digits(energy / scale), "value snn-ink halo", "middle")
    for step in _some_steps(steps):
        out.text(x_of(step), base + 16, str(step), "tick", "middle")
    out.text((left + right) / 2, base + 34, "time steps T' that are run", "tick", "middle")
    return out.render()


def ratios(data: Ratios, width: float = WIDTH) -> str:
    """A dot a hardware model on a logarithmic axis: left of 1 the spiking network needs less."""
    names = [shorten(name, NAME) for name in data.models]
    left = 14 + max((text_width(name, SIZE) for name in names), default=40)
    right, row, top = width - 170, 28.0, 38.0
    base = top + row * len(names)
    logs = [math.log10(max(ratio, 1e-9)) for ratio in data.ratios]
    low, high = min([*logs, -0.35]) - 0.12, max([*logs, 0.35]) + 0.12
    out = Drawing(width, base + 40, "Energy of the spiking network over that of the ANN, by hardware model.")

    def x_of(log: float) -> float:
        return left + (log - low) / (high - low) * (right - left)

    one = x_of(0.0)
    out.rect(left, top - 8, one - left, base - top + 8, "less")
    out.rect(one, top - 8, right - one, base - top + 8, "more")
    for value in _log_ticks(low, high):
        x = x_of(math.log10(value))
        out.line(x, top - 8, x, base, "grid")
        out.text(x, base + 15, f"{value:g}x", "tick", "middle")
    out.line(one, top - 8, one, base, "axis")
    out.text(one - 8, top - 18, "← SNN needs less", "tick", "end")
    out.text(one + 8, top - 18, "SNN needs more →", "tick")
    for i, (name, log) in enumerate(zip(names, logs, strict=True)):
        y = top + (i + 0.5) * row
        style = "worse" if log > 0 else "snn"
        out.text(left - 10, y + 4, name, "label", "end", tip=data.models[i])
        out.line(one, y, x_of(log), y, f"stem {style}-stem")
        out.dot(x_of(log), y, 6, style, tip=f"{data.models[i]}: {ratio_text(data.ratios[i])} ({data.evidence[i]})")
        out.text(right + 12, y + 4, ratio_text(data.ratios[i]), "value strong")
        out.text(right + 84, y + 4, data.evidence[i], "tick")
    out.text((left + right) / 2, base + 33, "energy of the SNN / energy of the ANN", "tick", "middle")
    return out.render()


def _columns(
    out: Drawing, data: Distribution, x_of: Callable[[float], float], left: float, right: float, top: float, base: float
) -> None:
    """The histogram's columns and its vertical axis."""
    numbers, edges = bins(data.values)
    ticks = [tick for tick in nice_ticks(float(numbers.max()), 4) if tick == int(tick)]
    height = (base - top - 4) / ticks[-1]
    for tick in ticks[1:]:
        y = base - tick * height
        out.line(left, y, right, y, "grid")
        out.text(left - 8, y + 4, f"{tick:,.0f}", "tick", "end")
    for count, low, high in zip(numbers.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if count:
            x, wide = x_of(low) + 1, x_of(high) - x_of(low) - 2
            tip = f"{count_text(low)} to {count_text(high)}: {count} samples"
            out.column(x, base, max(wide, 1), count * height, "snn soft", tip=tip)
    out.text(left - 8, top - 18, "samples", "tick", "end" if left > 60 else "start", dx=-38 if left <= 60 else 0)


def _range_ticks(out: Drawing, low: float, high: float, x_of: Callable[[float], float], base: float) -> None:
    """Round numbers below a horizontal axis that does not start at 0."""
    scale, unit = count_scale([high])
    if high < FULL_BELOW:
        scale, unit = 1.0, ""
    step = nice_ticks((high - low) / scale, 5)[1]
    places = max(0, -math.floor(math.log10(step) + 1e-9) + (f"{step:.1e}"[:3] == "2.5"))
    for i in range(math.ceil(low / scale / step), math.floor(high / scale / step) + 1):
        x = x_of(i * step * scale)
        out.line(x, base, x, base + 4, "axis")
        out.text(x, base + 17, f"{i * step:,.{places}f}{' ' + unit if unit else ''}", "tick", "middle")


def _accuracy(
    out: Drawing, accuracy: list[float], x_of: Callable[[int], float], box: tuple[float, float, float, float]
) -> None:
    """The upper panel: accuracy after each step, 0 to 1."""
    left, right, top, base = box
    low = max(0.0, math.floor(min(accuracy) * 10 - 0.5) / 10)
    ticks = [low + (1 - low) * i / 2 for i in range(3)]

    def y_of(value: float) -> float:
        return base - (value - low) / (1 - low) * (base - top)

    for tick in ticks:
        out.line(left, y_of(tick), right, y_of(tick), "axis" if tick == low else "grid")
        out.text(left - 8, y_of(tick) + 4, f"{tick:.0%}", "tick", "end")
    points = [(x_of(i + 1), y_of(value)) for i, value in enumerate(accuracy)]
    out.curve(points, "snn-line")
    for i, (x, y) in enumerate(points):
        out.dot(x, y, 4.5, "snn dot", tip=f"T' = {i + 1}: {accuracy[i]:.2%}")
        if len(points) <= 16:
            below = y - 10 < top
            out.text(x, y + (18 if below else -10), f"{accuracy[i]:.1%}", "value halo", "middle")
    out.text(left, top - 12, "accuracy", "plain")


def _some_steps(steps: int) -> list[int]:
    """At most 16 of the steps 1..T, the last among them."""
    every = math.ceil(steps / 16)
    return sorted({*range(steps, 0, -every)})


def _log_ticks(low: float, high: float) -> list[float]:
    """Round ratios between 10^low and 10^high."""
    digits_of = (1, 2, 5) if high - low < 2.5 else (1,)
    powers = range(math.floor(low) - 1, math.ceil(high) + 1)
    values = [digit * 10.0**power for power in powers for digit in digits_of]
    return [value for value in values if low <= math.log10(value) <= high]
