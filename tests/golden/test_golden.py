"""Every golden file below --golden, compared by its family's runner (see conftest.py)."""

from __future__ import annotations

from typing import Any

import pytest


def test_golden(golden_case: Any) -> None:
    if golden_case.runner is None:
        pytest.skip(f"nothing compares the family {golden_case.family} yet")
    golden_case.runner.check(golden_case.path, golden_case.variant)
