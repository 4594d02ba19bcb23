"""Conversion of whole networks: the limit, streams, energy, files, settings."""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from spikeloom_tests.conversion.nets import Mixed, mixed, settled
from torch import Tensor, nn

import spikeloom
from spikeloom.conversion import (
    METHODS,
    QCFS,
    ClippedReLU,
    ConvertedNet,
    QuantisedReLU,
    convert,
    load_converted,
    save_converted,
    settings,
    with_qcfs,
)
from spikeloom.conversion.correct import fit_weights
from spikeloom.energy import count
from spikeloom.models.files import CheckpointError


def converted(ann: nn.Module, images: Tensor, **choices: Any) -> ConvertedNet:
    return convert(ann, images.split(4), **choices)


@torch.no_grad()
def apart(net: ConvertedNet, ann: nn.Module, x: Tensor, T: int) -> float:
    """Largest difference of mean logits, relative to the largest logit."""
    net.T = T
    expected = ann(x)
    return ((net(x).mean(0) - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("max_pool", ["auto", "exact"])
def test_the_limit_is_the_ann(max_pool: str, fold: bool) -> None:
    ann, images = mixed()
    net = converted(ann, images, method="channel_max", max_pool=max_pool, fold=fold)
    errors = [apart(net, ann, images[:4], T) for T in (16, 128, 1024)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.01
    call = [re.sub(r"\d+$", "LINE", y.name) if "nets.py" in y.name else y.name for y in net.report.layers]
    relu = "relu nets.py:LINE"
    assert call == ["relu", relu, "relu#2", relu, relu, "clamp nets.py:LINE"]
    assert all(y.name.split(":")[1] == y.where.split(":")[1] for y in net.report.layers if "nets.py" in y.name)
    assert all(layer.name in str(net.report) for layer in net.report.layers)
    assert net.report.layers[-1].largest <= 2.5


def test_scales_fold_without_a_difference() -> None:
    ann, images = mixed()
    ann, images = ann.double(), images.double()
    first, second = (converted(ann, images, fold=fold, T=8) for fold in (True, False))
    with torch.no_grad():
        torch.testing.assert_close(first(images), second(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("qcfs", "weights")])
def test_every_method_approaches_the_ann(method: str) -> None:
    ann, images = mixed()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "local threshold", UserWarning)
        net = converted(ann, images, method=method, T=32, scale=1.0)
    assert apart(net, ann, images[:8], 32) < 0.5
    assert net.latency == (36 if method in ("cos", "srp") else 32)
    assert net.report.T == 32
    assert "clipped" in str(net.report)


def test_fitted_weights_are_closer() -> None:
    torch.manual_seed(0)
    layer, x, theta, T = nn.Linear(12, 8), torch.rand(256, 12), torch.tensor(1.0), 4
    target = torch.relu(layer(x + 0.3)).detach()  # what comes in is too small, as behind neurons that clip

    def error() -> float:
        levels = (layer(x) * T / theta + 0.5).floor().clamp(0, T)
        return (levels * theta / T - target).square().mean().item()

    before = error()
    fit_weights(layer, x, target, theta, settings("weights", T=T, iterations=300, lr=2e-3))
    assert error() < 0.95 * before
    ann, images = mixed()
    net = converted(ann, images, method="weights", T=4, iterations=3)
    assert apart(net, ann, images, 4) < 1


def test_the_ann_is_left_alone() -> None:
    ann, images = mixed()
    ann.train()
    before = copy.deepcopy(ann.state_dict())
    converted(ann, images, method="light")
    assert ann.training
    assert all(torch.equal(value, before[name]) for name, value in ann.state_dict().items())


def test_images_frames_and_chunks_agree() -> None:
    ann, images = mixed()
    net = converted(ann, images, T=6)
    x = images[:3]
    frames = x.expand(6, *x.shape)
    with torch.no_grad():
        whole = net(frames)
        stream = spikeloom.Stream(net)
        assert torch.equal(torch.cat([stream(frames[:2]), stream(frames[2:])]), whole)
        torch.testing.assert_close(net(x), whole, rtol=0, atol=1e-5)
    assert whole.shape == (6, 3, 5)
    with pytest.raises(ValueError, match="expected floating-point images of 4 axes"):
        net(x[0])


def test_energy_counts_every_operation() -> None:
    ann, images = mixed()
    net = converted(ann, images, T=4)
    with torch.no_grad(), count(net, T=4, strict=True) as run:
        net(images[:2])
    counts = run.counts()
    assert [y.kind for y in counts.layers] == ["float", "binary", "binary", "binary", "binary"]
    assert counts.layers[0].static_input
    assert len(counts.aux) >= 6


@pytest.mark.parametrize("method", ["ltb", "advanced", "cos"])
def test_a_folder_gives_the_network_back(method: str, tmp_path: Path) -> None:
    ann, images = mixed()
    net = converted(ann.double(), images.double(), method=method, T=5)
    again = load_converted(save_converted(net, tmp_path / "net"))
    with torch.no_grad():
        assert torch.equal(again(images.double()), net(images.double()))
    assert (again.config, again.report, again.latency) == (net.config, net.report, net.latency)
    save_converted(net, tmp_path / "net")
    (tmp_path / "net" / "config.json").write_text('{"model": "conv_snn_tiny", "model_config": {}}')
    with pytest.raises(CheckpointError, match="no converted network"):
        load_converted(tmp_path / "net")
    (tmp_path / "net" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="other things too"):
        save_converted(net, tmp_path / "net")


def test_gradients_reach_the_input_and_deepcopy_works() -> None:
    ann, images = mixed()
    net = copy.deepcopy(converted(ann, images, T=3))
    x = images[:2].clone().requires_grad_()
    net(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_qcfs_trains_and_converts_without_data() -> None:
    _, images = mixed()
    torch.manual_seed(1)
    net = with_qcfs(settled(Mixed(), images), L=4, theta=1.5).double()
    assert sum(isinstance(module, QCFS) for module in net.modules()) == 6
    spiking = convert(net.eval(), method="qcfs", T=4, max_pool="exact")
    assert apart(spiking, net, images[:4].double(), 4) < 1
    assert [float(layer.v_threshold) for layer in spiking.layers.values() if hasattr(layer, "v_threshold")] == [1.5] * 6


def test_trained_clips_are_the_thresholds() -> None:
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(6, 8), ClippedReLU(1.5), nn.Linear(8, 8), QuantisedReLU(2, 0.25), nn.Linear(8, 3))
    x = torch.randn(32, 6)
    ann(x).sum().backward()
    net = convert(ann, method="qcfs", T=64)
    layers: Any = net.layers
    assert [float(layers[name].v_threshold) for name in ("_1", "_3")] == [1.5, 0.75]
    assert net(x).shape == (64, 32, 3)


def test_settings() -> None:
    assert settings("light", T=8).correct == "bias"
    assert settings("cos", rho=8, T=8).latency == 16
    with pytest.raises(ValueError, match="nearest: ltb"):
        settings("lbt")
    with pytest.raises(ValueError, match="has no field 'theta'"):
        settings("max", theta=3)
    for bad in ({"T": 0}, {"percentile": 0.0}, {"scale": -1.0}, {"offset": "cos", "initial": 0.0}):
        with pytest.raises(ValueError, match=r"expected|leave"):
            settings("max", **bad)
