"""Small recipes: minutes on two CPU cores, or on one GPU."""

from __future__ import annotations

from dataclasses import replace

from spikeloom.training.recipe import Augment, Data, Loss, Optim, Recipe
from spikeloom.training.recipes import recipe


@recipe
def saccade_small() -> Recipe:
    """MNIST-5k digits as simulated events: nothing to download, a minute or two on two CPU cores."""
    return Recipe(
        model="conv_snn_small",
        data=Data("saccade_mnist", T=8),
        augment=Augment(shift_px=2),
        optim=Optim(lr=4e-3),
        loss=Loss("rate", label_smoothing=0.1),
        epochs=15,
    )


@recipe
def saccade_pretrain() -> Recipe:
    """The first stage of nmnist_small: simulated events with the polarities of N-MNIST's files.

    MNIST-5k holds the first 500 images of each digit of MNIST's training set. The first 1,000 recordings of N-MNIST
    show the first 1,000 of its images, at most the first 117 of a digit; those are left out, so that no image that a
    split of these recordings is tested on was seen here.
    """
    first = saccade_small()
    return replace(first, data=replace(first.data, skip_per_class=120, swap_polarity=True))


@recipe
def nmnist_small() -> Recipe:
    """A few hundred N-MNIST recordings (in --root), after pre-training on simulated events."""
    return Recipe(
        model="conv_snn_small",
        data=Data("nmnist", T=8),
        augment=Augment(shift_px=2, rotate_degrees=10, drop=0.3),
        optim=Optim(lr=1e-3),
        loss=Loss("rate", label_smoothing=0.1),
        epochs=20,
        pretrain="saccade_pretrain",
    )


@recipe
def spikformer_saccade_small() -> Recipe:
    """A Spikformer of 0.45 M parameters on simulated events of MNIST-5k: a few minutes on two CPU cores."""
    return Recipe(
        model="spikformer_small",
        data=Data("saccade_mnist", T=6, crop=32),
        augment=Augment(shift_px=2),
        optim=Optim(lr=4e-3),
        loss=Loss("rate", label_smoothing=0.1),
        epochs=16,
    )


@recipe
def spikformer_fashion_small() -> Recipe:
    """A Spikformer of 0.85 M parameters on Fashion-MNIST (in --root), T = 4: some minutes on a GPU."""
    return Recipe(
        model="spikformer_small",
        model_args={"in_channels": 1, "input_size": [28, 28], "depth": 3, "pools": [False, False, True, True]},
        data=Data("fashion_mnist", T=4),
        augment=Augment(shift_px=2, flip=0.5, erase=0.25),
        optim=Optim(lr=4e-3, warmup_epochs=2),
        loss=Loss("rate", label_smoothing=0.1),
        epochs=30,
        batch_size=512,
    )
