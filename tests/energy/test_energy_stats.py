"""Mean, standard deviation and interval of a data set's energies."""

import runpy
from math import isnan, sqrt
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from spikeloom.energy.pricing import price
from spikeloom.energy.stats import interval, t_quantile, to_dict

golden = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("golden_counts.py"))))


@pytest.mark.parametrize("case", golden.CASES)
def test_golden_statistics(case: str) -> None:
    want = golden.load(case)["totals"]["dataset_stats_horowitz45"]
    found = interval(price(golden.counts_of(case)).per_sample)
    assert golden.close([found.n, found.mean, found.sd, found.sem], [want[name] for name in ("n", "mean", "sd", "sem")])


@pytest.mark.parametrize(
    ("p", "degrees", "expected"),
    # Table of Student's t, three decimals
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 5, 2.571),
        (0.975, 30, 2.042),
        (0.995, 10, 3.169),
        (0.95, 120, 1.658),
    ],
)
def test_quantiles_of_the_table(p: float, degrees: int, expected: float) -> None:
    assert t_quantile(p, degrees) == pytest.approx(expected, abs=5e-4)


def test_quantiles_with_closed_forms() -> None:
    for p in (0.51, 0.75, 0.9, 0.975, 0.9999):
        assert t_quantile(p, 1) == pytest.approx(np.tan(np.pi * (p - 0.5)), rel=1e-12)
        assert t_quantile(p, 2) == pytest.approx((2 * p - 1) * sqrt(2 / (1 - (2 * p - 1) ** 2)), rel=1e-12)


def test_quantiles_and_interval_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for p in (0.55, 0.75, 0.95, 0.975, 0.995, 0.9999):
        for degrees in (1, 2, 3, 4, 7, 29, 100, 999, 99_999):
            assert t_quantile(p, degrees) == pytest.approx(stats.t.ppf(p, degrees), rel=1e-9)
    values = np.random.default_rng(0).normal(5, 2, 40)
    for level in (0.9, 0.95, 0.99):
        low, high = stats.t.interval(level, 39, values.mean(), stats.sem(values))
        found = interval(values, level)
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)


def test_interval_of_four_values_by_hand() -> None:
    found = interval([1.0, 2.0, 3.0, 4.0])
    assert (found.n, found.mean, found.sd, found.sem) == pytest.approx((4, 2.5, sqrt(5 / 3), sqrt(5 / 12)))
    assert found.high - found.mean == pytest.approx(3.182446 * sqrt(5 / 12), rel=1e-6)
    assert found.percentiles[50.0] == 2.5
    assert to_dict(found)["p25"] == 1.75


def test_one_value_has_no_interval() -> None:
    found = interval([3.0])
    assert found.mean == 3.0
    assert all(isnan(x) for x in (found.sd, found.sem, found.low, found.high))


def test_bootstrap_repeats_with_its_seed_and_is_close_to_t() -> None:
    values = np.random.default_rng(0).exponential(1.0, 200)
    one, two = interval(values, bootstrap=2000, seed=7), interval(values, bootstrap=2000, seed=7)
    assert one == two
    assert one != interval(values, bootstrap=2000, seed=8)
    student = interval(values)
    # two ways to the same interval of about 0.28: they differ by a few per cent of it
    assert (one.low, one.high) == pytest.approx((student.low, student.high), abs=0.02)
    assert to_dict(one)["seed"] == 7


@pytest.mark.parametrize("values", [[], [[1.0]], [1.0, float("nan")], [float("inf")]])
def test_values_that_are_no_vector_of_numbers(values: list[float]) -> None:
    with pytest.raises(ValueError, match="expected a vector of finite numbers"):
        interval(values)


def test_other_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        interval([1.0, 2.0], level=95)
    with pytest.raises(ValueError, match="resamples and a seed"):
        interval([1.0, 2.0], bootstrap=100)
    with pytest.raises(ValueError, match=r"expected 0\.5 < p < 1"):
        t_quantile(0.5, 3)
    with pytest.raises(ValueError, match="degrees of freedom"):
        t_quantile(0.975, 0)
