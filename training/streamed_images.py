"""Images of files as batches on the device: worker processes decode, cut and change them while the device computes.

    workers: decode -> random part to S x S, bicubic -> flip -> RandAugment -> uint8
    device:  (x / 255 - mean) / std -> erase -> mix

Boxes are erased before images are mixed, as we read the order of the published scripts for ImageNet; those for CIFAR
(`image_batches.py`) mix first. For evaluation the shorter side becomes S / 0.875 pixels,
bicubic, and S x S in the middle are kept. The random numbers of an image come from a seed of its own, which the main
process draws, so a batch does not depend on the number of workers. Noise in erased boxes is drawn on the device: a GPU
has other numbers than a CPU, and the same ones at every start.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spikeloom.datasets.image_augment import draw_boxes, erase_boxes
from spikeloom.datasets.image_files import ImageFiles, UnreadableImageError
from spikeloom.datasets.rand_augment import RandAugment
from spikeloom.training.faults import guarded, refuse, stand_ins, tell_skipped
from spikeloom.training.mixing import Mixing, draw_mixing, mix_by
from spikeloom.training.one_copy import sent
from spikeloom.training.recipe import Augment, Data
from spikeloom.training.sources import Source, make_rand_augment

CROP = 7 / 8  # side of what evaluation keeps, of the shorter side
_RATIOS = (3 / 4, 4 / 3)  # width / height of a random part
_CHUNK = 16  # images that a worker makes at a time
_GRACE = 20  # seconds that a worker lives on after SIGTERM
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Chunk(NamedTuple):
    """What a worker makes at a time: numbers of images and, for training, their seeds; whether it ends its batch."""

    indices: list[int]
    seeds: list[int] | None
    last: bool


class Made(NamedTuple):
    """Pixels `[b, 3, S, S]` uint8 of a chunk, and the places in it of what could not be read, with the reasons."""

    pixels: Tensor
    unreadable: list[tuple[int, str]]
    last: bool


class Shown(NamedTuple):
    """Pixels `[B, 3, S, S]` uint8 of a part, and for each place that of the image shown there: its own, if readable."""

    pixels: Tensor
    shown: Tensor


@dataclass(frozen=True, eq=False)
class ChunkMaker(Dataset[Made]):
    """Chunk -> Made: what runs in the worker processes.

    size: S. area: least share of the image that a random part has; 1: as for evaluation.
    """

    files: ImageFiles
    size: int
    area: float
    flip: float
    rand_augment: RandAugment | None

    def __getitem__(self, chunk: Chunk) -> Made:
        """Decode a chunk; unreadable files are reported, since an error would cross processes as a long traceback."""
        plain, changed = evaluation_pixels(self.size), training_pixels(self.size, self.area, self.flip)
        pixels = torch.zeros((len(chunk.indices), 3, self.size, self.size), dtype=torch.uint8)
        unreadable = []
        for place, index in enumerate(chunk.indices):
            try:
                image = self.files.read(index)
            except UnreadableImageError as error:
                unreadable.append((place, str(error)))
                continue
            if chunk.seeds is None:
                pixels[place] = plain(image)
            else:
                pixels[place] = self._changed(changed, image, chunk.seeds[place])
        return Made(pixels, unreadable, chunk.last)

    def _changed(self, change: Callable[[Any], Tensor], image: Any, seed: int) -> Tensor:
        """`change` and RandAugment, by the seed alone; torchvision draws from torch's own generator."""
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            pixels = change(image)
            if self.rand_augment is not None:
                pixels = self.rand_augment(pixels[None], torch.default_generator)[0]
        finally:
            torch.set_rng_state(before)
        return pixels


def evaluation_pixels(size: int) -> Callable[[Any], Tensor]:
    """PIL image -> `[3, S, S]` uint8: the shorter side to S / 0.875, bicubic, then the middle."""
    from torchvision.transforms import v2

    shorter = v2.Resize(int(size / CROP), interpolation=v2.InterpolationMode.BICUBIC)
    return cast(Callable[[Any], Tensor], v2.Compose([shorter, v2.CenterCrop(size), v2.PILToTensor()]))


def training_pixels(size: int, area: float, flip: float) -> Callable[[Any], Tensor]:
    """PIL image -> `[3, S, S]` uint8: a random part of `area` to 1 of it, mirrored with probability `flip`.

    area = 1: the middle, as for evaluation.
    """
    from torchvision.transforms import v2

    if area == 1:
        return cast(Callable[[Any], Tensor], v2.Compose([v2.RandomHorizontalFlip(flip), evaluation_pixels(size)]))
    bicubic = v2.InterpolationMode.BICUBIC
    part = v2.RandomResizedCrop(size, scale=(area, 1.0), ratio=_RATIOS, interpolation=bicubic)
    return cast(Callable[[Any], Tensor], v2.Compose([part, v2.RandomHorizontalFlip(flip), v2.PILToTensor()]))


class Drawn(NamedTuple):
    """The random numbers of a batch: seeds of its images, boxes to erase `[4, B]`, their noise's seed, how to mix.

    noise_rows: of a part of a batch, how many images that has, and which of them these are.
    """

    indices: Tensor
    seeds: Tensor
    boxes: Tensor | None
    noise: int
    mixing: Mixing | None
    noise_rows: tuple[int, Tensor] | None


class StreamedImages:
    """Images `[B, 3, S, S]` float32, channels-last in memory, (x / 255 - mean) / std by channel, batch by batch."""

    def __init__(self, files: ImageFiles, data: Data, source: Source, device: torch.device, augment: Augment) -> None:
        self.augment, self.device = augment, device
        rand_augment = make_rand_augment(augment, source)
        self._classes = source.num_classes
        self._maker = ChunkMaker(files, data.image_size, data.crop_area, augment.flip, rand_augment)
        self._workers = worker_count(data.workers, len(files))
        self._skips, self.skipped = data.unreadable == "skip", 0
        self._mean = torch.tensor(source.mean, device=device).view(-1, 1, 1)
        self._std = torch.tensor(source.std, device=device).view(-1, 1, 1)

    def plain(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images of each of the parts, numbers `[B]`, as evaluation sees them."""
        for made in self._stream((part, None) for part in parts):
            yield self._normal(made.pixels)

    def batches(
        self, parts: Iterable[tuple[Tensor, torch.Generator, Tensor | None]], labels: Tensor, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of each of the parts, changed at random by the part's generator, and their targets.

        A part has the numbers of images, their generator, and which of them to make (None: all), by the random numbers
        that they have in the whole. Targets are labels `[B]`, or shares `[B, classes]` where the recipe mixes. labels:
        of all images, on the device. Parts are asked for well ahead of what is yielded.
        """
        ahead: deque[Drawn] = deque()

        def plan() -> Iterator[tuple[Tensor, Tensor]]:
            for part, generator, rows in parts:
                ahead.append(self._draw(part, epoch, generator, rows))
                yield ahead[-1].indices, ahead[-1].seeds

        for made in self._stream(plan(), self._skips):
            drawn = ahead.popleft()
            yield self._finished(made.pixels, drawn._replace(indices=drawn.indices[made.shown]), labels)

    def _draw(self, indices: Tensor, epoch: int, generator: torch.Generator, rows: Tensor | None) -> Drawn:
        count, size = len(indices), self._maker.size
        seeds = torch.randint(2**62, (count + 1,), generator=generator)
        boxes = draw_boxes(count, (size, size), generator, self.augment.erase) if self.augment.erase else None
        mixing = draw_mixing(self.augment, epoch, generator)
        whole = Drawn(indices, seeds[:count], boxes, int(seeds[count]), mixing, None)
        if rows is None:
            return whole
        part = whole._replace(indices=indices[rows], seeds=whole.seeds[rows], noise_rows=(count, rows))
        return part if boxes is None else part._replace(boxes=boxes[:, rows])

    def _finished(self, pixels: Tensor, drawn: Drawn, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A batch from its pixels `[B, 3, S, S]` uint8 on the device."""
        boxes = [] if drawn.boxes is None else [drawn.boxes]
        indices, *boxes = sent([drawn.indices, *boxes], self.device)
        images = self._normal(pixels)
        if boxes:
            noise = None
            if self.augment.erase_mode == "pixel":
                generator = torch.Generator(self.device).manual_seed(drawn.noise)
                count, rows = drawn.noise_rows or (len(images), None)
                noise = torch.randn((count, *images.shape[1:]), generator=generator, device=self.device)
                noise = noise if rows is None else noise[sent([rows], self.device)[0]]
            images = erase_boxes(images, boxes[0], noise)
        images, targets = mix_by(drawn.mixing, images, labels.index_select(0, indices), self._classes)
        return images.contiguous(memory_format=torch.channels_last), targets

    def _stream(self, parts: Iterable[tuple[Tensor, Tensor | None]], skips: bool = False) -> Iterator[Shown]:
        """uint8 pixels of each part on the device; skips: another image in the place of one that cannot be read.

        Raises:
            ValueError: files of a part cannot be read, and are not to be skipped, or all of a part's.
            WorkerDiedError: a worker process has ended.
        """
        loader = DataLoader(
            self._maker,
            sampler=cast(Any, _chunks(parts)),
            batch_size=None,  # no collation of ours: a chunk is a sample to the loader
            collate_fn=_unchanged,
            num_workers=self._workers,
            worker_init_fn=_ignore_signals if self._workers else None,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # or the loader would draw from torch's own, whose state is part of a run
        )
        pixels: list[Tensor] = []
        lost: dict[int, str] = {}
        count = 0
        with _held_back():
            chunks = iter(loader)
        for made in guarded(chunks, self._workers):
            lost |= {count + place: says for place, says in made.unreadable}
            count += len(made.pixels)
            pixels.append(made.pixels.to(self.device, non_blocking=True))
            if made.last:
                whole, shown = torch.cat(pixels), torch.arange(count)
                if lost and not (skips and len(lost) < count):
                    refuse([*lost.values()], count)
                if lost:
                    shown = self._replaced(lost, count)
                    whole = whole[shown.to(self.device)]
                yield Shown(whole, shown)
                pixels, lost, count = [], {}, 0

    def _replaced(self, lost: dict[int, str], count: int) -> Tensor:
        """Which image of a part of `count` to show at each place, where some cannot be read."""
        self.skipped += len(lost)
        tell_skipped([*lost.values()], count, self.skipped)
        return stand_ins(lost, count)

    def _normal(self, pixels: Tensor) -> Tensor:
        images = pixels.to(torch.float32, memory_format=torch.channels_last)
        return images.div_(255).sub_(self._mean).div_(self._std)


def worker_count(asked: int, images: int) -> int:
    """Processes for so many images: at most one per core and chunk, and none for a single chunk."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chunks = -(-images // _CHUNK)
    return 0 if chunks < 2 else min(asked, cores, chunks)


def _chunks(parts: Iterable[tuple[Tensor, Tensor | None]]) -> Iterator[Chunk]:
    """Parts in pieces for the workers; as lists, since tensors would cross processes through shared memory."""
    for part, drawn in parts:
        indices, seeds = part.tolist(), None if drawn is None else drawn.tolist()
        for start in range(0, len(indices), _CHUNK):
            end = start + _CHUNK
            yield Chunk(indices[start:end], None if seeds is None else seeds[start:end], end >= len(indices))


def _unchanged(made: Any) -> Any:
    return made


@contextmanager
def _held_back() -> Iterator[None]:
    """Hold signals back while workers start, which take the mask over: none may come before `_ignore_signals`."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_signals(worker: int) -> None:
    """Leave Ctrl-C to the main process; SIGTERM to the whole group also lets it finish its step and save first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends it, whatever the main process does with alarms
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
