"""Spikformer V1: its attention in three flavours, and whole models."""

from __future__ import annotations

from spikeloom_tests.golden.attention.rebuilt import File, Rebuilt, fires, loaded, owner
from spikeloom_tests.golden.attention.whole import whole
from torch import Tensor, nn

from spikeloom.spiking_attention import SSA
from spikeloom.spiking_attention.layout import Layout


def ssa(file: File) -> Rebuilt:
    """One SSA layer of Spikformer or QKFormer; `config.layout` says the axes."""
    config = file.config
    layout: Layout = config["layout"].strip("[]").replace(",", "")
    leak = "batchleak" in file.name
    linear = any(".weight" in key and "_linear" in key for key in file.state)
    module = SSA(
        config["dim"],
        config["num_heads"],
        scale=config["scale"],
        bias=linear,
        layout=layout,
        proj_lif="batch_leak" if leak else "time",
    )
    loaded(module, file, "spikformer")

    def spikes(name: str, ours: Tensor) -> Tensor:
        # projections fire with channels first, the neuron of the product on tokens; the file has the layout's axes
        return ours.transpose(2, 3) if (name == "attn_lif") != (layout == "TBNC") else ours

    def call(module: nn.Module, x: Tensor) -> Tensor:
        # QKFormer's code names the sides of its output the other way round
        out: Tensor = module(x)
        return out.reshape(file.out.shape)

    return Rebuilt(
        module,
        owner(module, "spikformer"),
        fires(module, "spikformer", {"attn_lif": "attn_lif"}),
        call,
        spikes,
    )


def spikformer(file: File) -> Rebuilt:
    """A whole model."""
    return whole(file, "spikformer", {"attn_lif": "attn_lif"})


CASES = {
    "ssa": ssa,
    "ssa_linear_TBNC": ssa,
    "ssa_conv_TBCN_dvs": ssa,
    "ssa_conv_TBCHW_imagenet": ssa,
    "ssa_qkformer_batchleak": ssa,
    "ssa_qkformer_corrected": ssa,
    "spikformer_cifar": spikformer,
    "spikformer_imagenet": spikformer,
    "spikformer_dvs": spikformer,
}
