"""Train a small ANN, convert it by every method, and compare accuracy at every number of steps.

    python examples/convert_digits.py --seeds 1 --picture conversion_accuracy.png

8 x 8 digits of scikit-learn where that is installed, else MNIST-5k at 14 x 14 (other figures). Under two minutes on one
CPU core for one seed. The last lines say what the spikes cost beside the ANN.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.conversion import ConvertedNet, convert, with_qcfs
from spikeloom.energy import compare, count

STEPS = (1, 2, 4, 8, 16, 32)
METHODS: Mapping[str, Mapping[str, Any]] = {
    "max, v = 0": {"method": "max", "initial": 0.0},
    "99.9 %, v = 0": {"method": "percentile", "initial": 0.0},
    "99.9 %": {"method": "percentile"},
    "channel max": {"method": "channel_max"},
    "ltb": {"method": "ltb"},
    "mse": {"method": "mse"},
    "light": {"method": "light"},
    "advanced": {"method": "advanced"},
    "qcfs": {"method": "qcfs"},
    "qcfs + cos": {"method": "cos"},
    "qcfs + srp": {"method": "srp"},
}
"""Row -> settings; v is the membrane before the first step, half the threshold where nothing is said."""
MADE_FOR_T = ("mse", "light", "advanced", "qcfs + cos", "qcfs + srp")


@dataclass(frozen=True)
class Split:
    """Images `[N, 1, H, W]` in 0 to 1 and labels `[N]`."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def calibration(self, method: str) -> Iterator[Tensor]:
        """512 images: 16 batches for local threshold balancing, else one."""
        return iter(self.train[:512].split(32 if method == "ltb" else 512))


def digits(seed: int) -> Split:
    """70 % to train and 30 % to test, stratified."""
    if importlib.util.find_spec("sklearn") is None:
        from spikeloom.datasets import MNIST5k

        train, test = MNIST5k("train"), MNIST5k("test")
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        small = [F.avg_pool2d(part.images[:, None] / 255, 2) for part in (train, test)]
        return Split(small[0][order], train.labels[order], small[1], test.labels)
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x, y, test_size=0.3, stratify=y, random_state=seed)
    x_train, x_test = (torch.tensor(part.reshape(-1, 1, 8, 8) / 16, dtype=torch.float32) for part in parts[:2])
    y_train, y_test = (torch.tensor(np.asarray(part)) for part in parts[2:])
    return Split(x_train, y_train, x_test, y_test)


def small_cnn(size: int) -> nn.Module:
    """Two convolutions and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (size // 4) ** 2, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def train(net: nn.Module, data: Split, epochs: int) -> None:
    """SGD with momentum and a cosine."""
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(data.train)).split(64):
            loss = F.cross_entropy(net(data.train[batch]), data.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    net.eval()


def trained(seed: int, epochs: int = 25) -> tuple[Split, nn.Module, nn.Module]:
    """The data, the ReLU network, and the QCFS network (L = 4, thresholds from 4.0)."""
    data = digits(seed)
    nets = []
    for quantised in (False, True):
        torch.manual_seed(seed)
        net = small_cnn(data.train.shape[-1])
        net = with_qcfs(net, L=4, theta=4.0) if quantised else net
        train(net, data, epochs)
        nets.append(net)
    return data, nets[0], nets[1]


@torch.no_grad()
def accuracy(net: nn.Module, data: Split) -> float:
    """Of an ANN, in percent."""
    return 100 * (net(data.test).argmax(1) == data.test_labels).float().mean().item()


@torch.no_grad()
def accuracies(net: ConvertedNet, data: Split) -> list[float]:
    """Of a spiking network after every step, in percent."""
    sums = net(data.test).cumsum(0)
    return [100 * (z.argmax(1) == data.test_labels).float().mean().item() for z in sums]


def curve(name: str, ann: nn.Module, data: Split) -> list[float]:
    """Accuracy at each of STEPS; thresholds and corrections that are made for one T are made for each."""
    choices = dict(METHODS[name])
    if name not in MADE_FOR_T:
        net = convert(ann, data.calibration(choices["method"]), T=STEPS[-1], **choices)
        every = accuracies(net, data)
        return [every[T - 1] for T in STEPS]
    if name.startswith("qcfs"):
        choices["rho"] = 4
    nets = (convert(ann, data.calibration(choices["method"]), T=T, **choices) for T in STEPS)
    return [accuracies(net, data)[-1] for net in nets]


def table(seeds: int, epochs: int = 25) -> tuple[dict[str, list[float]], list[float]]:
    """Mean accuracies over seeds: method -> at each of STEPS; and of the two ANNs."""
    sums = {name: np.zeros(len(STEPS)) for name in METHODS}
    anns = np.zeros(2)
    for seed in range(seeds):
        data, relu, quantised = trained(seed, epochs)
        anns += [accuracy(relu, data), accuracy(quantised, data)]
        for name in METHODS:
            sums[name] += curve(name, quantised if name.startswith("qcfs") else relu, data)
    return {name: list(total / seeds) for name, total in sums.items()}, list(anns / seeds)


def draw(found: Mapping[str, list[float]], anns: list[float], path: str) -> None:
    """Accuracy against T, one line per method."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    colours = plt.get_cmap("tab20")
    for index, (name, values) in enumerate(found.items()):
        latency = [T + 4 for T in STEPS] if "+" in name else list(STEPS)
        axes.plot(latency, values, marker="o", ms=3.5, lw=1.4, color=colours(index % 20), label=name)
    axes.axhline(anns[0], color="0.4", lw=1, ls="--", label="ReLU ANN")
    axes.axhline(anns[1], color="0.4", lw=1, ls=":", label="QCFS ANN")
    axes.set(xscale="log", xlabel="latency in steps (T, with COS and SRP T + rho)", ylabel="test accuracy in %")
    axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, ncols=2, loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def energy(data: Split, ann: nn.Module, T: int) -> str:
    """What T steps cost beside one pass of the ANN, in the counted operations."""
    net = convert(ann, data.calibration("ltb"), T=T)
    images = data.test[:64]
    with torch.no_grad(), count(net, T=T, strict=True) as run:
        net(images)
    rows = {row.name: row.energy_pj for row in compare(run.counts())}
    spikes, dense = rows["exact"] / 1000, rows["ann_exact"] / 1000
    return (
        f"ltb, T = {T}: {spikes:.1f} nJ per image, ANN {dense:.1f} nJ ({spikes / dense:.2f}x; break-even at about "
        f"T = {T * dense / spikes:.1f})"
    )


def main() -> None:
    """Print the table and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--picture", default="", help="file to draw into, such as conversion_accuracy.png")
    parser.add_argument("--out", help="JSON file for the figures")
    options = parser.parse_args()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the calibration data is not in the range")
        found, anns = table(options.seeds, options.epochs)
        print(f"ReLU ANN {anns[0]:.1f} %, QCFS ANN {anns[1]:.1f} % (means of {options.seeds} seeds)")
        print(f"{'T':<15}" + "".join(f"{T:>7}" for T in STEPS))
        for name, values in found.items():
            print(f"{name:<15}" + "".join(f"{value:>7.1f}" for value in values))
        print("qcfs + cos and + srp need rho = 4 steps more than T")
        if options.picture:
            draw(found, anns, options.picture)
        data, relu, _ = trained(0, options.epochs)
        costs = [energy(data, relu, T) for T in (4, 16)]
        print("\n".join(costs))
        if options.out:
            figures = {"steps": STEPS, "accuracy": found, "ann": anns, "seeds": options.seeds, "energy": costs}
            Path(options.out).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
