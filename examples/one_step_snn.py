"""A spiking network of one time step, by temporal pruning: `python examples/one_step_snn.py`, about a minute on a CPU.

An ANN of eight convolutions and two linear layers without biases is trained on digits, converted to a DIET-SNN of
T = 5 steps (thresholds by sequential balancing), and trained at T = 5, 4, 3, 2, 1 in turn. Printed per T: test
accuracy, firing rate, synaptic operations, and energy against the ANN of the same layers.

Digits: scikit-learn's (1,797 of 8 x 8 pixels) where it is installed, else 1,000 of the embedded MNIST-5k at 16 x 16
pixels, which take longer. Nothing is downloaded. A tenth of the training images chooses the best epoch of each stage;
the test images are looked at once.

    --data mnist5k       not scikit-learn's
    --epochs 8           per stage
    --folder FOLDER      keep finished stages, and go on from them in a second call
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
from torch import Tensor
from torch.nn import functional as F

from spikeloom.conversion import DietConfig, DietVGG, ReluVGG, diet_from_ann, prune_time
from spikeloom.conversion.iir import accuracy
from spikeloom.datasets import MNIST5k
from spikeloom.energy import Policy, compare, count
from spikeloom.energy.counts import NeuronCount

LAYERS: tuple[int | str, ...] = (16, 16, 16, 16, "A", 16, 16, 16, 16, "A")
HIDDEN = (64,)
CURRENTS = 200
"""Training images that the thresholds are taken from."""
COUNTED = 100
"""Test images whose operations are counted."""
Labelled = tuple[Tensor, Tensor]


def digits(source: str, seed: int) -> tuple[Labelled, Labelled, Labelled, str]:
    """Images in 0..1 and labels to train, to choose epochs, and to test; and what they are."""
    generator = torch.Generator().manual_seed(seed)
    if source == "sklearn":
        from sklearn.datasets import load_digits

        found: Any = load_digits()
        x, y = torch.tensor(found.images / 16, dtype=torch.float32)[:, None], torch.tensor(found.target).long()
        order = torch.randperm(len(y), generator=generator)
        says, learn, test = "scikit-learn digits, 8 x 8 pixels", order[:1257], order[1257:]
        whole: Labelled = (x[learn], y[learn])
        last: Labelled = (x[test], y[test])
    else:
        says = "MNIST-5k, 16 x 16 pixels"
        parts = []
        for split, most in (("train", 1000), ("test", 1000)):
            data = MNIST5k("train" if split == "train" else "test")
            order = torch.randperm(len(data), generator=generator)[:most]
            images = F.avg_pool2d(F.pad(data.images[order].float()[:, None] / 255, (2, 2, 2, 2)), 2)
            parts.append((images, data.labels[order]))
        whole, last = parts
    tenth = len(whole[1]) // 10
    return (whole[0][tenth:], whole[1][tenth:]), (whole[0][:tenth], whole[1][:tenth]), last, says


def train_ann(config: DietConfig, data: Labelled, epochs: int) -> ReluVGG:
    """Adam on the cross-entropy."""
    ann = ReluVGG(config)
    optimizer = torch.optim.Adam(ann.parameters(), lr=2e-3)
    x, y = data
    ann.train()
    for _ in range(epochs):
        for index in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(ann(x[index]), y[index]).backward()
            optimizer.step()
    return ann.eval()


def cost(net: DietVGG, images: Tensor) -> str:
    """Mean firing rate, operations and nJ per image, and the energy relative to the ANN's."""
    assert net.config.T is not None
    with torch.no_grad(), count(net, T=net.config.T, strict=True) as run:
        net(images)
    counts = run.counts()
    rows = {row.name: row for row in compare(counts, Policy(static_once=True))}
    layers = [entry for entry in counts.aux if isinstance(entry, NeuronCount)]
    fired = sum(int(layer.spikes.sum()) for layer in layers)
    rate = fired / sum(layer.updates * layer.spikes.size for layer in layers)
    exact, ann = rows["exact"], rows["ann_exact"]
    return (
        f"{rate:6.1%}  {exact.ac:9,.0f}  {exact.mac:7,.0f}  {exact.energy_pj / 1e3:7.1f}  "
        f"{exact.energy_pj / ann.energy_pj:6.1%}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, convert, prune, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("sklearn", "mnist5k"), help="default: sklearn where it is installed")
    parser.add_argument("--epochs", type=int, default=8, help="of each number of steps")
    parser.add_argument("--ann-epochs", type=int, default=20)
    parser.add_argument("--folder", default=None, help="keeps finished stages; a second run goes on from there")
    parser.add_argument("--out", help="JSON file for the figures")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    begun = time.perf_counter()
    torch.set_num_threads(1)  # the maps are so small that threads wait for each other most of the time
    torch.manual_seed(options.seed)
    source = options.data or ("sklearn" if find_spec("sklearn") is not None else "mnist5k")
    train, held_out, test, says = digits(source, options.seed)
    side = train[0].shape[-1]
    config = DietConfig(LAYERS, HIDDEN, in_channels=1, input_size=(side, side), dropout=0.0)
    print(f"{says}: {len(train[1])} to train, {len(held_out[1])} to choose epochs, {len(test[1])} to test")

    ann = train_ann(config, train, options.ann_epochs)
    with torch.no_grad():
        right = float((ann(test[0]).argmax(1) == test[1]).double().mean())
    many = diet_from_ann(ann, train[0][:CURRENTS], T=60, scale=1.0)
    print(f"ANN {right:.2%}; converted, T = 60, full thresholds: {accuracy(many, *test):.2%}")

    start = diet_from_ann(ann, train[0][:CURRENTS], T=5, scale=0.4)
    found = prune_time(start, train, held_out, epochs=options.epochs, lr=1e-3, seed=options.seed, folder=options.folder)
    print("\n  T  test accuracy   rate         AC      MAC       nJ  of the ANN")
    print(f"60c  {accuracy(many, *test):13.2%}  {cost(many, test[0][:COUNTED])}")
    print(f" 5c  {accuracy(start, *test):13.2%}  {cost(start, test[0][:COUNTED])}")
    figures: dict[str, Any] = {"ann": right, "converted": accuracy(start, *test), "by_steps": {}}
    for stage in found.stages:
        net = found.at(stage.T)
        figures["by_steps"][stage.T] = {"accuracy": accuracy(net, *test), "cost": cost(net, test[0][:COUNTED])}
        print(f"{stage.T:3}  {accuracy(net, *test):13.2%}  {cost(net, test[0][:COUNTED])}")
    if options.out:
        Path(options.out).write_text(json.dumps(figures, indent=1) + "\n")
    print(
        "c: converted, not trained. Per image; the first layer's MACs are computed once and kept. The ANN's every term "
        "is a MAC: an ANN that skips zeros, or of 8 bits, costs less (docs/energy.md)."
    )
    print(f"{time.perf_counter() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
