"""EventMix: two recordings mixed by a random mask in space and time, their labels in the ratio of their events.

G. Shen, D. Zhao, Y. Zeng, "EventMix: An Efficient Augmentation Strategy for Event-Based Learning", Information Sciences
2023, arXiv:2205.12054. The mask is where the density of a random Gaussian mixture over (t, x, y) is high; inside it the
events are those of the first recording, outside those of the second. How the mixture is drawn is our reconstruction:

    lambda ~ Beta(alpha, alpha)       the part of the volume that is inside
    K centres uniform in the unit cube, deviations uniform in 0.1 ... 0.4 per axis, weights uniform in 0.2 ... 1
    inside where density > threshold, which is the 1 - lambda quantile of the density at 4,096 random points
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikeloom.datasets.events import Events

_POINTS = 4096


def event_mix(
    first: Events, second: Events, generator: torch.Generator, *, alpha: float = 1.0, components: int = 3
) -> tuple[Events, float]:
    """The mixture, and the part of its events that comes from `first`: the weight of its label (1/2 if none is left).

    Times of each recording count from its own first event; the mask spans the longer one.

    Raises:
        ValueError: sensors of different sizes, alpha or components out of range.
    """
    if (first.height, first.width) != (second.height, second.width):
        raise ValueError(
            f"The recordings are of {first.height} x {first.width} and {second.height} x {second.width} pixels; "
            "expected one size."
        )
    if alpha <= 0 or components < 1:
        raise ValueError(f"alpha is {alpha} and components {components}; expected more than 0, and 1 or more.")
    mixture = _mixture(components, generator)
    points = torch.rand((3, _POINTS), generator=generator, device=generator.device).cpu()
    part = _beta(alpha, generator)
    threshold = torch.quantile(_density(points, mixture), 1 - part)
    times = [events.t - events.t[:1] for events in (first, second)]
    span = max(1, *(int(t[-1]) + 1 for t in times if len(t)), 1)
    inside = [_density(_places(e, t, span), mixture) > threshold for e, t in zip((first, second), times, strict=True)]
    masks = (inside[0], ~inside[1])
    t = torch.cat([time[mask] for time, mask in zip(times, masks, strict=True)])
    order = torch.argsort(t, stable=True)
    x, y, p = (
        torch.cat([getattr(events, name)[mask] for events, mask in zip((first, second), masks, strict=True)])[order]
        for name in ("x", "y", "p")
    )
    weight = float(masks[0].sum()) / len(t) if len(t) else 0.5
    return Events(t[order], x, y, p, first.height, first.width), weight


def _beta(alpha: float, generator: torch.Generator) -> float:
    """A number of Beta(alpha, alpha): x / (x + y) of two Gamma numbers, which torch draws with a generator."""
    shape = torch.full((2,), alpha, dtype=torch.float64, device=generator.device)
    x, y = torch._standard_gamma(shape, generator=generator).tolist()
    return x / (x + y) if x + y else 0.5


def _mixture(components: int, generator: torch.Generator) -> Tensor:
    """`[7, K]`: centres, standard deviations, weights."""
    drawn = torch.rand((7, components), generator=generator, device=generator.device).cpu()
    drawn[3:6] = 0.1 + 0.3 * drawn[3:6]
    drawn[6] = 0.2 + 0.8 * drawn[6]
    return drawn


def _density(places: Tensor, mixture: Tensor) -> Tensor:
    """At places `[3, N]`, up to a factor: `[N]`."""
    total = torch.zeros(places.shape[1], device=places.device)
    for centre, deviation, weight in zip(mixture[:3].T, mixture[3:6].T, mixture[6], strict=True):
        apart = (places - centre[:, None].to(places)) / deviation[:, None].to(places)
        total += float(weight) * torch.exp(-0.5 * (apart**2).sum(0))
    return total


def _places(events: Events, t: Tensor, span: int) -> Tensor:
    """Where the events are in the unit cube, `[3, N]`."""
    return torch.stack(((t.double() / span).float(), (events.x + 0.5) / events.width, (events.y + 0.5) / events.height))
