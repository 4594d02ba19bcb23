"""Fewer time steps and early exits, from stored counts."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spikeloom.energy.counts import Counts, Layer
from spikeloom.energy.exits import confidences, early_exit, exit_energy, sweep
from spikeloom.energy.models import get_model
from spikeloom.energy.prefix import curve, prefix_energy, what_if
from spikeloom.energy.pricing import price
from spikeloom.energy.totals import Policy, Totals

golden = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("golden_counts.py"))))
LOGITS = torch.tensor([[[2.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]], [[0.0, 6.0, 0.0]]])  # [T = 3, N = 1, K = 3]


def delayed() -> Counts:
    """Two inputs, one output, delays 0 and 2, T = 3, N = 1; both inputs spike in every step."""
    emitted = np.array([[2], [1], [1]])  # the delayed spikes of steps 1 and 2 arrive too late
    arrived = np.array([[1], [1], [2]])
    layer = Layer("d", "delay_linear", "param", "binary", 1.0, emitted, np.array([[2], [2], [2]]), 4 / 3, 6, 1, 2)
    layer = replace(
        layer, sop_at_arrival=arrived, sop_unit=emitted, sop_nonzero_weight=emitted, dense_exact_whole_run=4
    )
    return Counts(3, 1, [layer], [])


def test_golden_early_exit() -> None:
    want = golden.load("conv_bn_lif")["early_exit"]
    logits = load_file(golden.FOLDER / "conv_bn_lif.safetensors")["out.head"]
    counts = golden.counts_of("conv_bn_lif")
    assert np.allclose(confidences(logits), want["confidence"], rtol=0, atol=1e-9)
    steps = early_exit(logits, want["threshold"])
    assert steps.tolist() == want["steps_used"]
    found = exit_energy(counts, steps)
    assert found.ac.tolist() == want["ac"]
    assert found.mac.tolist() == want["mac_effective"]
    assert golden.close(found.energy_pj, want["energy_pj_horowitz45"])


def test_confidences_by_hand() -> None:
    mean = np.array([[2.0, 0, 0], [1.0, 0, 0], [2 / 3, 2, 0]])
    p = np.exp(mean) / np.exp(mean).sum(1, keepdims=True)
    best = np.sort(p, 1)
    assert confidences(LOGITS)[:, 0] == pytest.approx(best[:, -1])
    assert confidences(LOGITS, "margin")[:, 0] == pytest.approx(best[:, -1] - best[:, -2])
    assert confidences(LOGITS, "entropy")[:, 0] == pytest.approx(1 + (p * np.log(p)).sum(1) / np.log(3))
    certain = confidences(torch.tensor([[[1e4, 0.0]], [[1e4, 0.0]]]), "entropy")
    assert certain == pytest.approx(np.ones((2, 1)))
    assert confidences(torch.zeros(1, 1, 4, dtype=torch.bfloat16), "entropy") == pytest.approx(np.zeros((1, 1)))


def test_a_sample_stops_at_the_first_step_or_at_the_last() -> None:
    assert early_exit(LOGITS, 0.0).tolist() == [1]
    assert early_exit(LOGITS, 0.787).tolist() == [3]  # 0.787 0.576 0.714: never again, so T
    assert early_exit(LOGITS, 0.7868).tolist() == [1]
    assert early_exit(LOGITS, 2.0).tolist() == [3]


@pytest.mark.parametrize(
    ("logits", "rule", "message"),
    [
        (LOGITS, "softmax", "expected one of max_softmax"),
        (LOGITS[0], "margin", r"expected \[T, N, K\]"),
        (LOGITS[..., :1], "margin", "two or more classes"),
        (LOGITS / 0, "margin", "NaN or infinity"),
    ],
)
def test_logits_are_checked(logits: torch.Tensor, rule: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confidences(logits, rule)


@pytest.mark.parametrize("case", golden.CASES)
@pytest.mark.parametrize("policy", [Policy(), Policy(static_once=True, include_bias=True)])
def test_fewer_steps_are_the_first_ones(case: str, policy: Policy) -> None:
    counts = golden.counts_of(case)
    whole = price(what_if(counts, counts.T), policy=policy)
    assert whole.mean == pytest.approx(price(counts, policy=policy).mean)
    assert whole.steps is not None
    expected = whole.steps.cumsum(0)
    assert prefix_energy(counts, policy=policy) == pytest.approx(expected)
    for T in range(1, counts.T + 1):
        cut = what_if(counts, T)
        assert (cut.T, cut.samples) == (T, counts.samples)
        assert price(cut, policy=policy).per_sample == pytest.approx(expected[T - 1])
    if not any(layer.sop_at_arrival is not None for layer in counts.layers):
        assert Totals(what_if(counts, 1), policy).ac.tolist() == Totals(counts, policy).ac[:1].tolist()


def test_the_curve_of_models_that_know_steps_and_of_one_that_does_not() -> None:
    counts = golden.counts_of("pruned")
    for model in ("horowitz45_fp32", "loihi2018", "memory45", get_model("lemaire2022", fanout="paper")):
        found = curve(counts, model)
        assert found.shape == (counts.T,)
        assert (np.diff(found) > 0).all()
        assert found[-1] == pytest.approx(price(counts, model).mean)
        assert found[0] == pytest.approx(price(what_if(counts, 1), model).mean)


def test_spikes_on_their_way_are_not_counted() -> None:
    counts = delayed()
    assert [int(what_if(counts, T).layers[0].sop.sum()) for T in (1, 2, 3)] == [1, 2, 4]
    assert curve(counts) == pytest.approx([0.9, 1.8, 3.6])
    cut = what_if(counts, 2).layers[0]
    assert (cut.dense_exact_whole_run, len(cut.notes)) == (None, 2)
    assert exit_energy(counts, np.array([2])).ac.tolist() == [2]


def test_what_if_says_what_it_cannot_do() -> None:
    counts = golden.counts_of("pruned")
    for T in (0, 4):
        with pytest.raises(ValueError, match="expected 1 to 3"):
            what_if(counts, T)
    lost = replace(counts.layers[0], assigned=False, sop=np.array([[7]]), events=np.array([[1]]))
    broken = replace(counts, layers=[lost, *counts.layers[1:]])
    with pytest.raises(ValueError, match="counts of conv1 are known for the whole run only"):
        what_if(broken, 2)
    with pytest.raises(ValueError, match="conv1"):
        curve(broken)
    assert what_if(counts, 2).setting["what_if"] == {"T": 2, "of": 3}
    assert "what_if" not in counts.setting


def test_sweep() -> None:
    counts = golden.counts_of("conv_bn_lif")
    logits = load_file(golden.FOLDER / "conv_bn_lif.safetensors")["out.head"]
    last = logits.mean(0).argmax(-1)
    rows = sweep(logits, last, counts, [0.0, 0.32, 2.0])
    assert [row.mean_steps for row in rows] == pytest.approx([1, 7 / 3, 4])
    assert rows[-1].accuracy == 1.0
    assert rows[-1].energy_pj == pytest.approx(price(counts).mean)
    assert rows[-1].ratio == 1.0
    assert rows[1].energy_pj == pytest.approx(np.mean([53988.6, 27138.0, 108064.2]))
    assert rows[0].accuracy == pytest.approx(float((logits[0].argmax(-1) == last).double().mean()))
    with pytest.raises(ValueError, match="the same steps and samples"):
        sweep(logits[:2], last, counts, [0.5])
    with pytest.raises(ValueError, match="is NaN"):
        sweep(logits, last, counts, [float("nan")])


@pytest.mark.parametrize("steps", [[1, 2], [0, 1, 1], [1, 1, 5], [1.0, 2.0, 3.0]])
def test_steps_used_are_checked(steps: list[float]) -> None:
    with pytest.raises(ValueError, match="one whole number between 1 and 4"):
        exit_energy(golden.counts_of("conv_bn_lif"), np.array(steps))
