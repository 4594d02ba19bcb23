"""SpikeGPT: Zhu et al. 2023, arXiv:2302.13939, settings of ridgerchu/SpikeGPT, commit 029f86f; and two small recipes.

Published: Adam, learning rate by tokens from 6e-4 to 1e-5 without warm-up, 1000 epochs of 10,000 random windows of 1024
tokens, 12 at a time, in float32. Their scripts evaluate nothing; the test part and its windows are ours.
"""

from __future__ import annotations

from dataclasses import replace

from spikeloom.training.recipe import Data, Loss, Optim, Recipe
from spikeloom.training.recipes import recipe

_OPTIM = Optim(
    lr=6e-4,
    weight_decay=0.0,
    betas=(0.9, 0.99),
    eps=4e-9,
    warmup_epochs=0.0,
    min_lr=1e-5,
    schedule="token",
    clip_norm=1.0,
)
_LOSS = Loss(logit_penalty=1e-4)


def _paper(model: str, data: Data) -> Recipe:
    """What both published trainings share; 51,200 tokens are enough to see an epoch's progress."""
    data = replace(data, context=1024, windows=10_000, validation=50)
    return Recipe(
        model=model,
        data=data,
        optim=_OPTIM,
        loss=_LOSS,
        task="language",
        epochs=1000,
        batch_size=12,
        bf16=False,
        seed=42,
    )


@recipe
def spikegpt_char() -> Recipe:
    """A small SpikeGPT on the characters of the embedded King James Bible (4.2 MB).

    Takes minutes on two CPU cores and comes to 1.38 nats per character (1.99 bits) on a part that it has not seen.
    """
    return Recipe(
        model="spikegpt_46m",
        model_args={"depth": 2, "embed_dim": 128, "dropout": 0.0},
        data=Data(
            "king_james", context=128, tokenizer="characters", windows=3200, stride=128, validation=100, limit=1000
        ),
        optim=replace(_OPTIM, lr=4e-3, min_lr=2e-4),
        loss=_LOSS,
        task="language",
        epochs=10,
        batch_size=16,
    )


@recipe
def char_small() -> Recipe:
    """A SpikeGPT of 9.7 M parameters on the characters of any text in --root: made for ten minutes on one H100."""
    return Recipe(
        model="spikegpt_46m",
        model_args={"depth": 6, "embed_dim": 352, "dropout": 0.1},
        data=Data("text_file", context=256, tokenizer="characters", windows=32_000, validation=200),
        optim=replace(_OPTIM, lr=1e-3, warmup_epochs=0.2, schedule="step"),
        loss=_LOSS,
        task="language",
        epochs=4,
        batch_size=64,
    )


@recipe
def enwik8_paper() -> Recipe:
    """SpikeGPT-46M on enwik8 in --root, by characters, as published (the paper's bits per character: 1.283).

    The vocabulary is that of the whole file. Ours evaluates on the last tenth; the authors' part is not published.
    """
    return _paper("spikegpt_46m", Data("text_file", tokenizer="characters"))


@recipe
def openwebtext_216m_paper() -> Recipe:
    """SpikeGPT-216M on OpenWebText, tokenised as <prefix>.bin and .idx (--root PREFIX), as published.

    The file of GPT-NeoX-20B's tokenizer is looked for here, or in --data.tokenizer. 10.24 M tokens are evaluated at
    the end.
    """
    return _paper("spikegpt_216m", Data("indexed_text", tokenizer="20B_tokenizer.json", limit=10_000))
