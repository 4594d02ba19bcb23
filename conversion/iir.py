"""Temporal pruning (IIR-SNN): train a converted network at T steps, then at T - 1 with those weights, down to one.

Each stage starts from the weights, thresholds and leaks of the stage before, and trains all of them by Adam (amsgrad)
on the cross-entropy of the summed logits; leaks are held <= 1 and thresholds > 0 after every step. What is kept of a
stage is its best epoch on held-out samples. At T = 1 nothing is carried over time: the network is one of binary
activations with learned thresholds, and leaks have no effect and no gradient.

On small data the gain is the start from a converted ANN: training at T = 1 from there was as good as in stages, and a
deep network that starts at random does not fire at all.

Paper: Chowdhury, Rathi, Roy, "One Timestep is All You Need: Training Spiking Neural Networks with Ultra Low Latency",
arXiv:2110.05929; "Towards Ultra Low Latency Spiking Neural Networks for Vision and Sequential Tasks Using Temporal
Pruning", ECCV 2022. No official code is known; epochs per stage are not published.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeloom.conversion.diet_vgg import DietVGG
from spikeloom.models.files import load_weights, read_weights, write_weights

Say = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """One number of steps: accuracy on the held-out samples before and after training, and epochs trained."""

    T: int
    before: float
    after: float
    epochs: int


@dataclass(frozen=True)
class Pruned:
    """What temporal pruning gave: the last network that kept to the budget, and every stage's weights and accuracy."""

    net: DietVGG
    stages: tuple[Stage, ...]
    weights: tuple[dict[str, Tensor], ...]

    def at(self, T: int) -> DietVGG:
        """A network of the stage of T steps.

        Raises:
            ValueError: there was none.
        """
        for stage, weights in zip(self.stages, self.weights, strict=True):
            if stage.T == T:
                net = _fresh(self.net, T)
                net.load_state_dict(weights)
                return net.eval()
        raise ValueError(f"there is no stage of T={T}; there are {[stage.T for stage in self.stages]}")

    def table(self) -> str:
        """Accuracy by T."""
        rows = [f"{s.T:3}  {s.before:7.2%}  {s.after:7.2%}" for s in self.stages]
        return "\n".join(["  T   before    after", *rows])


@torch.no_grad()
def accuracy(net: DietVGG, images: Tensor, labels: Tensor, batch_size: int = 256) -> float:
    """Part of the images `[N, C, H, W]` whose class, that of the summed logits, is the label; in evaluation mode."""
    training = net.training
    net.eval()
    right = sum(
        int((net(x).sum(0).argmax(1) == y).sum())
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True)
    )
    net.train(training)
    return right / len(labels)


def prune_time(
    net: DietVGG,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    *,
    stages: Sequence[int] = (5, 4, 3, 2, 1),
    epochs: int = 20,
    batch_size: int = 64,
    lr: float = 1e-4,
    budget: float = 1.0,
    seed: int = 0,
    folder: str | Path | None = None,
    say: Say | None = print,
) -> Pruned:
    """Train at each number of steps in turn; `net` is left as it is.

    Args:
        net: a converted network (`diet_from_ann`), of any T.
        train, held_out: images `[N, C, H, W]` and labels `[N]`, on the network's device.
        stages: falling numbers of steps. epochs: of each stage.
        lr: of Adam, on weights, thresholds and leaks alike.
        budget: stop before a stage whose accuracy is further than this (0 to 1) below that of the first stage.
        folder: keeps each finished stage, so that a call with the same settings and starting weights goes on after it.
        say: gets a line per stage; None for silence.

    Raises:
        ValueError: stages do not fall, settings are out of range, data without samples or labels; the folder holds
            another pruning.
        FloatingPointError: the loss is not finite.
    """
    _check(stages, epochs, batch_size, lr, train, held_out)
    how = {"stages": list(stages), "epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed}
    setting = {**asdict(net.config), **how, "start": _digest(net)}
    kept = _Folder(Path(folder), setting) if folder is not None else None
    weights = {name: value.detach().clone() for name, value in net.state_dict().items()}
    done: list[Stage] = []
    saved: list[dict[str, Tensor]] = []
    for T in stages:
        stage_net = _fresh(net, T)
        stage_net.load_state_dict(weights)
        found = kept.read(T, stage_net) if kept is not None else None
        if found is None:
            found = _train(stage_net, train, held_out, epochs, batch_size, lr, seed + T)
            if kept is not None:
                kept.write(stage_net, found)
        if done and found.after < done[0].after - budget:
            if say is not None:
                say(f"T={T}: accuracy {found.after:.2%}, beyond the budget of {budget:.2%}: stopped")
            break
        weights = {name: value.detach().clone() for name, value in stage_net.state_dict().items()}
        done.append(found)
        saved.append(weights)
        if say is not None:
            say(f"T={T}: {found.before:.2%} -> {found.after:.2%} on held-out samples, {found.epochs} epochs")
    best = _fresh(net, done[-1].T)
    best.load_state_dict(saved[-1])
    return Pruned(best.eval(), tuple(done), tuple(saved))


def _train(
    net: DietVGG,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> Stage:
    """Train in place; the network ends as it was after its best epoch, 0 included."""
    assert net.config.T is not None
    before = best = accuracy(net, *held_out)
    weights = {name: value.detach().clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, amsgrad=True)
    generator = torch.Generator().manual_seed(seed)
    net.train()
    for epoch in range(epochs):
        for x, y in _shuffled(*train, batch_size, generator):
            loss = F.cross_entropy(net(x).sum(0), y)
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {float(loss)} in epoch {epoch + 1} of T={net.config.T}; lower lr={lr}"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            net.clamp_()
        reached = accuracy(net, *held_out)
        if reached >= best:  # of equal epochs the later one has larger margins
            best, weights = reached, {name: value.detach().clone() for name, value in net.state_dict().items()}
    net.load_state_dict(weights)
    net.eval()
    return Stage(net.config.T, before, best, epochs)


def _shuffled(x: Tensor, y: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    for index in torch.randperm(len(y), generator=generator).to(y.device).split(size):
        yield x[index], y[index]


def _fresh(net: DietVGG, T: int) -> DietVGG:
    """A network of the same layers, device and floating type."""
    like = net.head.weight
    assert isinstance(like, Tensor)
    return DietVGG(replace(net.config, T=T)).to(like.device, like.dtype)


def _digest(net: DietVGG) -> str:
    """What tells the starting weights from others."""
    found = hashlib.sha256()
    for name, value in net.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().double().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def _check(stages: Sequence[int], epochs: int, batch_size: int, lr: float, *data: tuple[Tensor, Tensor]) -> None:
    falling = all(a > b for a, b in pairwise(stages))
    if not stages or not falling or stages[-1] < 1:
        raise ValueError(f"stages={tuple(stages)}; expected falling numbers of steps >= 1, such as (5, 4, 3, 2, 1)")
    if epochs < 0 or batch_size < 1 or not lr > 0:
        raise ValueError(f"epochs={epochs}, batch_size={batch_size}, lr={lr}; expected >= 0, >= 1 and > 0")
    for images, labels in data:
        if not len(images) or labels.shape != images.shape[:1]:
            raise ValueError(
                f"got images {list(images.shape)} and labels {list(labels.shape)}; expected [N, C, H, W] and [N]"
            )


class _Folder:
    """Finished stages on disk: `T5/model.safetensors` and `T5/stage.json`, under the settings in `pruning.json`."""

    def __init__(self, path: Path, setting: dict[str, object]) -> None:
        self.path = path
        text = json.dumps(setting, indent=2)
        path.mkdir(parents=True, exist_ok=True)
        file = path / "pruning.json"
        if file.exists() and json.loads(file.read_text()) != json.loads(text):
            raise ValueError(
                f"{path} holds a pruning of other settings or starting weights (see its pruning.json); give "
                "another folder"
            )
        _replace(file, text)

    def read(self, T: int, net: DietVGG) -> Stage | None:
        """Load a finished stage into a network; None: there is none."""
        folder = self.path / f"T{T}"
        if not (folder / "stage.json").exists():  # it is written last
            return None
        load_weights(net, read_weights(folder), folder)
        return Stage(**json.loads((folder / "stage.json").read_text()))

    def write(self, net: DietVGG, stage: Stage) -> None:
        """Keep a finished stage."""
        folder = self.path / f"T{stage.T}"
        folder.mkdir(exist_ok=True)
        write_weights(folder, net.state_dict())
        _replace(folder / "stage.json", json.dumps(asdict(stage)))


def _replace(file: Path, text: str) -> None:
    part = file.with_name(file.name + ".part")
    part.write_text(text)
    os.replace(part, file)
