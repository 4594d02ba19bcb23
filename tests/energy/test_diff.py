"""Two runs compared."""

from collections.abc import Callable

import numpy as np
import pytest
from rich.console import Console

from spikeloom.energy.counts import Counts, Layer
from spikeloom.energy.diff import EnergyRegressionError, check
from spikeloom.energy.report import Report

Build = Callable[..., Counts]


def text_of(found: object) -> str:
    console = Console(width=150, no_color=True, highlight=False)
    with console.capture() as captured:
        console.print(found)
    return captured.get()


def test_a_run_equals_itself(build: Build) -> None:
    found = check(build(gaps=True), Report(build(gaps=True)))
    assert found.passed
    assert found.total.share == 0
    found.demand()
    assert "passed. SOP per inference" in text_of(found)


def test_a_rise_beyond_the_tolerance_fails_and_names_the_layer(build: Build) -> None:
    after = build()
    after.layers[2].sop = after.layers[2].sop * 2
    found = check(build(), after, tolerance=0.05)
    assert not found.passed
    assert found.total.share > 0.05
    with pytest.raises(EnergyRegressionError, match=r"failed: energy regression.*Most of it: block\.1\.conv \+"):
        found.demand()
    assert "+100.0%" in text_of(found)
    assert check(build(), after, tolerance=1.0).passed
    assert check(after, build(), tolerance=0).passed  # a fall is no regression


def test_the_tolerance_itself_is_allowed() -> None:
    def one(sop: int) -> Counts:
        counts = Counts(1, 1, [], [])
        array = np.array([[sop]], np.int64)
        counts.layers.append(Layer("fc", "linear", "param", "binary", 1.0, array, array, 9, 9, 3, 3, sop_unit=array))
        return counts

    assert check(one(100), one(105), 0.05).passed
    assert not check(one(100), one(106), 0.05).passed
    assert not check(one(0), one(1), 0.05).passed
    assert check(one(0), one(0), 0.0).passed


def test_samples_and_steps_may_differ_and_it_says_so(build: Build) -> None:
    text = text_of(check(build(N=40), build(T=6, N=50, seed=1), tolerance=9))
    assert "The runs have T = 4 and 6." in text
    assert "The runs have samples = 40 and 50." in text


def test_layers_come_and_go_and_change_kind(build: Build) -> None:
    after = build(gaps=True)
    del after.layers[3]
    after.layers[1].kind = "float"
    after.setting["data"] = "others"
    text = text_of(check(build(), after, 9))
    assert "gone" in text
    assert "new" in text
    assert "binary → float" in text
    assert "The data differs: random numbers of the tests and others." in text
    assert "Operations without a counting rule: 0 and 2" in text


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf")])
def test_tolerances_that_mean_nothing(build: Build, tolerance: float) -> None:
    with pytest.raises(ValueError, match="expected a fraction >= 0"):
        check(build(), build(), tolerance)
