"""What conversion.py does with the best network: early exit, training of the spiking network itself, energy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from _conversion_rows import by_step, in_batches
from _conversion_train import Data, augmented, products, searching
from torch.nn import functional as F

from spikeloom.conversion import ConvertedNet, EarlyExit
from spikeloom.energy import Policy, Totals, compare, count
from spikeloom.energy.counts import Counts, NeuronCount

EXITS = ((0.0, False), (0.002, False), (0.0, True), (0.002, True))
"""(tolerance, gains) of `EarlyExit.calibrate`. The first is judged: one that gives the whole bound of 0.2 points away
on held-out images exceeds it on others about every other time."""
COUNTED = 64
RATE = 1e-4


def early_exits(net: ConvertedNet, data: Data, T: int) -> list[dict[str, Any]]:
    """Dynamic Confidence on test images, with thresholds chosen on held-out ones; the first also run with exits."""
    found = []
    with products(tf32=False):
        for tolerance, gains in EXITS:
            exits = EarlyExit(net, T=T)
            chosen = exits.calibrate(in_batches(data.held_out, T), T, tolerance, gains=gains)
            report = exits.report(in_batches(data.test, T), energy=False)
            record = {
                "tolerance": tolerance,
                "gains": gains,
                "alpha": chosen.alpha,
                "threshold": chosen.point.threshold,
                "held_out_steps": chosen.point.mean_steps,
                "steps": report.point.mean_steps,
                "saved_percent": 100 * report.saved,
                "accuracy": 100 * report.point.accuracy,
                "fixed": 100 * report.fixed.accuracy,
                "lost": 100 * report.lost,
                "oracle": [100 * report.oracle.accuracy, report.oracle.mean_steps],
                "as_good_fixed": report.as_good_fixed,
                "histogram": list(report.histogram),
            }
            if not found:
                record["ran"] = _ran(exits, data)
            found.append(record)
    return found


def _ran(exits: EarlyExit, data: Data) -> dict[str, float]:
    """Steps and accuracy of the test images as they leave the batch, and the time."""
    begin = time.perf_counter()
    right, steps = 0, 0
    for x, y in in_batches(data.test, exits.T or 1):
        logits, taken = exits.run(x)
        right, steps = right + int((logits.argmax(1) == y).sum()), steps + int(taken.sum())
    N = len(data.test[1])
    return {"accuracy": 100 * right / N, "steps": steps / N, "seconds": time.perf_counter() - begin}


def tuned(net: ConvertedNet, data: Data, T: int, epochs: int, batch: int) -> dict[str, Any]:
    """Train the weights of a converted network through its T steps (surrogate gradients, Adam); thresholds stay."""
    begin = time.perf_counter()
    net.T = T
    before = {"held_out": by_step(net, data.held_out, T)[-1], "test": by_step(net, data.test, T)[-1]}
    weights = [p.requires_grad_() for p in net.parameters()]
    optimizer = torch.optim.Adam(weights, RATE)
    N, device = len(data.train[1]), data.train[1].device
    steps = epochs * max(1, N // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with searching():
        for index in _indices(N, epochs, batch, device):
            with torch.autocast(device.type, torch.bfloat16):
                logits = net(augmented(data, index)).float().mean(0)
            optimizer.zero_grad()
            F.cross_entropy(logits, data.train[1][index], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    net.requires_grad_(False)
    after = {"held_out": by_step(net, data.held_out, T)[-1], "test": by_step(net, data.test, T)[-1]}
    return {"T": T, "epochs": epochs, "before": before, "after": after, "seconds": time.perf_counter() - begin}


def _indices(N: int, epochs: int, batch: int, device: torch.device) -> Sequence[torch.Tensor]:
    each = max(1, N // batch)
    orders = [torch.randperm(N, device=device)[: each * batch] for _ in range(epochs)]
    return [part for order in orders for part in order.split(batch)]


def energy(net: ConvertedNet, data: Data, T: int) -> dict[str, Any]:
    """Spikes per neuron and step, operations and energy per image, on the first test images."""
    net.T = T
    with torch.no_grad(), count(net, T=T, strict=True) as run:
        net(data.test[0][:COUNTED])
    counts = run.counts()
    policy = Policy(static_once=True)
    rows = {entry.name: entry.energy_pj for entry in compare(counts, policy)}
    return {
        "T": T,
        "images": COUNTED,
        "rate": _rate(counts),
        "sop_per_image": float(Totals(counts, policy).sop.sum() / counts.samples),
        "nanojoules": rows["exact"] / 1000,
        "ann_nanojoules": rows["ann_exact"] / 1000,
    }


def _rate(counts: Counts) -> float:
    neurons: list[NeuronCount] = [entry for entry in counts.of(NeuronCount) if entry.spiking]
    cells = sum(entry.updates for entry in neurons) * counts.T * counts.samples
    return float(sum(entry.spikes.sum() for entry in neurons)) / max(cells, 1)
