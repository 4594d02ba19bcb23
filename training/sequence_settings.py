"""Settings of simulated sequences: the random manifolds of a recipe."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Manifolds:
    """Smooth random manifolds, whose coordinates become the time of one spike per channel; see random_manifolds."""

    classes: int = 10
    """Manifolds, one per class."""
    units: int = 20
    """Channels, each with one spike per recording."""
    dims: int = 2
    """Dimension of a manifold: how many numbers make a recording."""
    alpha: float = 2.0
    """Smoothness: the amplitudes of the Fourier series of a manifold fall with frequency to this power."""
    length: int = 50
    """Time steps of a recording."""
    train: int = 200
    """Recordings of each class to train on."""
    test: int = 100
    """Recordings of each class to test on."""
    seed: int = 0
    """Of the manifolds and the recordings on them."""

    def __post_init__(self) -> None:
        for name in ("classes", "units", "dims", "length", "train", "test"):
            value = getattr(self, name)
            if value < (2 if name in ("classes", "length") else 1):
                raise ValueError(f"Manifolds.{name} is {value}; expected more.")
        if not (self.alpha > 0 and self.seed >= 0):
            raise ValueError(f"Manifolds has alpha={self.alpha}, seed={self.seed}; expected above 0, and 0 or more.")
