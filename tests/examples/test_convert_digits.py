"""examples/convert_digits.py: the accuracies that a conversion must reach, the table, the picture."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("sklearn")
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "convert_digits.py"


@pytest.fixture(autouse=True)
def other_range() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the calibration data is not in the range")
        yield


@pytest.mark.slow
def test_three_seeds_reach_what_they_must(example: ModuleType, tmp_path: Path) -> None:
    """Means of three seeds; single seeds move by points where a method has not converged."""
    found, anns = example.table(3)
    at = {name: dict(zip(example.STEPS, values, strict=True)) for name, values in found.items()}
    assert anns[0] - at["99.9 %"][16] < 1.0
    assert at["99.9 %"][4] - at["99.9 %, v = 0"][4] >= 20
    assert anns[1] - at["qcfs"][4] < 1.0
    assert at["ltb"][1] >= 90
    data, relu, _ = example.trained(0)
    net = example.convert(relu, data.calibration("percentile"), method="percentile")
    assert all(0.06 <= layer.rate <= 0.2 for layer in net.report.layers), str(net.report)
    example.draw(found, anns, str(tmp_path / "picture.png"))
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_one_short_training_converts(example: ModuleType) -> None:
    data, relu, quantised = example.trained(0, epochs=4)
    assert example.accuracy(relu, data) > 90
    ltb = example.curve("ltb", relu, data)
    assert ltb[-1] > example.accuracy(relu, data) - 3
    assert example.curve("qcfs", quantised, data)[-1] > 85
    net = example.convert(relu, data.calibration("percentile"), method="percentile")
    assert all(0.03 <= layer.rate <= 0.3 for layer in net.report.layers), str(net.report)
    assert "break-even" in example.energy(data, relu, 4)
