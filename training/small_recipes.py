"""Small recipes: minutes on two CPU cores, or on one GPU."""

from __future__ import annotations

from dataclasses import replace

from spikeloom.training.published import RAND_AUGMENT
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


@recipe
def maxformer_saccade_small() -> Recipe:
    """A Max-Former of 0.37 M parameters on simulated events of MNIST-5k: a few minutes on two CPU cores.

    The paper's network for events at half of its width: 32 x 32 pixels become maps of 4 x 4 and 2 x 2.
    """
    return Recipe(
        model="maxformer_dvs_2_256",
        model_args={"input_size": [32, 32], "embed_dim": 128, "num_heads": 4},
        data=Data("saccade_mnist", T=6, crop=32),
        augment=Augment(shift_px=2),
        optim=Optim(lr=4e-3),
        loss=Loss("rate", label_smoothing=0.1),
        epochs=16,
    )


@recipe
def maxformer_fashion_small() -> Recipe:
    """A Max-Former of 1.65 M parameters on Fashion-MNIST (in --root), T = 4: some minutes on a GPU.

    The paper's network for CIFAR at half of its width: maps of 28 x 28, 14 x 14 and 7 x 7.
    """
    return Recipe(
        model="maxformer_cifar_4_384",
        model_args={"in_channels": 1, "input_size": [28, 28], "embed_dim": 192, "num_heads": 4},
        data=Data("fashion_mnist", T=4),
        augment=Augment(shift_px=2, flip=0.5, erase=0.25),
        optim=Optim(lr=2e-3, warmup_epochs=2),
        loss=Loss("rate", label_smoothing=0.1),
        epochs=30,
        batch_size=256,
    )


@recipe
def cifar10_10min() -> Recipe:
    """Max-Former-4-384 on CIFAR-10 (in --root), T = 4, in 180 epochs: made for ten minutes on one H100.

    The published recipe takes 410 epochs and is at 91 % after 50, because it mixes every batch and its rate has hardly
    fallen by then. Here the rate falls to 0 within the run, and the first 135 epochs are of one time step only, which
    take 0.4 of the time of those with four; no weight depends on the number of steps. Images are shifted, mirrored,
    partly erased and changed by the published RandAugment of five operations; cutmix, of half of the batches, stops for
    the last 8 epochs, at low rates, so that the network and the averages of its normalisations end on whole images.
    With mixup or cutmix in every batch to the end it learned less in the same time. No average of the weights: at a
    rate of 0 it would hardly differ from the weights themselves. Batches stay at 128, for many steps; the peak rate is
    twice the published one, with the gradient's norm limited.

    A copy of which a part is missing is read with --data.allow-partial.
    """
    return Recipe(
        model="maxformer_cifar_4_384",
        data=Data("cifar10", T=4, drop_last=True),
        augment=Augment(
            shift_px=4,
            flip=0.5,
            rand_augment=RAND_AUGMENT,
            rand_operations="five",
            erase=0.25,
            cutmix=1.0,
            mix_prob=0.5,
            mix_epochs=172,
        ),
        optim=Optim(lr=3e-3, weight_decay=0.06, warmup_epochs=3),
        loss=Loss("rate", label_smoothing=0.1),
        epochs=180,
        early_epochs=135,
        batch_size=128,
    )
