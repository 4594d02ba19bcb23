"""Batches without a wait: one copy to the device, and nothing that reads the device's values."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from spikeloom_tests.kernels.waits import no_waiting
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spikeloom.datasets import Images, flip_images, random_crop, random_erase
from spikeloom.training import Augment, Data
from spikeloom.training.data import Batches
from spikeloom.training.data import generator_for as seeded
from spikeloom.training.frame_store import StoredFrames
from spikeloom.training.mixing import mix
from spikeloom.training.one_copy import sent
from spikeloom.training.sources import make_rand_augment, source

CPU = torch.device("cpu")
DATA = Data("cifar10")
CASES = {
    "paper": Augment(flip=0.5, rand_augment="rand-m9-n1-mstd0.4-inc1", rand_operations="five", erase=0.25, mixup=0.5),
    "all": Augment(shift_px=4, flip=0.5, rand_augment="rand-m9-n3-inc1", erase=0.5, cutmix=1.0, mix_prob=0.7),
    "noise": Augment(shift_px=2, erase=0.9, erase_mode="pixel", mixup=0.5, cutmix=1.0),
    "nothing": Augment(),
}


def pictures(count: int = 48) -> Images:
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    pixels = (torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear") * 255).to(torch.uint8)
    return Images(pixels, torch.arange(count) % 10, tuple("0123456789"), "smooth")


def step_by_step(
    images: Images, augment: Augment, indices: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A batch by the functions that draw and change in one call."""
    x = images.images[indices]
    x = random_crop(x, augment.shift_px, generator) if augment.shift_px else x
    x = flip_images(x, generator, augment.flip) if augment.flip else x
    rand_augment = make_rand_augment(augment, source(DATA))
    x = x if rand_augment is None else rand_augment(x, generator)
    x, targets = mix(x, images.labels[indices], 10, augment, 0, generator)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (source(DATA).mean, source(DATA).std))
    x = (x.float() / 255 - mean) / std
    return random_erase(x, generator, augment.erase, augment.erase_mode) if augment.erase else x, targets


@pytest.mark.parametrize("augment", CASES.values(), ids=CASES)
def test_drawing_first_changes_no_number(augment: Augment) -> None:
    images = pictures()
    batches = Batches(images, DATA, 16, CPU, augment)
    order = torch.randperm(48, generator=seeded(3, 0, 0))
    for number, (x, targets) in enumerate(batches.shuffled(3, 0)):
        wanted = step_by_step(images, augment, order[16 * number : 16 * number + 16], seeded(3, 1, 0, number))
        assert torch.equal(x, wanted[0])
        assert torch.equal(targets, wanted[1])
        assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("augment", CASES.values(), ids=CASES)
def test_no_value_of_the_device_is_read(augment: Augment) -> None:
    # a tensor of the meta device has no values: reading one, or a shape that depends on one, raises
    x, targets = next(Batches(pictures(), DATA, 16, torch.device("meta"), augment).shuffled(0, 0))
    assert (x.shape, x.device.type, targets.device.type) == ((16, 3, 32, 32), "meta", "meta")


class _NoWaiting(TorchDispatchMode):
    """Refuses a copy from the host to another device that the host would wait for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is torch.ops.aten._to_copy.default and options.get("device", args[0].device) != args[0].device:
            assert options.get("non_blocking"), f"{tuple(args[0].shape)} is copied while the host waits"
        return func(*args, **options)


@pytest.mark.parametrize(
    ("augment", "waits"),
    [
        (Augment(), False),
        (Augment(mixup=0.5, cutmix=1.0), False),
        (Augment(shift_px=2, flip=0.5, frame_op=True, mixup=0.5), True),
    ],
    ids=["nothing", "mixed", "moved"],
)
def test_no_value_of_the_device_is_read_for_kept_frames(augment: Augment, waits: bool) -> None:
    frames = torch.zeros(24, 4, 2, 16, 16, dtype=torch.uint8)
    data = Data("dvs_gesture", T=4, split="number", encoding="count")
    batches = Batches(StoredFrames(frames, torch.arange(24) % 11), data, 8, torch.device("meta"), augment)
    with nullcontext() if waits else _NoWaiting():
        for x, targets in [*batches.shuffled(0, 0), *batches.in_order()]:
            assert (x.shape, x.device.type, targets.device.type) == ((4, 8, 2, 16, 16), "meta", "meta")


def test_tensors_of_all_kinds_are_sent_in_one_copy() -> None:
    tensors = [
        torch.arange(5),
        torch.tensor([True, False, True]),
        torch.rand(2, 3),
        torch.zeros(0, 4),
        torch.rand(3, 2).double().t(),
        torch.tensor(7, dtype=torch.uint8),
    ]
    moved = sent(tensors, CPU)
    assert len({tensor.untyped_storage().data_ptr() for tensor in moved}) == 1
    for before, after in zip(tensors, moved, strict=True):
        assert (before.dtype, before.shape) == (after.dtype, after.shape)
        assert torch.equal(before, after)
    assert sent([], CPU) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_is_not_waited_for_and_gives_alike_images(name: str) -> None:
    augment = replace(CASES[name], erase_mode="const")
    device = torch.device("cuda")
    batches = Batches(pictures(), DATA, 16, device, augment)
    next(batches.shuffled(0, 0))  # the first batch may load libraries
    torch.cuda.synchronize()
    with no_waiting():
        found = list(batches.shuffled(5, 0))
    wanted = list(Batches(pictures(), DATA, 16, CPU, augment).shuffled(5, 0))
    for (x, targets), (y, others) in zip(found, wanted, strict=True):
        torch.testing.assert_close(targets.cpu(), others)
        differs = (x.cpu() - y).abs() > 2.5 / 255 / 0.24  # more than two grey values: edges of moved images
        assert differs.float().mean() < 0.02
