"""Data on the device, augmentation, and the training of the ANNs of conversion.py."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.datasets.images import Images, cifar10, fashion_mnist

Labelled = tuple[Tensor, Tensor]
Say = Callable[[str], None]
SHIFT = {"cifar10": 4, "fashion_mnist": 2}
"""Pixels by which training images are moved at most."""
CUT = 4
"""Pixels less than this from a place in a row and in a column are cut out of images of three channels."""
EVALUATED = 1000


@dataclass(frozen=True)
class Data:
    """Everything on the device.

    train: uint8 `[N, C, H, W]`, padded on all sides by `shift`. held_out, test: prepared, float32. calibration:
    training images without augmentation, prepared. says: what was read.
    """

    train: Labelled
    held_out: Labelled
    test: Labelled
    calibration: Tensor
    shift: int
    mean: Tensor
    deviation: Tensor
    classes: int
    says: tuple[str, ...]


def load(
    name: str, root: Path, partial: bool, held_out: int, calibration: int, limit: int, seed: int, device: torch.device
) -> Data:
    """Read a data set, and hold out part of its training images, as many of every class."""
    parts: list[Images] = []
    for part in ("train", "test"):
        found = (
            cifar10(root, part, allow_partial=partial) if name == "cifar10" else fashion_mnist(root, part)  # type: ignore[arg-type]
        )
        parts.append(found.select(range(min(limit, len(found)))) if limit else found)
    train, test = parts
    if held_out >= len(train):
        raise ValueError(f"{held_out} of {len(train)} training images are to be held out; hold out fewer")
    kept, out = split(train.labels, held_out, len(train.classes), seed)
    images = train.images[kept].to(device)
    pixels = images.float() / 255
    mean, deviation = pixels.mean((0, 2, 3)).view(-1, 1, 1), pixels.std((0, 2, 3)).view(-1, 1, 1)
    shift = SHIFT[name]
    mode = "reflect" if name == "cifar10" else "constant"
    padded = F.pad(images.float(), [shift] * 4, mode=mode).to(torch.uint8)
    says = (train.says, test.says)

    def prepared(part: Images, chosen: Tensor) -> Labelled:
        return prepare(part.images[chosen].to(device), mean, deviation), part.labels[chosen].to(device)

    return Data(
        (padded, train.labels[kept].to(device)),
        prepared(train, out),
        prepared(test, torch.arange(len(test))),
        prepare(images[:calibration], mean, deviation),
        *(shift, mean, deviation, len(train.classes), says),
    )


def prepare(images: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """uint8 `[N, C, H, W]` -> float32, mean 0 and deviation 1, channels-last."""
    return ((images.float() / 255 - mean) / deviation).contiguous(memory_format=torch.channels_last)


def split(labels: Tensor, held_out: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to train on, shuffled, and indices held out: the first of every class in a random order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    each = math.ceil(held_out / classes)
    out = torch.cat([order[labels[order] == k][:each] for k in range(classes)])
    taken = torch.zeros(len(labels), dtype=torch.bool)
    taken[out] = True
    return order[~taken[order]], out


def augmented(data: Data, index: Tensor) -> Tensor:
    """Training images `index` `[B]`: moved, mirrored, with a square cut out; prepared."""
    images = data.train[0]
    B, device = len(index), index.device
    H, W = (size - 2 * data.shift for size in images.shape[2:])
    top, left = torch.randint(0, 2 * data.shift + 1, (2, B, 1), device=device)
    rows, columns = torch.arange(H, device=device), torch.arange(W, device=device)
    mirrored = torch.rand(B, 1, device=device) < 0.5
    across = left + torch.where(mirrored, columns.flip(0), columns)
    x = images[index[:, None, None], :, (top + rows)[:, :, None], across[:, None, :]]  # [B, H, W, C]
    x = prepare(x.permute(0, 3, 1, 2), data.mean, data.deviation)
    if images.shape[1] == 3:
        y, z = torch.rand(2, B, 1, device=device)
        gone_y, gone_x = ((rows - (y * H).floor()).abs() < CUT), ((columns - (z * W).floor()).abs() < CUT)
        x = x.masked_fill((gone_y[:, :, None] & gone_x[:, None, :])[:, None], 0)
    return x.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Plan:
    """SGD with Nesterov momentum: the rate rises to `lr` over the part `rise` of all steps, then falls to 0."""

    epochs: int
    batch: int
    lr: float
    rise: float
    decay: float = 5e-4
    smoothing: float = 0.1


def train(net: nn.Module, data: Data, plan: Plan, say: Say) -> dict[str, Any]:
    """Train in bfloat16 autocast, channels-last; returns seconds, images per second and the last epoch's loss."""
    net.train().to(memory_format=torch.channels_last)
    device = data.train[1].device
    flat = [p for p in net.parameters() if p.ndim < 2]
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": plan.decay},
        {"params": flat, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, plan.lr, momentum=0.9, nesterov=True)
    N = len(data.train[1])
    each = max(1, N // plan.batch)
    steps = plan.epochs * each
    up = max(1, round(plan.rise * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: (s + 1) / up if s < up else max(0.0, (steps - s) / max(1, steps - up))
    )
    loss = torch.zeros((), device=device)
    begin = time.perf_counter()
    with searching():
        for epoch in range(plan.epochs):
            total = torch.zeros((), device=device)
            for index in torch.randperm(N, device=device)[: each * plan.batch].split(plan.batch):
                with torch.autocast(device.type, torch.bfloat16):
                    logits = net(augmented(data, index))
                loss = F.cross_entropy(logits.float(), data.train[1][index], label_smoothing=plan.smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.detach()
            if epoch in (0, plan.epochs - 1) or epoch % 10 == 9:
                say(f"  epoch {epoch + 1} of {plan.epochs}: loss {float(total) / each:.4f}")
    seconds = time.perf_counter() - begin  # the last `float` waited for the device
    net.eval()
    seen = plan.epochs * each * min(N, plan.batch)
    return {"seconds": seconds, "images_per_second": seen / seconds, "loss": float(total) / each}


@contextmanager
def searching() -> Iterator[None]:
    """cuDNN tries its algorithms, which pays where one batch follows another."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def products(tf32: bool) -> Iterator[None]:
    """Convolutions and matrix products with TF32 or without."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@torch.no_grad()
def accuracy(net: nn.Module, data: Labelled) -> float:
    """Of an ANN in evaluation mode, in percent."""
    right = [
        (net(x).argmax(1) == y).sum() for x, y in zip(data[0].split(EVALUATED), data[1].split(EVALUATED), strict=True)
    ]
    return 100 * float(torch.stack(right).sum()) / len(data[1])
