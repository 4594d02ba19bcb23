"""Spikformer V2 (our reconstruction, no official code exists): masked pre-training and fine-tuning, small.

The published-style settings for ImageNet are in docs/models/spikformer_v2.md.
"""

from __future__ import annotations

from spikeloom.models import MaskedConfig
from spikeloom.training.recipe import Augment, Data, Loss, Optim, Recipe
from spikeloom.training.recipes import recipe

_MODEL = "spikformer_v2_8_384"
_SMALL = {
    "in_channels": 2,
    "input_size": [32, 32],
    "embed_dim": 64,
    "num_heads": 4,
    "depth": 2,
    "stages": 3,  # 16 patches of 8 x 8 pixels
    "expansion": 2,
}


@recipe
def spikformer_v2_pretrain_small() -> Recipe:
    """A small Spikformer V2 (our reconstruction) pre-trains without labels on MNIST-5k's simulated events.

    A recording is one image of two channels, the square roots of its event counts. No shift: positions are what the
    decoder learns first, and shifted recordings held this small network at the mean image.
    """
    return Recipe(
        model=_MODEL,
        model_args=_SMALL,
        task="reconstruct",
        mask=MaskedConfig(ratio=0.75, decoder_dim=64, decoder_depth=2),
        data=Data("saccade_mnist", T=1, encoding="sqrt", crop=32),
        optim=Optim(lr=3e-3, betas=(0.9, 0.95)),
        epochs=10,
    )


@recipe
def spikformer_v2_finetune_small() -> Recipe:
    """A small Spikformer V2 (our reconstruction) on MNIST-5k's simulated events, after masked pre-training on them."""
    return Recipe(
        model=_MODEL,
        model_args=_SMALL,
        data=Data("saccade_mnist", T=1, encoding="sqrt", crop=32),
        augment=Augment(shift_px=2),
        optim=Optim(lr=2e-3),
        loss=Loss("rate", label_smoothing=0.1),
        epochs=8,
        pretrain="spikformer_v2_pretrain_small",
    )
