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
    "stages": 2,  # 64 patches of 4 x 4 pixels
    "T": 1,
}


@recipe
def spikformer_v2_pretrain_small() -> Recipe:
    """A small Spikformer V2 (our reconstruction) learns to reconstruct hidden patches of MNIST-5k's simulated events."""
    return Recipe(
        model=_MODEL,
        model_args=_SMALL,
        task="reconstruct",
        mask=MaskedConfig(ratio=0.75, decoder_dim=64, decoder_depth=2),
        data=Data("saccade_mnist", T=1, encoding="sqrt", crop=32),
        augment=Augment(shift_px=2),
        optim=Optim(lr=2e-3, betas=(0.9, 0.95)),
        epochs=8,
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
