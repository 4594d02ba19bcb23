"""Images as a source of batches: values, augmentation, mixing, entering an epoch in the middle, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from spikeloom_tests.training.tiny_files import write_cifar, write_fashion

from spikeloom.datasets import Images
from spikeloom.training import Augment, Data
from spikeloom.training.data import Batches, load_test, load_train
from spikeloom.training.sources import check_augment, source

CPU = torch.device("cpu")
EVERYTHING = Augment(
    shift_px=2,
    flip=0.5,
    rand_augment="rand-m9-n1-mstd0.4-inc1",
    rand_operations="five",
    erase=0.5,
    erase_mode="pixel",
    mixup=0.5,
    cutmix=1.0,
    mix_prob=0.8,
)


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data("fashion_mnist", root=str(write_fashion(tmp_path_factory.mktemp("fashion"))), T=4)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Data:
    root = write_cifar(tmp_path_factory.mktemp("cifar"), 10)
    return Data("cifar10", root=str(root), T=4, allow_partial=True)


def test_plain_images_are_normalised_by_channel(cifar: Data) -> None:
    images = load_test(cifar)
    assert isinstance(images, Images)
    batches = list(Batches(images, cifar, 4, CPU).in_order())
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x, _ in batches)
    found = source(cifar)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (found.mean, found.std))
    torch.testing.assert_close(torch.cat([x for x, _ in batches]), (images.images.float() / 255 - mean) / std)
    assert torch.cat([labels for _, labels in batches]).tolist() == images.labels.tolist()


def test_parts_limit_and_validation(fashion: Data) -> None:
    train, held = load_train(replace(fashion, validation=10, limit=20))
    assert held is not None
    assert (len(train), len(held)) == (10, 10)
    assert sorted(held.labels.tolist()) == list(range(10))  # type: ignore[union-attr]
    assert len(load_test(replace(fashion, limit=3))) == 3


@pytest.mark.parametrize("augment", [Augment(shift_px=1, flip=0.5), EVERYTHING], ids=["few", "all"])
def test_an_epoch_can_be_entered_in_the_middle(cifar: Data, augment: Augment) -> None:
    batches = Batches(load_train(cifar)[0], cifar, 8, CPU, augment)
    whole = list(batches.shuffled(seed=1, epoch=3))
    rest = list(batches.shuffled(seed=1, epoch=3, start=1))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(whole[1:], rest, strict=True))
    other = next(batches.shuffled(seed=1, epoch=4))
    assert not torch.equal(other[0], whole[0][0])


def test_augmentation_is_drawn_anew_and_evaluation_has_none(cifar: Data) -> None:
    images = load_train(cifar)[0]
    changed, plain = Batches(images, cifar, 20, CPU, EVERYTHING), Batches(images, cifar, 20, CPU)
    assert torch.equal(next(changed.in_order())[0], next(plain.in_order())[0])
    differs = (next(changed.shuffled(0, 0))[0] - next(plain.shuffled(0, 0))[0]).flatten(1).any(1)
    assert differs.float().mean() > 0.5


def test_mixed_batches_have_shares_as_targets_until_mixing_ends(cifar: Data) -> None:
    augment = Augment(mixup=0.5, mix_epochs=2)
    batches = Batches(load_train(cifar)[0], cifar, 20, CPU, augment)
    plain = Batches(load_train(cifar)[0], cifar, 20, CPU)
    x, shares = next(batches.shuffled(0, 1))
    images, labels = next(plain.shuffled(0, 1))
    assert shares.shape == (20, 10)
    torch.testing.assert_close(shares.sum(1), torch.ones(20))
    own = torch.nn.functional.one_hot(labels, 10).float()
    lam = (shares - own.flip(0))[(own - own.flip(0)).abs() > 0] / (own - own.flip(0))[(own - own.flip(0)).abs() > 0]
    torch.testing.assert_close(lam, lam[:1].expand_as(lam))  # one share for the whole batch
    std = torch.tensor(source(cifar).std).view(3, 1, 1)
    error = (x - (lam[0] * images + (1 - lam[0]) * images.flip(0))) * 255 * std
    assert 0.4 < error.abs().max() < 0.501  # mixed pixels are rounded
    assert next(batches.shuffled(0, 2))[1].shape == (20,)


@pytest.mark.parametrize("mixing", [Augment(mixup=1.0), Augment(cutmix=1.0)], ids=["mixup", "cutmix"])
def test_images_are_erased_after_they_are_mixed(mixing: Augment) -> None:
    values = torch.arange(8, dtype=torch.uint8) * 16 + 130
    images = Images(values.view(8, 1, 1, 1).expand(8, 3, 32, 32).contiguous(), torch.arange(8), ("x",) * 10, "constant")
    data = Data("cifar10")
    batches = Batches(images, data, 8, CPU, replace(mixing, erase=1.0))
    x, shares = next(batches.shuffled(0, 0))
    assert (shares > 0).sum(1).tolist() == [2] * 8
    erased = (x == 0).all(1)
    assert (erased.flatten(1).sum(1) > 10).all()
    found = source(data)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (found.mean, found.std))
    pixels = (x * std + mean) * 255
    for sample, box in zip(pixels, erased, strict=True):  # a box mixed with another image would add a value below 130
        kept = sample[:, ~box]
        assert kept.min() > 129.9
        torch.testing.assert_close(kept, kept.round(), atol=1e-3, rtol=0)
        assert len(kept[0].round().unique()) <= (1 if mixing.mixup else 2)


def test_an_incomplete_last_batch_can_be_dropped(cifar: Data) -> None:
    train, dropping = load_train(cifar)[0], replace(cifar, drop_last=True)
    kept, dropped = (Batches(train, data, 8, CPU, EVERYTHING) for data in (cifar, dropping))
    assert (len(kept), len(dropped)) == (3, 2)
    pairs = zip(kept.shuffled(0, 0), dropped.shuffled(0, 0), strict=False)
    sizes = [(len(y), torch.equal(x, other)) for (x, _), (other, y) in pairs]
    assert sizes == [(8, True), (8, True)]
    assert sum(len(y) for _, y in dropped.in_order()) == 20
    with pytest.raises(ValueError, match=r"20 recordings to train on, and Data\.drop_last leaves no batch of 21"):
        next(Batches(train, dropping, 21, CPU).shuffled(0, 0))


def test_shifts_move_black_pixels_in(fashion: Data) -> None:
    x, _ = next(Batches(load_train(fashion)[0], fashion, 20, CPU, Augment(shift_px=4)).shuffled(0, 0))
    black = (0 - 0.2860) / 0.3530
    assert x.min().item() == pytest.approx(black, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "augment", "message"),
    [
        ("cifar10", Augment(drop=0.1), "cifar10 has images, and Augment.drop changes events"),
        ("cifar10", Augment(frame_op=True), "cifar10 has images, and Augment.frame_op"),
        ("cifar10", Augment(rand_augment="m9"), "expected 'rand' and sections"),
        ("cifar10", Augment(rand_augment="rand-m9-m3"), "has a section twice"),
        ("nmnist", Augment(rand_augment="rand-m9"), "nmnist has events, and Augment.rand_augment"),
        ("saccade_mnist", Augment(erase=0.1), "saccade_mnist has events, and Augment.erase"),
        ("cifar10_dvs", Augment(rotate_degrees=3.0), "binned when they are read, and Augment.rotate_degrees"),
    ],
)
def test_what_cannot_be_done_to_the_data_is_refused(name: str, augment: Augment, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_augment(augment, Data(name))


def test_images_are_not_cropped() -> None:
    with pytest.raises(ValueError, match=r"cifar10 has images, and Data\.crop cuts frames of events"):
        check_augment(Augment(), Data("cifar10", crop=28))
    with pytest.raises(ValueError, match=r"cifar10 has images, and Data\.pool"):
        check_augment(Augment(), Data("cifar10", pool=2))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100", "cifar10_dvs", "dvs_gesture"])
def test_data_without_a_folder_say_what_to_get(name: str) -> None:
    with pytest.raises(ValueError, match=f"The data set {name} is read from files.* Pass --root FOLDER, which holds"):
        load_test(Data(name))
