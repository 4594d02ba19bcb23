"""EarlyExit: what leaves the batch, what that saves, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from spikeloom_tests.conversion.evidence import CLASSES, network, samples
from torch import Tensor, nn

from spikeloom.conversion.active import batch_axes, select
from spikeloom.conversion.confidence import at_exit, confidences, exit_steps, smoothed
from spikeloom.conversion.early_exit import EarlyExit
from spikeloom.energy import count
from spikeloom.models import create_model
from spikeloom.neurons import Stream
from spikeloom.synapses import NormNeuron

T = 8


@pytest.fixture(scope="module")
def calibrated() -> EarlyExit:
    exits = EarlyExit(network())
    exits.calibrate([samples(300)], T=T, tolerance=0.01)
    return exits


def reference(model: nn.Module, frames: Tensor, alpha: float, threshold: float) -> tuple[Tensor, Tensor]:
    """The equations on the logits of all steps."""
    with torch.no_grad():
        logits = model(frames)
    steps = exit_steps(confidences(logits, alpha), threshold)
    return at_exit(smoothed(logits, alpha), steps), steps


def check_run(exits: EarlyExit, frames: Tensor) -> Tensor:
    assert exits.alpha is not None
    assert exits.threshold is not None
    expected, steps = reference(exits.model, frames, exits.alpha, exits.threshold)
    logits, found = exits.run(frames)
    assert torch.equal(found, steps)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    return found


def test_run_is_what_the_equations_say(calibrated: EarlyExit) -> None:
    steps = check_run(calibrated, samples(100, seed=1)[0])
    assert 1 <= int(steps.min()) < int(steps.max())
    assert steps.double().mean() < 0.8 * T


def test_a_smaller_batch_runs_after_each_exit(calibrated: EarlyExit) -> None:
    frames, _ = samples(60, seed=2)
    seen: list[int] = []
    handle = calibrated.model.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    _, steps = calibrated.run(frames)
    handle.remove()
    assert seen == [int((steps > t).sum()) for t in range(int(steps.max()))]


def test_operations_are_those_of_the_report(calibrated: EarlyExit) -> None:
    """Counted while the batch shrinks, step by step, and told from one run of all steps: the same integers."""
    frames, labels = samples(80, seed=3)
    report = calibrated.report([(frames[:, :30], labels[:30]), (frames[:, 30:], labels[30:])])
    with count(calibrated.model) as run:
        _, steps = calibrated.run(frames)
    really = sum(int(layer.sop.sum()) for layer in run.counts().layers)
    assert report.cost is not None
    assert torch.equal(report.steps, steps)
    assert report.cost.sop_exit == pytest.approx(really / 80, rel=1e-12)
    assert report.cost.sop_fixed > report.cost.sop_exit
    assert report.cost.energy_exit_pj / report.cost.energy_fixed_pj < 0.9


def test_report(calibrated: EarlyExit) -> None:
    frames, labels = samples(120, seed=4)
    report = calibrated.report([(frames, labels)], energy=False)
    logits, steps = calibrated.run(frames)
    assert report.point.correct == int((logits.argmax(1) == labels).sum())
    assert report.point.mean_steps == pytest.approx(float(steps.double().mean()))
    assert report.histogram == tuple(torch.bincount(steps, minlength=T + 1)[1:].tolist())
    assert sum(report.histogram) == 120
    assert report.oracle.accuracy >= report.fixed.accuracy == report.accuracy_by_step[-1]
    assert report.saved == pytest.approx(1 - report.point.mean_steps / T)
    assert report.cost is None
    fixed = report.as_good_fixed
    assert all(a < report.point.accuracy for a in report.accuracy_by_step[: fixed - 1 if fixed else T])
    assert fixed == 0 or report.accuracy_by_step[fixed - 1] >= report.point.accuracy
    text = str(report)
    assert f"{report.point.mean_steps:.2f} of {T} steps" in text
    assert "energy" not in text
    assert len(report.sweep) <= 11
    assert [p.mean_steps for p in report.sweep] == sorted(p.mean_steps for p in report.sweep)


def test_calibration_keeps_the_accuracy_on_its_samples() -> None:
    for tolerance, alpha in ((0.0, "T"), (0.0, "ece"), (0.03, 4.0)):
        exits = EarlyExit(network())
        held_out = samples(200, seed=5)
        found = exits.calibrate([held_out], T=T, tolerance=tolerance, alpha=alpha)
        assert found.point.correct >= found.correct_at_end - tolerance * 200 - 1e-9
        report = exits.report([held_out], energy=False)
        assert (report.point.correct, report.point.mean_steps) == (found.point.correct, found.point.mean_steps)
        assert f"{found.point.threshold:.6f}" in str(found)
    assert exits.alpha == 4.0


def test_without_gains_no_sample_may_be_lost() -> None:
    held_out = samples(300, seed=7)
    exits = EarlyExit(network())
    plain = exits.calibrate([held_out], T=T)
    careful = exits.calibrate([held_out], T=T, gains=False)
    assert careful.point.mean_steps >= plain.point.mean_steps
    with torch.no_grad():
        whole = exits.model(held_out[0]).sum(0).argmax(1) == held_out[1]
    logits, _ = exits.run(held_out[0])
    assert bool((logits.argmax(1) == held_out[1])[whole].all())


@pytest.mark.parametrize("rule", ["entropy", "margin"])
def test_other_rules(rule: str) -> None:
    exits = EarlyExit(network(), rule=rule)
    exits.calibrate([samples(200)], T=T, tolerance=0.02)
    frames, _ = samples(50, seed=6)
    _, steps = exits.run(frames)
    assert exits.alpha is not None
    assert exits.threshold is not None
    with torch.no_grad():
        certain = confidences(exits.model(frames), exits.alpha, rule)
    assert torch.equal(steps, exit_steps(certain, exits.threshold))


def lively(model: nn.Module) -> nn.Module:
    """An untrained network whose neurons fire."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, NormNeuron | nn.BatchNorm1d | nn.BatchNorm2d):
                module.weight.fill_(4.0)
                module.bias.fill_(0.4)
            elif isinstance(module, nn.Linear):
                module.weight.mul_(3)
    return model.eval()


def test_images_are_shown_at_every_step_and_the_number_is_put_back() -> None:
    torch.manual_seed(0)
    model = lively(
        create_model("spikformer_8_384", embed_dim=16, num_heads=2, depth=1, input_size=(16, 16), num_classes=4, T=3)
    )
    nn.init.normal_(model.head.weight)
    x = torch.rand(9, 3, 16, 16)
    with torch.no_grad():
        logits = model(x)
    certain = confidences(logits, 3.0)
    exits = EarlyExit(model, alpha=3.0, threshold=between(certain), T=3)
    _, steps = exits.run(x)
    assert (steps != exit_steps(certain, exits.threshold or 0)).sum() <= 1  # rounding may flip a spike
    assert len(steps.unique()) > 1
    assert model.config.T == 3


def between(certain: Tensor) -> float:
    """A threshold that half of the samples pass before the last step."""
    best = certain[:-1].amax(0).sort().values
    return float((best[len(best) // 2 - 1] + best[len(best) // 2]) / 2)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("conv_snn_tiny", (4, 6, 2, 34, 34)), ("delays_shd_2l_1kc", (12, 6, 140))],
)
def test_models_of_the_registry(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = lively(create_model(name))
    frames = (torch.rand(shape) < 0.2).float()
    with torch.no_grad():
        logits = Stream(model)(frames)
    certain = confidences(logits, 1.0)
    exits = EarlyExit(model, alpha=1.0, threshold=between(certain))
    _, steps = exits.run(frames)
    assert exits.threshold is not None
    assert torch.equal(steps, exit_steps(certain, exits.threshold))
    assert len(steps.unique()) > 1


class Backwards(nn.Module):
    """State with the batch behind the features."""

    streams = True

    def forward(self, x: Tensor, *, state: Any = None, return_state: bool = False) -> Any:
        start = torch.zeros(x.shape[2], x.shape[1]) if state is None else state[0]
        sums = start.t() + x.cumsum(0)
        count_ = torch.zeros(()) if state is None else state[1]
        return (sums, (sums[-1].t(), count_ + len(x))) if return_state else sums


def test_the_batch_axis_is_found() -> None:
    frames, _ = samples(10)
    model = nn.Sequential(Backwards(), network())
    axes = batch_axes(model, frames[:1])
    assert sorted(str(a) for a in axes.values()) == ["(0,)", "(1, None)"]
    stream = Stream(model)
    stream(frames[:3])
    left = torch.tensor([7, 2])
    torch.testing.assert_close(select(stream, axes, left)(frames[3:5][:, left]), model(frames[:5])[3:][:, left])


class Folded(nn.Module):
    """State with the batch folded into the features."""

    streams = True

    def forward(self, x: Tensor, *, state: Any = None, return_state: bool = False) -> Any:
        return (x, (x[-1].flatten(),)) if return_state else x


def test_a_folded_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="single axis with one entry per sample"):
        batch_axes(nn.Sequential(Folded()), samples(4)[0][:1])


class Centred(nn.Module):
    """Not causal: the mean over all steps is taken off."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def test_a_model_that_looks_ahead_is_refused() -> None:
    exits = EarlyExit(nn.Sequential(Centred(), network()).eval())
    with pytest.raises(ValueError, match="step by step the model says other things"):
        exits.calibrate([samples(50)], T=T)


class Rounded(nn.Module):
    """Rounds otherwise where more steps come at once, as convolutions of other shapes do; here enough to see it."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (0.0 if x.dtype == torch.float64 or len(x) == 1 else 0.1)


class OneType(nn.Module):
    """Takes nothing but float32."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise RuntimeError(f"expected float32, got {x.dtype}")
        return x


def test_rounding_is_not_taken_for_looking_ahead() -> None:
    assert EarlyExit(nn.Sequential(Rounded(), network()).eval()).calibrate([samples(50)], T=T).point.samples == 50
    assert EarlyExit(nn.Sequential(OneType(), network()).eval()).calibrate([samples(50)], T=T).point.samples == 50
    with pytest.raises(ValueError, match="step by step the model says other things"):
        EarlyExit(nn.Sequential(OneType(), Centred(), network()).eval()).calibrate([samples(50)], T=T)


class Asserted(nn.Module):
    """Takes nothing but float32, and says so by an assertion."""

    def __init__(self, held: object) -> None:
        super().__init__()
        self.held = held

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return x


class NoCopy:
    """Fails in its own words where a copy is made."""

    def __deepcopy__(self, memo: object) -> NoCopy:
        raise AssertionError("one of a kind")


@pytest.mark.parametrize("held", [0, NoCopy()], ids=("one type", "no copy"))
def test_a_model_of_which_no_copy_in_float64_runs_is_checked_as_it_is(held: object) -> None:
    net = nn.Sequential(Asserted(held), network()).eval()
    assert EarlyExit(net).calibrate([samples(50)], T=T).point.samples == 50
    with pytest.raises(ValueError, match="step by step the model says other things"):
        EarlyExit(nn.Sequential(Centred(), *net).eval()).calibrate([samples(50)], T=T)


def test_saturated_confidence_is_refused() -> None:
    exits = EarlyExit(network())
    frames, labels = samples(50, noise=2.0)
    with pytest.raises(ValueError, match="larger alpha"):
        exits.calibrate([(frames, labels)], T=T, alpha=1e-4)
    assert exits.threshold is None


BAD: list[tuple[str, Callable[[], Any], str]] = [
    ("not calibrated", lambda: EarlyExit(network()).run(samples(4)[0]), "not calibrated"),
    ("no threshold", lambda: EarlyExit(network(), alpha=2.0).report([samples(4)]), "no threshold"),
    ("threshold 1", lambda: EarlyExit(network(), 1.0, 1.0), "between 0 and 1"),
    ("threshold 0", lambda: EarlyExit(network(), 1.0, 0.0), "between 0 and 1"),
    ("threshold nan", lambda: EarlyExit(network(), 1.0, float("nan")), "between 0 and 1"),
    ("alpha", lambda: EarlyExit(network(), -1.0), "alpha"),
    ("rule", lambda: EarlyExit(network(), rule="sure"), "rule='sure'"),
    ("one step", lambda: EarlyExit(network(), T=1), "no early exit"),
    ("one step to calibrate", lambda: EarlyExit(network()).calibrate([samples(4)], T=1), "nothing can stop"),
    ("one frame", lambda: EarlyExit(network(), 1.0, 0.5).run(samples(4, T=1)[0]), "nothing can stop"),
    ("too few frames", lambda: EarlyExit(network()).calibrate([samples(4)], T=9), "at least T=9"),
    ("no batch", lambda: EarlyExit(network()).calibrate([], T=4), "gave no batch"),
    ("no labels", lambda: EarlyExit(network()).calibrate([samples(4)[0]], T=4), "expected a pair"),
    ("empty batch", lambda: EarlyExit(network()).calibrate([samples(0)], T=4), "not empty"),
    (
        "labels of other samples",
        lambda: EarlyExit(network()).calibrate([(samples(4)[0], torch.zeros(3).long())], T=4),
        re.escape("expected class numbers [4]"),
    ),
    (
        "real labels",
        lambda: EarlyExit(network()).calibrate([(samples(4)[0], torch.zeros(4))], T=4),
        "of an integer type",
    ),
    (
        "unknown class",
        lambda: EarlyExit(network()).calibrate([(samples(4)[0], torch.full((4,), CLASSES))], T=4),
        "the model has 5 classes",
    ),
    ("images without T", lambda: EarlyExit(network(), 1.0, 0.5).run(torch.zeros(3, 20)), "no T"),
    ("training", lambda: EarlyExit(network().train()).calibrate([samples(4)], T=4), r"model\.eval\(\)"),
    (
        "mean inside",
        lambda: EarlyExit(nn.Sequential(network(), nn.Flatten(0, 1)).eval()).calibrate([samples(4)], T=4),
        "logits of every step",
    ),
    (
        "other T",
        lambda: EarlyExit(network()).calibrate([samples(9), samples(9, T=5)]),
        "expected one T",
    ),
]


@pytest.mark.parametrize(("call", "says"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
