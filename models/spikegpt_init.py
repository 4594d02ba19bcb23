"""First values of SpikeGPT: decay, bonus and mixing weights by channel and layer, and three ways for the matrices.

With i = 0 .. C-1 the channel, l = 0 .. L-1 the layer, a = l / (L - 1) (0 where L = 1, our extension) and b = 1 - l / L:

    time_decay = -5 + 8 (i / (C - 1))^(0.7 + 1.3 a);    time_first = ln 0.3 + ((i + 1) mod 3 - 1) / 2
    time mix: k = (i / C)^b,  v = (i / C)^b + 0.3 a,  r = (i / C)^(b / 2);    channel mix: k = r = (i / C)^b

Source: the authors' code (ridgerchu/SpikeGPT, commit 029f86f), as it runs. Its own rule for matrices is switched off as
published, so they keep PyTorch's defaults ("default"); switched on, it makes every matrix orthogonal ("orthogonal"),
because it loses the gains and zeros that it means to give to those inside the mixers ("rwkv").
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from spikeloom.spiking_attention import ChannelMix, TimeMix

Init = Literal["default", "orthogonal", "rwkv"]


def time_mix_values(features: int, layer: int, depth: int) -> dict[str, Tensor]:
    """The vectors of layer `layer` of `depth`, each float32 [C], by their official names."""
    i = torch.arange(features, dtype=torch.float64, device="cpu")
    a, b = layer / max(depth - 1, 1), 1 - layer / depth
    values = {
        "time_decay": -5 + 8 * (i / (features - 1)) ** (0.7 + 1.3 * a),
        "time_first": math.log(0.3) + 0.5 * ((i + 1) % 3 - 1),
        "time_mix_k": (i / features) ** b,
        "time_mix_v": (i / features) ** b + 0.3 * a,
        "time_mix_r": (i / features) ** (0.5 * b),
    }
    return {name: value.float() for name, value in values.items()}


def channel_mix_values(features: int, layer: int, depth: int) -> dict[str, Tensor]:
    """The vectors of layer `layer` of `depth`, each float32 [C], by their official names."""
    share = ((torch.arange(features, dtype=torch.float64, device="cpu") / features) ** (1 - layer / depth)).float()
    return {"time_mix_k": share, "time_mix_r": share.clone()}


@torch.no_grad()
def initialise(embedding: nn.Embedding, blocks: nn.ModuleList, init: Init) -> None:
    """Give a fresh backbone its first values; every block has `att` and `ffn`."""
    depth = len(blocks)
    for layer, block in enumerate(blocks):
        for mixer in (block.get_submodule("att"), block.get_submodule("ffn")):
            _vectors(mixer, layer, depth)
            if init != "default":
                _matrices(mixer, init)
    if init != "default":
        nn.init.orthogonal_(embedding.weight, gain=1e-4 * math.sqrt(max(embedding.weight.shape)))


@torch.no_grad()
def initialise_head(weight: Tensor, init: Init) -> None:
    """Give the matrix [V, C] of the read-out its first values."""
    if init != "default":
        rows, columns = weight.shape
        nn.init.orthogonal_(weight, gain=0.5 * max(math.sqrt(rows / columns), 1.0))


def _vectors(mixer: nn.Module, layer: int, depth: int) -> None:
    assert isinstance(mixer, TimeMix | ChannelMix)
    features = mixer.receptance.in_features
    make = time_mix_values if isinstance(mixer, TimeMix) else channel_mix_values
    for name, value in make(features, layer, depth).items():
        holder = mixer.wkv if isinstance(mixer, TimeMix) and name in ("time_decay", "time_first") else mixer.mix
        holder.get_parameter(name).copy_(value)


def _matrices(mixer: nn.Module, init: Init) -> None:
    """Orthogonal; as intended, those that lead to a residual sum, the gate and a time-mix's key are 0."""
    assert isinstance(mixer, TimeMix | ChannelMix)
    zeros = ("receptance", "key", "output") if isinstance(mixer, TimeMix) else ("receptance", "value")
    for name, matrix in mixer.named_children():
        if not isinstance(matrix, nn.Linear):
            continue
        rows, columns = matrix.weight.shape
        if init == "rwkv" and name in zeros:
            nn.init.zeros_(matrix.weight)
        else:
            wider = init == "rwkv" and rows > columns
            nn.init.orthogonal_(matrix.weight, gain=math.sqrt(rows / columns) if wider else 1.0)
