"""Sequential balancing against its definition, and temporal pruning down to one step on digits of 14 x 14 pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.conversion.balance import balance_, diet_from_ann, percentile
from spikeloom.conversion.diet_vgg import DietConfig, DietVGG, ReluVGG
from spikeloom.conversion.iir import Pruned, accuracy, prune_time
from spikeloom.datasets import MNIST5k

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = DietConfig((8, "A", 8), (16,), in_channels=1, input_size=(14, 14), dropout=0.0)


def digits(part: str, each: int) -> tuple[Tensor, Tensor]:
    """MNIST-5k at 14 x 14 pixels, `each` of every digit, shuffled."""
    data = MNIST5k("train" if part == "train" else "test")
    index = torch.cat([(data.labels == digit).nonzero().squeeze(1)[:each] for digit in range(10)])
    index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))]
    images = F.avg_pool2d(data.images[index].float()[:, None] / 255, 2)
    return images, data.labels[index]


@pytest.fixture(scope="module")
def trained() -> tuple[ReluVGG, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    x, y = digits("train", 100)
    ann = ReluVGG(CONFIG)
    optimizer = torch.optim.Adam(ann.parameters(), lr=4e-3)
    for _ in range(12):
        for index in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(ann(x[index]), y[index]).backward()
            optimizer.step()
    return ann.eval(), (x, y), digits("test", 40)


def test_percentile_is_the_published_index() -> None:
    values = torch.arange(1000.0)[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    assert percentile(values) == round(0.997 * 999)  # 1 + 996 = the 997th smallest, which is 996
    assert percentile(torch.tensor([3.0])) == 3.0


def test_balancing_is_its_definition(trained: Any) -> None:
    """Currents of whole runs, one layer after the other, kept step by step."""
    ann, (x, _), _ = trained
    net = DietVGG(CONFIG)
    net.load_state_dict(ann.state_dict(), strict=False)
    found = balance_(net, x[:30], steps=11, scale=0.5)
    twin = DietVGG(CONFIG)
    twin.load_state_dict(ann.state_dict(), strict=False)
    twin.set_steps(11)
    twin.eval()
    for block, threshold in zip(twin.blocks(), found, strict=True):
        seen: list[Tensor] = []
        handle = block.synapse.register_forward_hook(lambda module, given, y, seen=seen: seen.append(y))
        with torch.no_grad():
            twin(x[:30])
        handle.remove()
        assert threshold == pytest.approx(0.5 * max(percentile(step) for step in seen[0]), rel=1e-5)
        assert isinstance(block.fire.v_threshold, nn.Parameter)
        block.fire.v_threshold.data.fill_(threshold / 0.5)
    assert [n.v_threshold.item() for n in net.neurons()] == pytest.approx(found)
    assert [n.leak.item() for n in net.neurons()] == [1.0, 1.0, 1.0]


def test_many_steps_are_as_good_as_the_ann(trained: Any) -> None:
    ann, (x, _), (xt, yt) = trained
    right = float((ann(xt).argmax(1) == yt).double().mean())
    snn = diet_from_ann(ann, x[:200], T=60, steps=40, scale=1.0)
    assert right > 0.85
    assert accuracy(snn, xt, yt) > right - 0.03
    assert not snn.training


@pytest.fixture(scope="module")
def pruned(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pruned, Path, list[str]]:
    ann, train, held_out = trained
    net = diet_from_ann(ann, train[0][:200], T=3)
    folder, said = tmp_path_factory.mktemp("pruning") / "stages", list[str]()
    return prune(net, train, held_out, folder, said.append), folder, said


def prune(net: DietVGG, train: Any, held_out: Any, folder: Path, say: Callable[[str], None]) -> Pruned:
    return prune_time(net, train, held_out, stages=(3, 1), epochs=5, lr=4e-3, folder=folder, say=say)


def test_one_step_is_learned(pruned: Any, trained: Any) -> None:
    found, folder, said = pruned
    _, _, (xt, yt) = trained
    assert [stage.T for stage in found.stages] == [3, 1]
    assert found.stages[-1].after > 0.8
    assert all(stage.after >= stage.before for stage in found.stages)
    assert found.net.config.T == 1
    assert accuracy(found.net, xt, yt) == found.stages[-1].after
    assert accuracy(found.at(3), xt, yt) == found.stages[0].after
    assert len(said) == 2
    assert said[0].startswith("T=3: ")
    assert found.table().count("\n") == 2
    for neuron in found.net.neurons():
        assert neuron.leak.item() <= 1
        assert neuron.v_threshold.item() > 0
    assert {path.name for path in folder.iterdir()} == {"pruning.json", "T3", "T1"}


def test_one_step_has_no_memory(pruned: Any, trained: Any) -> None:
    found, _, _ = pruned
    _, _, (xt, yt) = trained
    before = [neuron.leak.item() for neuron in found.net.neurons()]
    found.net.zero_grad()
    F.cross_entropy(found.net(xt).sum(0), yt).backward()
    assert [float(neuron.leak.grad) for neuron in found.net.neurons()] == [0.0] * len(before)
    assert any(float(neuron.v_threshold.grad) != 0 for neuron in found.net.neurons())


def test_a_second_call_goes_on(pruned: Any, trained: Any, tmp_path: Path) -> None:
    """After a stage is taken away it is trained again from the one before, to the same bits."""
    found, folder, _ = pruned
    ann, train, held_out = trained
    net = diet_from_ann(ann, train[0][:200], T=3)
    (folder / "T1" / "stage.json").unlink()
    again = prune(net, train, held_out, folder, lambda line: None)
    assert again.stages == found.stages
    for ours, theirs in zip(again.weights[-1].values(), found.weights[-1].values(), strict=True):
        assert torch.equal(ours, theirs)
    settings = json.loads((folder / "pruning.json").read_text())
    assert settings["stages"] == [3, 1]
    with pytest.raises(ValueError, match="other settings"):
        prune_time(net, train, held_out, stages=(2, 1), epochs=5, lr=4e-3, folder=folder, say=None)


def test_the_budget_stops(trained: Any) -> None:
    ann, train, held_out = trained
    net = diet_from_ann(ann, train[0][:200], T=8, scale=1.0)
    said: list[str] = []
    found = prune_time(net, train, held_out, stages=(60, 1), epochs=0, budget=0.05, say=said.append)
    assert [stage.T for stage in found.stages] == [60]
    assert "beyond the budget" in said[-1]
    assert found.net.config.T == 60


BAD: list[tuple[str, Callable[[Any], Any], str]] = [
    ("rising", lambda data: prune_time(DietVGG(CONFIG), data, data, stages=(1, 2)), "falling"),
    ("none", lambda data: prune_time(DietVGG(CONFIG), data, data, stages=()), "falling"),
    ("lr", lambda data: prune_time(DietVGG(CONFIG), data, data, lr=0.0), "lr=0.0"),
    ("labels", lambda data: prune_time(DietVGG(CONFIG), (data[0], data[1][:3]), data), r"\[N, C, H, W\] and \[N\]"),
    ("empty", lambda data: prune_time(DietVGG(CONFIG), (data[0][:0], data[1][:0]), data), r"\[N, C, H, W\]"),
    ("black images", lambda data: balance_(DietVGG(CONFIG), 0 * data[0]), "no positive current"),
    ("no images", lambda data: balance_(DietVGG(CONFIG), data[0][:0]), "at least one image"),
    ("pixels", lambda data: balance_(DietVGG(CONFIG), torch.rand(2, 1, 8, 8)), "was built for"),
    ("scale", lambda data: balance_(DietVGG(CONFIG), data[0], scale=0.0), "scale"),
    ("steps", lambda data: balance_(DietVGG(CONFIG), data[0], steps=0), "steps"),
]


@pytest.mark.parametrize(("call", "says"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input(call: Callable[[Any], Any], says: str, trained: Any) -> None:
    x, y = trained[1]
    with pytest.raises(ValueError, match=says):
        call((x[:10], y[:10]))


def test_biases_are_refused(trained: Any) -> None:
    ann = ReluVGG(CONFIG)
    ann.convs[0].synapse.bias = nn.Parameter(torch.zeros(8))
    with pytest.raises(ValueError, match=r"has biases \(convs\.0\.synapse\.bias\)"):
        diet_from_ann(ann, trained[1][0][:5])


def test_another_start_is_not_taken_for_the_same(tmp_path: Path) -> None:
    config = DietConfig((4, "A"), (8,), in_channels=1, input_size=(4, 4), num_classes=3)
    data = torch.rand(6, 1, 4, 4, dtype=torch.float64), torch.arange(6) % 3
    nets = [DietVGG(config).double() for _ in range(2)]
    found = prune_time(nets[0], data, data, stages=(2, 1), epochs=1, folder=tmp_path, say=None)
    assert found.at(2).head.weight.dtype == torch.float64
    again = prune_time(nets[0], data, data, stages=(2, 1), epochs=1, folder=tmp_path, say=None)
    assert torch.equal(again.net.head.weight, found.net.head.weight)
    with pytest.raises(ValueError, match="starting weights"):
        prune_time(nets[1], data, data, stages=(2, 1), epochs=1, folder=tmp_path, say=None)
