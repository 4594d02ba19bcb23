"""Any labelled image data set as simulated events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spikeloom.datasets.events import Events
from spikeloom.datasets.packed import PackedEvents
from spikeloom.datasets.saccades import SaccadeConfig, draw_seeds, render_seeded

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class ImageDataset(Protocol):
    """What is asked of the images: `len`, and `dataset[i] -> (image, label)` (torchvision's data sets have both)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


class EventsFromImages(Dataset[tuple[Events, int]]):
    """A data set of (Events, label), simulated from (image, label) by the saccades of `SaccadeConfig`.

    Images: tensors `[h, w]`, `[1, h, w]` or `[3, h, w]`, arrays `[h, w]` or `[h, w, 3]`, or PIL images; uint8, or float
    in 0..1; all of one size where they are packed. A recording depends on its image, its index, `config` and `seed`
    only: `self[i]` and `self.pack()[i]` are the same events.
    """

    def __init__(self, dataset: ImageDataset, config: SaccadeConfig | None = None, *, seed: int = 0) -> None:
        self.dataset = dataset
        self.config = SaccadeConfig() if config is None else config
        self._seeds = draw_seeds(len(dataset), torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Events, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"Recording {index} of {len(self)}.")
        image, label = self.dataset[index]
        seeds = self._seeds[index : index + 1]
        return render_seeded(_grey(image).unsqueeze(0), self.config, seeds)[0], int(label)

    def pack(self, indices: Sequence[int] | None = None) -> PackedEvents:
        """Simulate all recordings (or those of `indices`) at once, labels included."""
        chosen = list(range(len(self)) if indices is None else indices)
        pairs = [self.dataset[index] for index in chosen]
        images = torch.stack([_grey(image) for image, _ in pairs])
        packed = render_seeded(images, self.config, self._seeds[chosen])
        return packed.with_labels([int(label) for _, label in pairs])


def _grey(image: Any) -> Tensor:
    """One image as `[h, w]`; of three channels the luminance."""
    if isinstance(image, Tensor):
        pixels = image.unsqueeze(0) if image.ndim == 2 else image
    else:
        array = np.array(image)  # a copy, writable and contiguous; PIL images convert themselves
        pixels = torch.from_numpy(array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0))
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(
            f"An image has shape {tuple(image.shape if hasattr(image, 'shape') else pixels.shape)}; expected a tensor "
            "[h, w], [1, h, w] or [3, h, w], an array [h, w] or [h, w, 3], or a PIL image of mode L or RGB."
        )
    if pixels.shape[0] == 1:
        return pixels[0]
    luma = torch.tensordot(torch.tensor(_LUMA), pixels.to(torch.float32), dims=1).clamp(max=255)
    return luma.round().to(torch.uint8) if pixels.dtype == torch.uint8 else luma.clamp(max=1)
