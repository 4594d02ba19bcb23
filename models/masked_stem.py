"""The stem of `SpikformerV2` on the kept patches of an image alone; everything else stays 0 to its end.

    x = image * mask;   after each convolution: times the mask at that resolution, BatchNorm over kept places, neuron

Sparse in what it computes, not in what it costs: the convolutions run on the whole map. A normalisation and neuron take
the kept places gathered as `[T, B, C, M]`, so its statistics (in training) are of these alone; its spikes go back to
their places among zeros. Zeros therefore never meet the bias of a normalisation, and what is hidden can not be seen
through a shift of the statistics.

Sparse masked modelling of convolutional networks: Tian et al. 2023, "Designing BERT for Convolutional Networks: Sparse
and Hierarchical Masked Modeling" (SparK), arXiv:2301.03580. How Spikformer V2 masks its stem is our choice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from spikeloom.models.spikformer_v2 import Stage
from spikeloom.synapses import ConvNeuron


@dataclass(frozen=True, eq=False)
class Kept:
    """Which patches of a grid are kept in each image of a batch.

    patches: `[B, K]` int64, indices into the grid's patches row by row, ascending. grid: (rows, columns).
    """

    patches: Tensor
    grid: tuple[int, int]

    @property
    def mask(self) -> Tensor:
        """`[B, P]` bool: True where a patch is kept."""
        mask = self.patches.new_zeros(len(self.patches), self.grid[0] * self.grid[1], dtype=torch.bool)
        return mask.scatter_(1, self.patches, True)

    def map(self, side: int) -> Tensor:
        """The mask at `side` places per patch along an axis: `[B, rows * side, columns * side]` bool."""
        return self.mask.unflatten(1, self.grid).repeat_interleave(side, 1).repeat_interleave(side, 2)

    def places(self, side: int) -> Tensor:
        """The kept places of such a map, patch by patch: `[B, K * side * side]` int64, row * width + column."""
        width = self.grid[1] * side
        steps = torch.arange(side, device=self.patches.device)
        inside = (steps[:, None] * width + steps).flatten()
        corners = (self.patches // self.grid[1] * width + self.patches % self.grid[1]) * side
        return (corners[:, :, None] + inside).flatten(1)


def random_kept(batch: int, grid: tuple[int, int], ratio: float, generator: torch.Generator) -> Kept:
    """Keep floor(P (1 - ratio)) of the P patches of each image: those with the smallest of P uniform random numbers.

    The result lies on the generator's device.

    Raises:
        ValueError: the ratio is not in [0, 1), or leaves no patch of this grid.
    """
    check_ratio(ratio)
    count = grid[0] * grid[1]
    keep = int(count * (1 - ratio) + 1e-9)  # 10 * (1 - 0.9) is a little less than 1
    if keep == 0:
        raise ValueError(
            f"A mask ratio of {ratio} keeps none of the {count} patches of a {grid[0]} x {grid[1]} grid; lower it to "
            f"at most {int(1000 * (count - 1) / count) / 1000}, or give larger images."
        )
    noise = torch.rand(batch, count, generator=generator, device=generator.device)
    return Kept(noise.argsort(dim=1)[:, :keep].sort(dim=1).values, grid)


def check_ratio(ratio: float) -> None:
    """Raise unless a share of patches may be hidden."""
    if not 0 <= ratio < 1:
        raise ValueError(f"The mask ratio is {ratio}; expected the share of patches to hide, 0 <= ratio < 1.")


def masked_stem(stem: nn.Sequential, frames: Tensor, kept: Kept) -> Tensor:
    """`stem` on the kept patches of frames `[T, B, C, H, W]` -> `[T, B, D, rows, columns]`, 0 where hidden."""
    x = frames * kept.map(frames.shape[-1] // kept.grid[1])[:, None]
    for stage in cast("Iterable[Stage]", stem):
        y = _fire(stage.down, x, kept)
        x = stage.join(y, _fire(stage.contract, _fire(stage.expand, y, kept), kept))
    return x


def _fire(layer: ConvNeuron, x: Tensor, kept: Kept) -> Tensor:
    """Convolution, normalisation and neuron; the gather and the zeros are the product with the mask."""
    x = layer.synapse(x)
    T, B, C, H, W = x.shape
    places = kept.places(W // kept.grid[1])[None, :, :, None].expand(T, B, -1, C)
    tokens = x.flatten(3).transpose(2, 3)  # T B HW C: how they lie in memory
    spikes = layer.fire(tokens.gather(2, places).transpose(2, 3)).transpose(2, 3)
    full = spikes.new_zeros(T, B, H * W, C).scatter(2, places, spikes)
    return full.transpose(2, 3).unflatten(3, (H, W))
