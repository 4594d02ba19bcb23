"""An epoch of the recipe `cifar10_10min`, of four steps, on our network and SpikingJelly's equal one, by one trainer.

    python benchmarks/epoch.py --root FOLDER --out benchmarks/results/cifar10_epoch_h100.json

Both networks are Max-Former-4-384 with the same number of parameters, and see the same batches, loss and optimizer.
Ours runs as the trainer runs it (channels-last, steps captured in CUDA graphs); SpikingJelly's `maxformer_cifar` under
`torch.compile`, and as it is, without graphs, its state reset before every batch. The first epoch of each, in which
kernels are compiled, is only timed as such (SpikingJelly's: 8 steps); then epochs are timed by turns. SpikingJelly's
weights are contiguous, as in models.py.

SpikingJelly's neurons take the dtype of x for their state. Under the recipe's bfloat16 autocast that is not what their
kernels take, so they run as a loop of torch operations, which `torch.compile` fuses and --eager does not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))
sys.path.append(str(HERE.parent))

from _contest import STATE  # noqa: E402
from _report import conditions, show, write  # noqa: E402

from spikeloom.models import create_model  # noqa: E402
from spikeloom.training.data import Batches, load_train  # noqa: E402
from spikeloom.training.loop import Training, start, train_epoch  # noqa: E402
from spikeloom.training.recipe import Recipe  # noqa: E402
from spikeloom.training.recipes import get_recipe  # noqa: E402

WARM_UP = 8


class Peer(nn.Module):
    """SpikingJelly's network as the trainer calls one: reset, then images `[B, C, H, W]` -> logits `[1, B, K]`."""

    def __init__(self, compiled: bool) -> None:
        super().__init__()
        from spikingjelly.activation_based.model.maxformer import maxformer_cifar

        self.net = maxformer_cifar(T=4, num_classes=10)
        self.run: Callable[[Tensor], Tensor] = torch.compile(self.net, dynamic=False) if compiled else self.net

    def forward(self, x: Tensor) -> Tensor:
        from spikingjelly.activation_based import functional

        functional.reset_net(self.net)
        return self.run(x.contiguous()).unsqueeze(0)


def main() -> None:
    """Time epochs, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of cifar-10-batches-bin")
    parser.add_argument("--epochs", type=int, default=2, help="timed epochs of each")
    parser.add_argument("--eager", action="store_true", help="SpikingJelly without torch.compile as well")
    parser.add_argument("--commit", default="", help="the commit to record where there is no git checkout")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda")
    recipe = get_recipe("cifar10_10min")
    recipe = replace(recipe, early_epochs=0, data=replace(recipe.data, root=options.root, allow_partial=True))
    batches = Batches(load_train(recipe.data)[0], recipe.data, recipe.batch_size, device, recipe.augment)
    record: dict[str, Any] = conditions(device, HERE.parent, options.commit)
    record |= {"images": batches.recordings, "batch": recipe.batch_size, "note": STATE, "results": {}}
    makers: dict[str, Callable[[], nn.Module]] = {
        "spikeloom": lambda: create_model(recipe.model, T=4),
        "spikingjelly compiled": lambda: Peer(True),
    }
    if options.eager:
        makers["spikingjelly"] = lambda: Peer(False)
    runs: dict[str, Training] = {}
    for name, make in makers.items():
        graphs = recipe if name == "spikeloom" else replace(recipe, cuda_graph="off")
        runs[name] = begun(graphs, make(), device)
        began = time.perf_counter()
        _steps(runs[name], batches, None if name == "spikeloom" else WARM_UP)
        parameters = sum(p.numel() for p in runs[name].model.parameters())
        record["results"][name] = {"parameters": parameters, "first_s": time.perf_counter() - began, "epochs_s": []}
    for _ in range(options.epochs):
        for name, training in runs.items():
            torch.cuda.synchronize()
            began = time.perf_counter()
            _steps(training, batches, None)
            record["results"][name]["epochs_s"].append(time.perf_counter() - began)
            print(name, record["results"][name], flush=True)
    show("an epoch", *table(record))
    if options.out:
        write(options.out, record)


def begun(recipe: Recipe, model: nn.Module, device: torch.device) -> Training:
    """A training before its first step; a peer's weights, which the trainer makes channels-last, contiguous again."""
    training = start(recipe, model, device)
    if isinstance(model, Peer):
        model.to(memory_format=torch.contiguous_format)
    return training


def _steps(training: Training, batches: Batches, count: int | None) -> None:
    """Train an epoch, or `count` steps of one."""
    training.epoch = training.batch = 0
    for done, _ in enumerate(train_epoch(training, batches), 1):
        if done == count:
            break
    torch.cuda.synchronize()


def table(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Seconds per epoch, images per second, times ours."""
    best = {name: min(found["epochs_s"]) for name, found in record["results"].items()}
    lines = [
        [name, f"{s:.2f}", f"{record['images'] / s:,.0f}", f"{s / best['spikeloom']:.2f}"] for name, s in best.items()
    ]
    return ["network", "s per epoch", "img/s", "x ours"], lines


if __name__ == "__main__":
    main()
