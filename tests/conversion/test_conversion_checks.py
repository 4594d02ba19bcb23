"""What conversion looks at before and after: no images, few images, NaN, another T, the folded graph."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from spikeloom_tests.conversion.nets import mixed, settled
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom import Stream
from spikeloom.conversion import NotConvertibleError, compare, convert, load_converted, save_converted, with_qcfs
from spikeloom.conversion import build as building


def qcfs() -> tuple[nn.Module, Tensor]:
    ann, images = mixed()
    return with_qcfs(ann, L=4, theta=2.0).eval(), images


def test_without_images_the_report_says_that_nothing_was_compared(tmp_path: Path) -> None:
    ann, images = qcfs()
    net = convert(ann, method="qcfs", T=8)
    text = str(net.report)
    assert "not compared with the ANN: no images were given" in text
    assert "same decision" not in text
    assert "thresholds are those of the trained activations" in text
    assert [(y.neurons, y.threshold, math.isnan(y.rate)) for y in net.report.layers] == [(0, 2.0, True)] * 6
    assert str(load_converted(save_converted(net, tmp_path)).report) == text
    given = convert(ann, images.split(16), method="qcfs", T=8).report
    assert (given.images, given.calibrated) == (16, 0)
    assert "same decision for" in str(given)
    assert "not compared" not in str(given)
    assert all(y.rate > 0 and y.neurons for y in given.layers)


@torch.no_grad()
def test_compare() -> None:
    ann, images = qcfs()
    net = convert(ann, method="qcfs", T=64)
    labels = ann(images).argmax(1)
    labels[:16] = (labels[:16] + 1) % 5
    found = compare(ann, net, zip(images.split(24), labels.split(24), strict=True), steps=[1, 64])
    assert (found.images, found.steps, found.ann_accuracy) == (64, (1, 64), 0.75)
    answers = net(images)
    for T, same, right in zip(found.steps, found.agreement, found.accuracy, strict=True):
        decision = answers[:T].mean(0).argmax(1)
        assert same == pytest.approx((decision == ann(images).argmax(1)).double().mean().item())
        assert right == pytest.approx((decision == labels).double().mean().item())
    expected = (answers.mean(0) - ann(images)).abs().mean() / ann(images).abs().mean()
    assert found.error[1] == pytest.approx(expected.item(), rel=1e-4)
    assert "the ANN has 75.00 %" in str(found)
    plain = compare(ann, net, images.split(24))
    assert plain.steps == (1, 2, 4, 8, 16, 32, 64)
    assert math.isnan(plain.ann_accuracy)
    assert "accuracy" not in str(plain)
    assert compare(ann, convert(ann, images.split(4), method="light", T=6), [images]).steps == (6,)
    cos = convert(ann, method="cos", T=4)
    assert "each needs 4 steps more" in str(compare(ann, cos, [images]))
    for loader, says in (([], "no images"), (images, "is a tensor"), ([images, (images, labels)], "64 labels")):
        with pytest.raises(ValueError, match=says):
            compare(ann, net, loader)
    with pytest.raises(ValueError, match=r"expected numbers from 1 to net[.]T = 64"):
        compare(ann, net, [images], steps=[65])
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        compare(ann, net, [images / 0])


def test_parameters_that_are_not_finite_are_named() -> None:
    ann: Any
    ann, images = mixed()
    ann.hidden.bias.data[3] = torch.nan
    with pytest.raises(ValueError, match=r"hidden\.bias \(.*nets.py:\d+.*training diverged"):
        convert(ann, images.split(4))
    ann, _ = qcfs()
    ann.norm.running_var.fill_(-1.0)
    with pytest.raises(ValueError, match=r"folded in: conv\.weight"):
        convert(ann, method="qcfs")


def test_activations_that_are_not_finite_are_named() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
            self.register_buffer("none", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.last(torch.relu(self.first(x)) / self.none)
            return logits

    with pytest.raises(ValueError, match=r"truediv \(.*is the first operation that does"):
        convert(Root(), [torch.randn(32, 4)], method="max")
    ann = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.ones_(ann[0].weight)
    with pytest.raises(ValueError, match=r": 0 \(module 0\) is .*in batch 2"):
        convert(ann, [torch.randn(32, 4), torch.full((2, 4), 3e38)], method="max")


@torch.no_grad()
def test_inputs_that_are_not_finite_give_logits_that_are_not() -> None:
    ann, images = mixed()
    net = convert(ann, images.split(4), T=4)
    x = images[:3].clone()
    clean = net(x)
    x[1, 0, 2, 2] = torch.nan
    found = net(x)
    assert found[:, 1].isnan().all()
    assert torch.equal(found[:, [0, 2]], clean[:, [0, 2]])
    frames = images[:3].repeat(4, 1, 1, 1, 1)
    frames[2, 2, 0, 0, 0] = torch.inf
    found = net(frames)
    assert torch.equal(found.isnan().all(2), torch.tensor([[0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 1]]).bool())
    assert Stream(net)(frames).isnan().sum() == found.isnan().sum()
    cos = convert(ann, images.split(4), method="cos", T=4)
    assert cos(frames)[:, 2].isnan().all()
    assert torch.equal(torch.compile(net, backend="eager")(x).isnan(), net(x).isnan())


def test_few_images_warn_with_figures() -> None:
    ann, images = mixed()
    with pytest.warns(
        UserWarning, match=r"from 3 calibration images in 1 batch.*99.9 % of 30 values, as at relu nets\.py:"
    ):
        net = convert(ann, [images[:3]], method="percentile")
    assert net.report.calibrated == 3
    assert "fewer than 16, coarse" in str(net.report)
    assert "leaves out 0.03 of them: there the percentile is about the maximum" in str(net.report)
    with pytest.warns(UserWarning, match="from 1 calibration image in 1 batch"):
        net = convert(ann, [images[:1]], method="channel_max")
    assert "rates and errors of 1 calibration image in 16 steps" in str(net.report)
    assert "(one image is 100 points)" in str(net.report)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = convert(ann, images.split(8), method="channel_percentile", percentile=90.0)
    assert "thresholds are from 64 calibration images in 8 batches" in str(net.report)
    assert "about the maximum" not in str(net.report)


@torch.no_grad()
def test_rates_and_errors_are_of_several_images() -> None:
    ann, images = mixed()
    net = convert(ann, images.split(16), method="channel_max", T=16)
    assert net.report.images == 16
    last, decisions = images[48:], net(images[48:]).mean(0).argmax(1)
    assert net.report.agreement == pytest.approx((decisions == ann(last).argmax(1)).float().mean().item())
    assert convert(ann, images.split(16), method="channel_max", T=256).report.images == 2


@pytest.mark.parametrize("method", ["mse", "light", "advanced"])
def test_another_number_of_steps_warns_where_thresholds_were_made_for_one(method: str, tmp_path: Path) -> None:
    ann, images = mixed()
    net = convert(ann, images.split(4), method=method, T=8)
    with pytest.warns(UserWarning, match=rf"set to 4.*'{method}' were made for T = 8. Convert again with T=4"):
        net.T = 4
    assert net(images[:2]).shape == (4, 2, 5)
    assert load_converted(save_converted(net, tmp_path)).T == 4  # said once
    net.T = 8
    other = convert(ann, images.split(4), method="channel_max", T=8)
    other.T = 3
    assert other.latency == 3


def test_a_normalisation_that_is_folded_wrongly_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ann, images = mixed()
    right = building.affine_of
    monkeypatch.setattr(building, "affine_of", lambda norm: (right(norm)[0] * 1.01, right(norm)[1]))
    says = r"conv \(.*with batch normalisation norm folded in is the first that differs, by .* in values of size"
    with pytest.raises(NotConvertibleError, match=says):
        convert(ann, images.split(4))


class NormAct(nn.BatchNorm2d):
    """A normalisation, written as a function behind an assert, with its activation."""

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4 axes, got {x.ndim}")
        kept = self.training
        return F.relu(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, kept, eps=self.eps))


@torch.no_grad()
@pytest.mark.parametrize("front", [True, False], ids=["folded", "apart"])
def test_a_normalisation_as_a_function(front: bool) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3)] if front else [nn.ReLU()]
    ann = nn.Sequential(*layers, NormAct(4 if front else 3), nn.Flatten(), nn.LazyLinear(5))
    images = torch.randn(32, 3, 6, 6)
    ann(images)
    ann[1].running_mean.copy_(torch.randn_like(ann[1].running_mean) / 4)
    ann[1].running_var.fill_(0.8)
    net = convert(ann.eval(), [images], method="channel_max", T=512)
    assert len(net.report.layers) == len(layers) + (not front)
    expected = ann(images)
    assert (net(images).mean(0) - expected).abs().max() < 0.02 * expected.abs().max()
    with pytest.raises(NotConvertibleError, match="write it as a module"):
        convert(nn.Sequential(nn.ReLU(), Functional()), [images])


class Functional(nn.Module):
    """Statistics of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, training=True)


def test_levels_do_not_make_rounding_an_error() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    for _ in range(6):
        layers += [nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))
    images = torch.randn(32, 3, 32, 32)
    ann = settled(with_qcfs(net, L=64, theta=2.0), images)
    convert(ann, [images], method="qcfs", T=2)


def test_average_pools_in_the_place_of_max_pools() -> None:
    ann, images = mixed()
    assert convert(ann, images.split(4), max_pool="avg")(images[:2]).shape == (16, 2, 5)
    with torch.no_grad():
        half = ann.bfloat16()
        assert convert(half, images.bfloat16().split(4))(images[:2].bfloat16()).dtype == torch.bfloat16
