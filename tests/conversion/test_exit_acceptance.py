"""Early exit of converted networks and one-step training on scikit-learn's digits: what must hold on average."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.conversion import QCFS, DietConfig, EarlyExit, ReluVGG, convert, diet_from_ann, prune_time
from spikeloom.conversion.iir import accuracy

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
Labelled = tuple[Tensor, Tensor]


def digits(seed: int) -> tuple[Labelled, Labelled]:
    """70 % and 30 %, stratified."""
    datasets = pytest.importorskip("sklearn.datasets")
    from sklearn.model_selection import train_test_split

    found: Any = datasets.load_digits()
    x, y = torch.tensor(found.images / 16, dtype=torch.float32)[:, None], torch.tensor(found.target).long()
    learn, test = train_test_split(range(len(y)), test_size=0.3, stratify=found.target, random_state=seed)
    return (x[learn], y[learn]), (x[test], y[test])


def train(net: nn.Module, data: Labelled, optimizer: Any, epochs: int, cosine: bool) -> nn.Module:
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs) if cosine else None
    x, y = data
    net.train()
    for _ in range(epochs):
        for index in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[index]), y[index]).backward()
            optimizer.step()
        if schedule is not None:
            schedule.step()
    return net.eval()


def qcfs_net() -> nn.Sequential:
    def act() -> QCFS:
        return QCFS(L=4, theta=4.0)

    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), act(), nn.AvgPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), act(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 64), act(), nn.Linear(64, 10)),
    )


def test_early_exit_of_a_converted_network() -> None:
    """Means of three seeds: half of the steps at most 0.6 points below T = 16, operations in proportion, an oracle."""
    saved, lost, proportion = [], [], []
    for seed in range(3):
        learn, test = digits(seed)
        torch.manual_seed(seed)
        net = qcfs_net()
        sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        exits = EarlyExit(convert(train(net, learn, sgd, 25, True), method="qcfs", T=16), T=16)
        exits.calibrate([learn], alpha="T")
        report = exits.report([test])
        assert report.cost is not None
        assert report.oracle.accuracy >= report.fixed.accuracy
        saved.append(report.saved)
        lost.append(report.lost)
        proportion.append(report.cost.sop_exit / report.cost.sop_fixed / (report.point.mean_steps / 16))
    assert sum(saved) / 3 >= 0.5
    assert sum(lost) / 3 <= 0.006
    assert sum(proportion) / 3 == pytest.approx(1, abs=0.15)


def test_one_step_after_temporal_pruning() -> None:
    layers = (16, 16, 16, 16, "A", 16, 16, 16, 16, "A")
    learn, test = digits(0)
    torch.manual_seed(0)
    ann = ReluVGG(DietConfig(layers, (64,), in_channels=1, input_size=(8, 8), dropout=0.0))
    train(ann, learn, torch.optim.Adam(ann.parameters(), lr=2e-3), 20, False)
    right = float((ann(test[0]).argmax(1) == test[1]).double().mean())
    assert accuracy(diet_from_ann(ann, learn[0][:200], T=60, scale=1.0), *test) >= right - 0.02
    start = diet_from_ann(ann, learn[0][:200], T=5, scale=0.4)
    found = prune_time(start, learn, learn, epochs=8, lr=1e-3, say=None)
    assert accuracy(found.net, *test) >= 0.9
    assert found.net.config.T == 1
