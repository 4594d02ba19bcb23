"""Parts of batches: together they are the batch, recording by recording and bit by bit, however many there are."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from spikeloom_tests.training.image_folders import write_folder
from spikeloom_tests.training.tiny_files import write_cifar, write_fashion
from torch import Tensor

from spikeloom.training import Augment, Data, Recipe, fit
from spikeloom.training.announce import announcement
from spikeloom.training.data import batches_of, load_train
from spikeloom.training.engine import Engine, Piece
from spikeloom.training.log import RunLog
from spikeloom.training.loop import graph_obstacle, start
from spikeloom.training.split import Split, split_of
from spikeloom.training.team import ALONE, Team

CPU = torch.device("cpu")
MIXED = Augment(shift_px=2, flip=0.5, erase=0.5, erase_mode="pixel", mixup=0.8, cutmix=1.0, rand_augment="rand-m9-n1")


def parts_of(part: object, data: Data, size: int, augment: Augment, parts: int) -> list[list[tuple[Tensor, Tensor]]]:
    """An epoch as each of so many processes has it."""
    pairs = bool(augment.mixup)
    given = None if data.name == "king_james" else augment
    splits = [Split(parts, (rank,), pairs) for rank in range(parts)]
    return [list(batches_of(part, data, size, CPU, given, split).shuffled(3, 1)) for split in splits]  # type: ignore[arg-type]


def check_parts(part: object, data: Data, size: int, augment: Augment, axis: int, parts: int) -> None:
    batches = batches_of(part, data, size, CPU, None if data.name == "king_james" else augment)  # type: ignore[arg-type]
    shares = parts_of(part, data, size, augment, parts)
    pairs = bool(augment.mixup)
    for batch, (x, y) in enumerate(batches.shuffled(3, 1)):
        seen = []
        for rank, own in enumerate(shares):
            split, count = Split(parts, (rank,), pairs), batches.count(batch)
            rows = split.rows(count, rank)
            inputs, targets = own[batch]
            if split.weight(count, rank):
                assert torch.equal(inputs, x.index_select(axis, rows))
                assert torch.equal(targets, y.index_select(1 if data.name == "king_james" else 0, rows))
                seen += rows.tolist()
            if inputs.ndim < 4:
                continue
            assert inputs.flatten(0, -4).is_contiguous(memory_format=torch.channels_last)
        assert sorted(seen) == list(range(batches.count(batch)))  # each recording once


@pytest.mark.parametrize("parts", [2, 4])
def test_images(parts: int, tmp_path: Path) -> None:
    data = Data("cifar10", root=str(write_cifar(tmp_path, 10)), allow_partial=True)
    check_parts(load_train(data)[0], data, 8, MIXED, 0, parts)  # 20 images: the last batch has 4


def test_grey_images_without_mixing(tmp_path: Path) -> None:
    data = Data("fashion_mnist", root=str(write_fashion(tmp_path)))
    check_parts(load_train(data)[0], data, 9, Augment(shift_px=1), 0, 3)


def test_images_of_files(tmp_path: Path) -> None:
    data = Data("image_folder", root=str(write_folder(tmp_path)), image_size=32, workers=0)
    check_parts(load_train(data)[0], data, 8, replace(MIXED, shift_px=0), 0, 2)


def test_events(tiny: Recipe) -> None:
    check_parts(load_train(tiny.data)[0], tiny.data, 8, Augment(shift_px=1, drop=0.3, mixup=0.5), 1, 2)


def test_text() -> None:
    data = Data("king_james", context=16, windows=16, limit=4)
    check_parts(load_train(data)[0], data, 8, Augment(), 1, 4)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5, 8, 13, 64])
def test_rows(count: int, pairs: bool) -> None:
    for parts in (1, 2, 3, 8):
        split = Split(parts, (0,), pairs)
        weights = [split.weight(count, part) for part in range(parts)]
        rows = [split.rows(count, part).tolist() for part in range(parts)]
        assert sum(weights) == pytest.approx(1)
        assert sorted(row for own, weight in zip(rows, weights, strict=True) if weight for row in own) == list(
            range(count)
        )
        assert all(own == [0] for own, weight in zip(rows, weights, strict=True) if not weight)
        if pairs:
            assert all(sorted(own) == sorted(count - 1 - row for row in own) for own in rows if own != [0])


def test_batch_sizes_are_multiples() -> None:
    team = Team(rank=1, size=2)
    assert split_of(Recipe(batch_size=8, accumulate=2), team) == Split(4, (2, 3))
    assert split_of(Recipe(batch_size=7), ALONE) == Split(1, (0,))
    with pytest.raises(ValueError, match=r"batch_size is 6, .* 2 processes and accumulate=2 .*--batch-size 8"):
        split_of(Recipe(batch_size=6, accumulate=2), team)
    with pytest.raises(ValueError, match=r"multiple of 4, for pairs to mix\. Pass --batch-size 8; .* that divides it"):
        split_of(replace(Recipe(batch_size=6), augment=Augment(mixup=0.5)), team)


def test_what_is_said_of_several() -> None:
    recipe = Recipe(batch_size=8, accumulate=2)
    net = torch.nn.Linear(2, 2)
    training = start(recipe, net, CPU)
    batches = batches_of(load_train(Data("king_james", limit=2))[0], Data("king_james", limit=2), 2, CPU)
    assert "batches of 8 in 2 passes" in announcement(training, batches, None, "training")
    training.engine = Engine(net, lambda *_: (torch.zeros(()), None), Team(0, 2))
    said = announcement(training, batches, None, "training")
    assert said.endswith("; 2 processes, a copy in each (DDP): batches of 8, 4 each in 2 passes")


def test_graphs_and_several_processes() -> None:
    gpu = torch.device("cuda")
    assert graph_obstacle(Recipe(), gpu, 1) is None
    assert graph_obstacle(Recipe(), gpu, 2) is None
    assert "2 processes exchange statistics" in str(graph_obstacle(Recipe(shared_statistics=True), gpu, 2))


def test_a_sharded_average_is_refused() -> None:
    with pytest.raises(ValueError, match="shard is for --task language without an average"):
        Recipe(shard=True)


@pytest.mark.parametrize("count", [8, 7])
def test_accumulated_gradients_are_those_of_the_batch(count: int) -> None:
    torch.manual_seed(0)
    net = torch.nn.Linear(5, 3).double()
    x, y = torch.randn(count, 5, dtype=torch.float64), torch.randint(3, (count,))

    def judge(model: torch.nn.Module, x: Tensor, y: Tensor, _: torch.Generator) -> tuple[Tensor, Tensor]:
        logits = model(x)
        return torch.nn.functional.cross_entropy(logits, y), (logits.argmax(1) == y).sum()

    found, split, masks = [], Split(4, (0, 1, 2, 3)), torch.Generator()
    parts = [(split.rows(count, part), split.weight(count, part)) for part in split.own]
    for pieces in ([Piece(x, y, masks)], [Piece(x[rows], y[rows], masks, weight) for rows, weight in parts]):
        net.zero_grad()
        loss, correct = Engine(net, judge).gradient(pieces)
        found.append((loss, correct, net.weight.grad, net.bias.grad))
    for whole, summed in zip(*found, strict=True):
        torch.testing.assert_close(whole, summed, rtol=1e-12, atol=1e-14)


def test_a_run_in_several_passes(tiny: Recipe, tmp_path: Path) -> None:
    accumulated = replace(tiny, accumulate=4, epochs=1)
    result = fit(accumulated, tmp_path / "run", device="cpu", console=Console(quiet=True))
    assert result.test.samples == 20
    lines = RunLog(tmp_path / "run" / "log.jsonl").lines()
    assert [line["step"] for line in lines if line["event"] == "epoch"] == [5]
    again = replace(accumulated, accumulate=2)  # a run may go on in fewer passes
    fit(again, tmp_path / "run", resume=True, device="cpu", console=Console(quiet=True))
