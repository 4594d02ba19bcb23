"""When a result is that of a golden file of SpikMamba."""

from __future__ import annotations

from torch import Tensor


def agree(found: Tensor | None, expected: Tensor, single: bool, what: str) -> None:
    """Double precision: every entry within 1e-10 + 1e-9 of it. Single: the distance within 1e-4 of its norm."""
    assert found is not None, what
    gap = (found.detach().cpu().double().reshape(expected.shape) - expected.double()).abs()
    if single:
        limit = 1e-4 * expected.norm().item() + 1e-5
        assert gap.norm().item() <= limit, f"{what}: {gap.norm().item():.3g} apart, {limit:.3g} allowed"
    else:
        excess = (gap - 1e-10 - 1e-9 * expected.abs()).max().item()
        assert excess <= 0, f"{what}: {gap.max().item():.3g} apart"
