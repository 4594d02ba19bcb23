"""A small SpikeGPT whose neurons fire, and texts for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.models import SpikeGPT, SpikeGPTConfig

V, T, B = 23, 12, 3


def tiny(**options: Any) -> SpikeGPT:
    """A small model in evaluation, in double precision, whose neurons fire."""
    torch.manual_seed(0)
    model = SpikeGPT(replace(SpikeGPTConfig(vocab_size=V, embed_dim=16, depth=3), **options)).double().eval()
    stir(model)
    return model


def stir(model: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("output.weight", "value.weight")):
                parameter.mul_(6)
            elif name.endswith(("receptance.weight", "key.weight")):
                parameter.mul_(3)


def text(seed: int = 0, tokens: int = T, texts: int = B) -> Tensor:
    return torch.randint(V, (tokens, texts), generator=torch.Generator().manual_seed(seed))
