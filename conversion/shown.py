"""A folder of `spikeloom convert` and a file of images to show its network, as `spikeloom energy` and `eval` take them.

A converted network has no recipe, so nobody but the caller knows its images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from spikeloom.conversion.files import load_converted
from spikeloom.conversion.image_file import class_numbers, read_labelled
from spikeloom.conversion.network import ConvertedNet


@dataclass(frozen=True)
class Shown:
    """A converted network and what it is shown.

    images: `[N, ...]`, prepared as for training. labels: class numbers `[N]`, None where the file has none. source:
    the file that both are from.
    """

    net: ConvertedNet
    images: Tensor
    labels: Tensor | None
    source: Path

    @property
    def steps(self) -> int:
        """Time steps that the layers run: net.T, or rho where they look so many ahead (COS, SRP)."""
        return max(self.net.T, self.net.config.rho) if self.net.config.offset != "none" else self.net.T

    @property
    def says(self) -> str:
        """`test.pt, 64 images`."""
        return f"{self.source.name}, {len(self.images):,} image{'' if len(self.images) == 1 else 's'}"

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Images `[B, ...]` and labels `[B]`, in order.

        The sizes are those of `_sizes`.
        """
        ends = [0, *accumulate(self._sizes(size))]
        for start, end in pairwise(ends):
            labels = None if self.labels is None else self.labels[start:end].to(device)
            yield self.images[start:end].to(device), labels

    def _sizes(self, size: int) -> list[int]:
        """Images of each batch: `size`, and what is left over.

        A network that looks ahead has operations on a part of its steps, and on states `[B, ...]`. The energy counter
        could take rho steps for that many samples or fewer, and B samples for the steps where the numbers are equal
        (`[B, C]` is `[T, B]` then, if C is too). Such a batch is made larger, or joins the one in front.
        """
        count, ahead = len(self.images), self.net.config.offset != "none"
        unclear = {*range(1, self.net.config.rho + 1), self.steps} if ahead else set()
        while size in unclear:
            size += 1
        *sizes, last = [min(size, count - start) for start in range(0, count, size)]
        while sizes and last in unclear:
            last += sizes.pop()
        return [*sizes, last]

    def names(self) -> dict[str, str]:
        """The path of each layer in the network -> its name in the ANN: `layers._1_0` -> `1.0`."""
        return {
            f"layers.{node.name}": node.known_as.replace(".py:", ":")  # dots are levels of the tree of modules
            for node in self.net.nodes
            if node.name in self.net.layers
        }

    def known(self, path: str) -> str:
        """The name of a module of the network, or of a part of one, by `names`."""
        layer = ".".join(path.split(".")[:2])
        return self.names().get(layer, layer) + path[len(layer) :]


def show(folder: Path, images: Path | None, T: int | None = None, samples: int | None = None) -> Shown:
    """The network of a folder and the images of a file.

    Args:
        T: other time steps than those it was converted for.
        samples: so many images, spread evenly; None: all.

    Raises:
        ValueError: no images are given, or they, their labels or the number of steps do not fit the network.
    """
    if images is None:
        raise ValueError(
            f"{folder} is a converted network, which knows no data set. Add --images FILE, a .pt or .safetensors file "
            "as for `spikeloom convert`: a tensor [N, C, H, W], or tensors 'images' and 'labels' [N]."
        )
    net = load_converted(folder)
    found, labels = read_labelled(images)
    numbers = None if labels is None else class_numbers(labels, len(found), images)
    _check(net, found, images)
    if samples is not None and samples < len(found):
        chosen = torch.arange(samples) * len(found) // samples
        found, numbers = found[chosen], None if numbers is None else numbers[chosen]
    like = next(net.parameters(), next(net.buffers(), torch.zeros(())))
    found = found.to(like.dtype)
    classes = _try(net, found)
    if numbers is not None and int(numbers.max()) >= classes:
        raise ValueError(f"{images} has the label {int(numbers.max())}; the network has {classes} classes, from 0 on.")
    if T is not None:
        net.T = T
    return Shown(net, found, numbers, images)


def _check(net: ConvertedNet, images: Tensor, path: Path) -> None:
    """Raise unless these are images such as the network takes."""
    if images.ndim != net.input_ndim or not len(images) or not images.is_floating_point():
        raise ValueError(
            f"{path} holds {images.dtype} {list(images.shape)}; expected floating-point images of {net.input_ndim} "
            "axes, the first one theirs, at least one, prepared as for training."
        )
    if not bool(images.isfinite().all()):
        raise ValueError(f"{path} holds NaN or infinity. Look at how the images are prepared.")


@torch.no_grad()
def _try(net: ConvertedNet, images: Tensor) -> int:
    """Classes of the network, by one image."""
    try:
        return int(net(images[:1]).shape[-1])
    except RuntimeError as error:
        raise ValueError(f"the network does not take images {list(images.shape)}: {error}") from error
