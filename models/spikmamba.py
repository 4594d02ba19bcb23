"""SpikMamba: spiking linear attention inside frames, then a spiking state-space model over all tokens of all frames.

    x = LIF(BN(patches)) + position + time                             tokens [T, B, N, C]
    x = x + dw(x);  x = x + mamba(norm_m(sla(norm_1(x))))              `depth` times; dw: depth-wise 3 x 3
    x = x + dw(x);  x = x + mlp(norm_2(x))
    logits[t] = W mean_tokens(norm_f(x[t])) + b

Paper: Chen et al. 2024, "SpikMamba: When SNN meets Mamba in Event-based Human Action Recognition", arXiv:2410.16746.
The public code (Typistchen/SpikMamba, commit 743aa75) has no network with the spiking Mamba of the paper's figure. This
is our reading of the figure: order of layers, residuals and neurons are the figure's; a batch normalisation in front of
every neuron, the other normalisations, and the depth-wise convolutions, rotary codes and both directions of the scan,
which only the code has, are our choice. The networks of the code itself are in `spikmamba_official`.

The first scan reads forwards and the second backwards through all T N tokens, so that the logits of a step depend on
later frames; their mean over time is the decision, as everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.models.checks import check_mlp_ratio
from spikeloom.models.classifier import truncated_normal
from spikeloom.models.drop_path import DropPath, check_rate
from spikeloom.models.fixed_frames import FixedFrames
from spikeloom.models.patch_conv import PatchConv
from spikeloom.models.registry import Published, register_variant
from spikeloom.neurons import LIF
from spikeloom.spiking_attention import SpikingMLP
from spikeloom.spiking_attention.layout import check_heads
from spikeloom.spiking_attention.rms_norm import RMSNorm
from spikeloom.spiking_attention.rotary import check_rotary
from spikeloom.spiking_attention.spike_mamba import SpikeMamba
from spikeloom.spiking_attention.windowed_linear import WindowedLinearAttention, check_window, on_grid
from spikeloom.synapses import DepthwiseConv2d, Dropout, Linear, NormNeuron

PAPER = "Chen et al. 2024, SpikMamba, arXiv:2410.16746"
EPS = 1e-5
"""Of the layer and root-mean-square normalisations."""


@dataclass(frozen=True)
class SpikMambaConfig:
    """Sizes and switches. T and input_size are those of the position vectors: no other goes in.

    patch_size: pixels along the side of a token. window: (rows, columns) of tokens of an attention window, which divide
    the frame's; None is the frame. d_state, d_conv, expand, bidirectional: of the state-space model, see `SpikeMamba`.
    spiking_ffn: `SpikingMLP` for the MLP with GELU. readout_norm: normalise in front of the classifier. drop_rate:
    behind the embeddings and in the MLP. drop_path_rate: of the last block; it grows linearly from 0 at the first.
    mixer: "mamba", or "none": no state-space model, the first residual is the attention's alone; frames then meet in
    the neurons' membranes only. For comparisons.
    """

    in_channels: int = 3
    input_size: tuple[int, int] = (128, 128)
    num_classes: int = 300
    T: int = 8
    patch_size: int = 8
    embed_dim: int = 256
    num_heads: int = 8
    depth: int = 2
    mlp_ratio: float = 4.0
    window: tuple[int, int] | None = None
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    bidirectional: bool = True
    spiking_ffn: bool = False
    readout_norm: bool = True
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    mixer: Literal["mamba", "none"] = "mamba"

    def __post_init__(self) -> None:
        check_heads(self.embed_dim, self.num_heads, "SpikMambaConfig")
        check_rotary(self.embed_dim, "SpikMambaConfig")
        least = {name: getattr(self, name) for name in ("in_channels", "T", "patch_size", "depth")}
        least |= {name: getattr(self, name) for name in ("d_state", "d_conv", "expand")}
        if min(least.values()) < 1 or self.num_classes < 0:
            given = ", ".join(f"{name}={value}" for name, value in least.items())
            raise ValueError(f"SpikMambaConfig: {given} must be >= 1, num_classes={self.num_classes} >= 0.")
        if any(side % self.patch_size for side in self.input_size):
            raise ValueError(
                f"SpikMambaConfig.input_size is {self.input_size}; expected multiples of patch_size={self.patch_size}."
            )
        if self.window is not None:
            check_window(self.grid, self.window, "SpikMambaConfig")
        check_mlp_ratio(self.mlp_ratio, self.embed_dim, "SpikMambaConfig")
        if self.mixer not in ("mamba", "none"):
            raise ValueError(f"SpikMambaConfig.mixer is {self.mixer!r}; expected 'mamba' or 'none'.")
        check_rate(self.drop_rate, "SpikMambaConfig.drop_rate is drop_rate")
        check_rate(self.drop_path_rate, "SpikMambaConfig.drop_path_rate is drop_path_rate")

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w), tokens of a frame."""
        return self.input_size[0] // self.patch_size, self.input_size[1] // self.patch_size


class PatchEmbed(nn.Module):
    """Frames `[T, B, C, H, W]` -> spikes of tokens `[T, B, N, D]`."""

    def __init__(self, config: SpikMambaConfig) -> None:
        super().__init__()
        self.proj = PatchConv(config.in_channels, config.embed_dim, config.patch_size)
        self.proj_bn = NormNeuron(config.embed_dim, LIF())

    def forward(self, frames: Tensor) -> Tensor:
        """Run all time steps."""
        spikes: Tensor = self.proj_bn(self.proj(frames))
        return spikes.flatten(3).transpose(2, 3)


class MLP(nn.Module):
    """W_2 GELU(W_1 x) on tokens, real-valued."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear(dim, hidden), Linear(hidden, dim)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        out: Tensor = self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))
        return out


class Block(nn.Module):
    """Attention inside frames and state-space model over all of them in one residual, the MLP in another."""

    def __init__(self, config: SpikMambaConfig, index: int) -> None:
        super().__init__()
        C, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        self.grid = config.grid
        self.cpe1, self.cpe2 = DepthwiseConv2d(C, 3), DepthwiseConv2d(C, 3)
        self.norm1, self.norm2 = nn.LayerNorm(C, eps=EPS), nn.LayerNorm(C, eps=EPS)
        self.sla = WindowedLinearAttention(C, config.num_heads, config.grid, window=config.window)
        self.norm_m: nn.Module = nn.Identity()
        self.mamba: nn.Module = nn.Identity()
        if config.mixer == "mamba":
            self.norm_m = RMSNorm(C, EPS)
            self.mamba = SpikeMamba(
                C,
                bidirectional=config.bidirectional,
                d_state=config.d_state,
                d_conv=config.d_conv,
                expand=config.expand,
            )
        self.mlp: nn.Module = SpikingMLP(C, hidden) if config.spiking_ffn else MLP(C, hidden, config.drop_rate)
        self.drop_path = DropPath(config.drop_path_rate * index / max(1, config.depth - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps on tokens `[T, B, N, C]`."""
        x = x + on_grid(self.cpe1, x, self.grid)
        x = x + self.drop_path(self.mamba(self.norm_m(self.sla(self.norm1(x)))))
        x = x + on_grid(self.cpe2, x, self.grid)
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class SpikMamba(FixedFrames):
    """Event frames -> logits `[T, B, num_classes]`."""

    recomputes = True

    def __init__(self, config: SpikMambaConfig) -> None:
        super().__init__(config)
        self.stride, self.num_features = config.patch_size, config.embed_dim
        C, N = config.embed_dim, config.grid[0] * config.grid[1]
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.empty(1, N, C))
        self.temporal_pos_embedding = nn.Parameter(torch.zeros(1, config.T, C))
        self.drop = Dropout(config.drop_rate)
        self.blocks = nn.Sequential(*(Block(config, index) for index in range(config.depth)))
        self.norm_f: nn.Module = RMSNorm(C, EPS) if config.readout_norm else nn.Identity()
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self._mark()
        for name, module in self.blocks.named_modules():
            if name.rpartition(".")[2] not in SpikeMamba.starts_itself:
                truncated_normal(module)
        self.reset_classifier(config.num_classes)

    def _mark(self) -> None:
        for vectors in (self.pos_embed, self.temporal_pos_embedding):
            vectors._no_weight_decay = True  # type: ignore[attr-defined]

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._mark()  # `copy.deepcopy` copies no attributes of parameters

    def features(self, frames: Tensor) -> Tensor:
        """Mean over tokens of the last block: `[T, B, C]`."""
        x = self.run(self.patch_embed, frames) + self.pos_embed + self.temporal_pos_embedding[0, :, None, None]
        x = self.run_all(self.blocks, self.drop(x))
        mean: Tensor = self.norm_f(x).mean(2)
        return mean


_BASE = SpikMambaConfig()
_NOTE = "of the paper's network, which is not public; ours is a reading of its figure"


def _register(name: str, says: str, config: SpikMambaConfig, *published: Published) -> None:
    register_variant(name, SpikMamba, config, says, paper=PAPER, published=published)


_register(
    "spikmamba_2_256", "Two blocks of width 256 on 8 event frames of 128 x 128, 300 actions.", _BASE,
    Published("HARDVS", 97.32, _NOTE),
)  # fmt: skip
_register("spikmamba_2_256_forward", "The same with a scan in one direction.", replace(_BASE, bidirectional=False))
_register(
    "spikmamba_paf_2_256", "For the 10 actions of PAF.", replace(_BASE, num_classes=10),
    Published("PAF", 96.28, _NOTE),
)  # fmt: skip
_register(
    "spikmamba_gesture_2_256", "For the 11 gestures of DVS128 Gesture.", replace(_BASE, num_classes=11),
    Published("DVS128 Gesture", 99.01, _NOTE),
)  # fmt: skip
_register(
    "spikmamba_efaction_2_256", "For the 128 actions of E-FAction.", replace(_BASE, num_classes=128),
    Published("E-FAction", 71.02, _NOTE),
)  # fmt: skip
_register(
    "spikmamba_fine_2_256", "16 frames, a token for each 4 x 4 pixels, 16,384 tokens in all.",
    replace(_BASE, num_classes=32, T=16, patch_size=4),
)  # fmt: skip
