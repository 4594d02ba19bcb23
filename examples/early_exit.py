"""A spiking network that stops as soon as it is sure: `python examples/early_exit.py`, half a minute on a CPU.

Trains a small QCFS network on the embedded MNIST-5k (14 x 14 pixels), converts it to T = 16 steps, chooses alpha and
the threshold of Dynamic Confidence on held-out training images, and judges them on the test images: table, histogram,
synaptic operations, energy, and the time that a batch takes with and without exits. No download.

    --model FOLDER       another network: what `spikeloom.models.save_model` wrote, for still images of ten classes
    --converted FOLDER   another converted network: what `save_converted` wrote, for images of --channels, --side
    --steps 16           T
    --tolerance 0.0      part of the held-out samples that may be lost
    --picture FILE       accuracy against steps (needs matplotlib); "" for none

A sample counts as lost even if another one is won by an early exit (`gains=False`): with hundreds of thresholds to
choose from, the fastest one that happens to come out even on the held-out images is partly luck.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.conversion import QCFS, EarlyExit, ExitReport, convert, load_converted
from spikeloom.conversion.active import any_steps
from spikeloom.datasets import MNIST5k
from spikeloom.energy import Policy
from spikeloom.models import load_model
from spikeloom.neurons import Stream

HELD_OUT = 1000
BATCH = 200
Labelled = tuple[Tensor, Tensor]


def digits(channels: int, size: tuple[int, int], seed: int) -> tuple[Labelled, Labelled, Labelled]:
    """Images `[N, C, H, W]` in 0..1 and labels: 3,000 to train, 1,000 held out, 1,000 to test."""
    parts = []
    for split in ("train", "test"):
        data = MNIST5k("train" if split == "train" else "test")
        images = F.adaptive_avg_pool2d(data.images.float()[:, None] / 255, size)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        parts.append((images[order].expand(-1, channels, -1, -1), data.labels[order]))
    (x, y), test = parts
    return (x[HELD_OUT:], y[HELD_OUT:]), (x[:HELD_OUT], y[:HELD_OUT]), test


def small_qcfs() -> nn.Sequential:
    """Two convolutions and two linear layers with quantised activations, for 14 x 14 pixels."""

    def activation() -> QCFS:
        return QCFS(L=4, theta=4.0)

    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), activation(), nn.AvgPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), activation(), nn.Flatten()),
        *(nn.Linear(32 * 49, 64), activation(), nn.Linear(64, 10)),
    )


def train(net: nn.Module, data: Labelled, epochs: int = 12, size: int = 64) -> nn.Module:
    """SGD with momentum, one cycle."""
    x, y = data
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    steps = epochs * -(-len(y) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)
    net.train()
    for _ in range(epochs):
        for index in torch.randperm(len(y)).split(size):
            optimizer.zero_grad()
            F.cross_entropy(net(x[index]), y[index]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def batches(data: Labelled) -> list[Labelled]:
    """In batches, in order."""
    return list(zip(data[0].split(BATCH), data[1].split(BATCH), strict=True))


@torch.no_grad()
def seconds(exits: EarlyExit, data: Labelled) -> tuple[float, float]:
    """What all batches take with exits, and step by step without."""
    start = time.perf_counter()
    for x, _ in batches(data):
        exits.run(x)
    between = time.perf_counter()
    with any_steps(exits.model):
        for x, _ in batches(data):
            stream = Stream(exits.model)
            for _ in range(exits.T or 0):
                stream(x[None])
    return between - start, time.perf_counter() - between


def draw(report: ExitReport, path: str) -> None:
    """Accuracy against steps: fixed numbers of steps, thresholds, the chosen one, the oracle; and who stops when."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    steps = range(1, report.T + 1)
    left.plot(steps, [100 * a for a in report.accuracy_by_step], "o-", color="#666666", label="all samples stop at T")
    left.plot(
        [p.mean_steps for p in report.sweep],
        [100 * p.accuracy for p in report.sweep],
        *("s-",),
        color="#0072b2",
        label="Dynamic Confidence",
    )
    left.plot(
        report.point.mean_steps, 100 * report.point.accuracy, "*", ms=16, color="#d55e00", label="chosen on held-out"
    )
    left.plot(report.oracle.mean_steps, 100 * report.oracle.accuracy, "x", color="#009e73", label="oracle")
    left.set(xlabel="mean time steps", ylabel="test accuracy, %")
    left.set_ylim(bottom=min(report.fixed.accuracy, report.sweep[0].accuracy) * 100 - 3)
    left.legend()
    right.bar(steps, report.histogram, color="#0072b2")
    right.set(xlabel="time step", ylabel="samples that stop there")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train or load, convert, choose, judge, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="folder of a saved model")
    parser.add_argument("--converted", default="", help="folder of a converted network")
    parser.add_argument("--channels", type=int, default=1, help="of --converted")
    parser.add_argument("--side", type=int, default=28, help="of --converted: height and width of its images")
    parser.add_argument("--steps", type=int, default=16, help="T")
    parser.add_argument("--tolerance", type=float, default=0.0, help="points of accuracy that may be lost, 0 to 1")
    parser.add_argument("--picture", default="early_exit.png")
    parser.add_argument("--out", help="JSON file for the figures")
    parser.add_argument("--epochs", type=int, default=12, help="of the small network that is trained")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the maps are so small that threads wait for each other most of the time
    torch.manual_seed(options.seed)
    model: nn.Module
    if options.converted:
        model = load_converted(options.converted)
        held_out, test = digits(options.channels, (options.side, options.side), options.seed)[1:]
    elif options.model:
        model = load_model(options.model)
        config: Any = model.config
        held_out, test = digits(config.in_channels, tuple(config.input_size), options.seed)[1:]
    else:
        training, held_out, test = digits(1, (14, 14), options.seed)
        model = convert(train(small_qcfs(), training, options.epochs), method="qcfs", T=options.steps)

    exits = EarlyExit(model, T=options.steps)
    chosen = exits.calibrate(batches(held_out), tolerance=options.tolerance, gains=False)
    print(str(chosen).partition("\nthreshold   ")[0])
    report = exits.report(batches(test), policy=Policy(static_once=True))
    print(f"\ntest images: {report}")
    fast, slow = seconds(exits, test)
    print(f"{len(test[1])} images in batches of {BATCH}: {fast:.2f} s with exits, {slow:.2f} s step by step without")
    print(f"{report.saved:.1%} fewer steps; accuracy {report.fixed.accuracy:.2%} -> {report.point.accuracy:.2%}")
    if options.out:
        figures = {"saved": report.saved, "fixed": report.fixed.accuracy, "exits": report.point.accuracy}
        times = {"seconds_with_exits": fast, "seconds_without": slow, "report": str(report)}
        Path(options.out).write_text(json.dumps(figures | times, indent=1) + "\n")
    if options.picture and find_spec("matplotlib") is not None:
        draw(report, options.picture)
        print(f"picture: {options.picture}")
    elif options.picture:
        print("no picture: it needs matplotlib, pip install 'spikeloom[report]'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
