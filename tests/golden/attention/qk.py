"""QK attention: its two forms, and whole QKFormers in three flavours."""

from __future__ import annotations

from spikeloom_tests.golden.attention.rebuilt import File, Rebuilt, fires, loaded, owner
from spikeloom_tests.golden.attention.whole import whole
from torch import Tensor

from spikeloom.spiking_attention import QKChannelAttention, QKTokenAttention
from spikeloom.spiking_attention.layout import Layout

GATE = {"attn_lif": "attn_lif"}


def qk(file: File) -> Rebuilt:
    """One layer; `config.layout` says the axes."""
    config = file.config
    layout: Layout = config["layout"].strip("[]").replace(",", "")
    token = config["cls"] == "Token_QK_Attention"
    module = (
        QKTokenAttention(config["dim"], config["num_heads"], layout=layout)
        if token
        else QKChannelAttention(config["dim"], layout=layout)
    )
    loaded(module, file, "qkformer")

    def spikes(name: str, ours: Tensor) -> Tensor:
        # a token's gates [T, B, N, h] are [T, B, h, 1, N] in the file; a channel's [T, B, C] are [T, B, h, d, 1]
        return ours.transpose(2, 3) if token and name == "attn_lif" else ours

    return Rebuilt(module, owner(module, "qkformer"), fires(module, "qkformer", GATE), spikes=spikes)


def qkformer(file: File) -> Rebuilt:
    """A whole model, with the leak of the official code."""
    return whole(file, "qkformer", GATE)


CASES = {
    "qk_token": qk,
    "qk_channel": qk,
    "qkformer_cifar": qkformer,
    "qkformer_imagenet": qkformer,
    "qkformer_dvs": qkformer,
}
