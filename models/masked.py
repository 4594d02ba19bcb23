"""Masked self-supervised pre-training of `SpikformerV2`: hide most patches of an image and reconstruct them.

    stem on the kept patches -> mask token at hidden places -> encoder blocks -> BatchNorm -> decoder -> patches
    loss = mean over hidden patches of the mean over a patch's values of (prediction - target)^2
    target = (p - mean(p)) / sqrt(var(p) + 1e-6), each patch by its own mean and unbiased variance

Paper: Zhou et al. 2024, Spikformer V2, arXiv:2401.02020, of which only the outline (mask, reconstruct, then fine-tune)
is certain. No official code exists: all of this is our reconstruction, with a stem masked as in SparK (masked_stem.py)
and a decoder, target and loss as in MAE (masked_decoder.py). Hidden tokens are replaced where they are: the public code
of masked pre-training for a related network appends mask tokens to tokens that are all there, and then permutes them.

One time step. The encoder's parameters have the names of the `SpikformerV2` behind `encoder.`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spikeloom.models.masked_decoder import Decoder
from spikeloom.models.masked_stem import Kept, check_ratio, masked_stem, random_kept
from spikeloom.models.spikformer_v2 import SpikformerV2


@dataclass(frozen=True)
class MaskedConfig:
    """What is hidden, and the size of the decoder. Ratio 0.75 is MAE's; the paper's own could not be confirmed."""

    ratio: float = 0.75
    """Share of the patches that is hidden."""
    decoder_dim: int = 256
    """Width of the decoder."""
    decoder_depth: int = 4
    """Blocks of the decoder."""
    decoder_heads: int = 4
    """Heads of the decoder's attention."""

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if self.decoder_depth < 1 or self.decoder_dim < 4 or self.decoder_heads < 1:
            raise ValueError(
                f"MaskedConfig: decoder_depth={self.decoder_depth}, decoder_heads={self.decoder_heads} must be >= 1, "
                f"decoder_dim={self.decoder_dim} >= 4."
            )


class Reconstruction(NamedTuple):
    """prediction, target: `[B, P, side * side * C]`, a patch row by row with its channels last. kept: `[B, P]` bool."""

    prediction: Tensor
    target: Tensor
    kept: Tensor


class MaskedAutoencoder(nn.Module):
    """A `SpikformerV2` that learns from images without labels.

    Args:
        encoder: best built with `num_classes=0`, because its classifier is not used.
        config: None is `MaskedConfig()`.
    """

    def __init__(self, encoder: SpikformerV2, config: MaskedConfig | None = None) -> None:
        super().__init__()
        self.masking = MaskedConfig() if config is None else config
        self.encoder = encoder
        D, values = encoder.num_features, encoder.stride**2 * encoder.config.in_channels
        self.mask_token = nn.Parameter(torch.zeros(D))
        nn.init.normal_(self.mask_token, std=0.02)
        self.norm = nn.BatchNorm1d(D)
        masking = self.masking
        self.decoder = Decoder(
            D, values, dim=masking.decoder_dim, depth=masking.decoder_depth, heads=masking.decoder_heads
        )

    def forward(self, images: Tensor, generator: torch.Generator) -> Reconstruction:
        """Hide patches of images `[B, C, H, W]` (or frames `[1, B, C, H, W]`) at random, and reconstruct all.

        Raises:
            ValueError: more than one time step, or a size that the stem's stride does not divide.
        """
        if images.ndim == 4:
            images = images[None]
        if images.shape[0] != 1:
            raise ValueError(
                f"MaskedAutoencoder got frames {list(images.shape)} with {images.shape[0]} time steps; it works on one "
                "(T=1): pass images [B, C, H, W], such as the sum over the steps."
            )
        frames, side = self.encoder.frames(images), self.encoder.stride
        grid = (frames.shape[-2] // side, frames.shape[-1] // side)
        drawn = random_kept(frames.shape[1], grid, self.masking.ratio, generator)
        kept = Kept(drawn.patches.to(frames.device), grid)
        tokens = self.encode(frames, kept)
        return Reconstruction(self.decoder(tokens, grid), normalised_patches(frames[0], side), kept.mask)

    def encode(self, frames: Tensor, kept: Kept) -> Tensor:
        """Frames `[1, B, C, H, W]` -> what the decoder reads of all places, `[B, P, D]`."""
        x = masked_stem(self.encoder.stem, frames, kept).flatten(3).transpose(2, 3)
        x = torch.where(kept.mask[..., None], x, self.mask_token.to(x.dtype))
        tokens: Tensor = self.norm(self.encoder.blocks(x)[0].transpose(1, 2)).transpose(1, 2)
        return tokens

    def loss(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The loss of a batch, a scalar; see `forward` for the images."""
        return reconstruction_loss(self(images, generator))


def reconstruction_loss(result: Reconstruction) -> Tensor:
    """Mean squared error over the values of hidden patches, in float32 at least; kept ones do not count.

    Raises:
        ValueError: nothing is hidden.
    """
    prediction, target, kept = result
    if bool(kept.all()):
        raise ValueError(
            f"None of {kept.shape[1]} patches is hidden, so there is no reconstruction loss; raise the mask ratio."
        )
    hidden = (prediction.to(target.dtype) - target).square().mean(2)[~kept]
    return hidden.mean()


def normalised_patches(images: Tensor, side: int) -> Tensor:
    """Patches of images `[B, C, H, W]`, each with mean 0 and variance 1: `[B, P, side * side * C]`.

    A patch's values are ordered by row, column, channel. A patch of one value everywhere becomes 0.
    """
    patches = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # B C rows side columns side
    values = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    if not values.is_floating_point() or values.element_size() < 4:
        values = values.float()
    variance, mean = torch.var_mean(values, dim=2, keepdim=True)  # unbiased
    return (values - mean) * torch.rsqrt(variance + 1e-6)
