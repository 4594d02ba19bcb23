"""What the published recipes of the Spikformer family share, as fields of ours.

The authors train with timm: the learning rate changes with every epoch, its cosine runs behind the warm-up, and epochs
of cooldown at the lowest rate follow. Weights of one axis are not decayed there either. A last batch that is not full
is left out. Their float16 (with a scaled loss) is bfloat16 here, on a GPU.
"""

from __future__ import annotations

from typing import Any, Literal

from spikeloom.training.recipe import Augment, Data, Loss, Optim, Recipe

RAND_AUGMENT = "rand-m9-n1-mstd0.4-inc1"
COOLDOWN = 10


def cifar(
    name: str,
    model: str,
    *,
    lr: float,
    warmup_lr: float,
    epochs: int,
    erase: float,
    operations: Literal["all", "five"] = "all",
    **options: Any,
) -> Recipe:
    """A recipe for CIFAR images, T = 4; `epochs` without the cooldown, `operations` of RandAugment.

    Mirrored images (probability 1/2) without a crop are our reading of the scripts.
    """
    return Recipe(
        model=model,
        data=Data(name, T=4, drop_last=True),
        augment=Augment(
            flip=0.5, rand_augment=RAND_AUGMENT, rand_operations=operations, erase=erase, mixup=0.5, mix_epochs=200
        ),
        optim=adamw(lr, 1e-5, warmup=20, warmup_lr=warmup_lr),
        loss=Loss("rate", label_smoothing=0.1),
        epochs=epochs + COOLDOWN,
        **options,
    )


def events(name: str, model: str, *, lr: float, min_lr: float, epochs: int, **options: Any) -> Recipe:
    """A recipe for frames of 128 x 128, T = 16 frames of equally many events; `epochs` without the cooldown."""
    return Recipe(
        model=model,
        data=Data(name, T=16, split="number", encoding="count", drop_last=True),
        augment=Augment(flip=0.5, frame_op=True, mixup=0.5, mix_prob=0.5, mix_epochs=75),
        optim=adamw(lr, min_lr, warmup=10, warmup_lr=1e-5),
        loss=Loss("rate", label_smoothing=0.1),
        epochs=epochs + COOLDOWN,
        batch_size=16,
        **options,
    )


def adamw(lr: float, min_lr: float, *, warmup: int, warmup_lr: float, weight_decay: float = 0.06) -> Optim:
    """AdamW under timm's schedule: `warmup` epochs from `warmup_lr`, a cosine from `lr` to `min_lr`, the cooldown."""
    return Optim(
        lr=lr,
        weight_decay=weight_decay,
        warmup_epochs=warmup,
        warmup_lr=warmup_lr,
        min_lr=min_lr,
        cooldown_epochs=COOLDOWN,
        schedule="epoch",
        clip_norm=None,
    )
