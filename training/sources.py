"""The data sets that a recipe can name: how to read a part of each, and what it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch

from spikeloom.datasets import NMNIST, PackedEvents, SaccadeConfig, saccade_mnist
from spikeloom.datasets.cifar10_dvs import CIFAR10DVS, SPLIT_RULE
from spikeloom.datasets.cochlea import Cochlea
from spikeloom.datasets.digit_speech import spoken_digits
from spikeloom.datasets.dvs_gesture import DVSGesture, EventClips
from spikeloom.datasets.google_speech import speech_commands
from spikeloom.datasets.heidelberg import shd, ssc
from spikeloom.datasets.human_actions import PAF, EFAction, NumberedActions
from spikeloom.datasets.human_actions import SPLIT_RULE as ACTION_RULE
from spikeloom.datasets.image_files import ImageFiles, class_names, read_image_folder
from spikeloom.datasets.imagenet import read_imagenet
from spikeloom.datasets.images import Images, cifar10, cifar100, fashion_mnist, mnist
from spikeloom.datasets.manifolds import random_manifolds
from spikeloom.datasets.moving_shapes import moving_shapes
from spikeloom.datasets.rand_augment import SPIKFORMER_OPERATIONS, TIMM_OPERATIONS, RandAugment
from spikeloom.datasets.sequences import Sequences
from spikeloom.datasets.store_parts import StorePart, open_parts
from spikeloom.models.config import nearest
from spikeloom.training.frame_store import StoredFrames, store_frames
from spikeloom.training.left_out import pack_readable
from spikeloom.training.recipe import Augment, Data
from spikeloom.training.sequence_batches import check_sequences
from spikeloom.training.stored_events import STORES, load_store
from spikeloom.training.text_batches import Text, check_text, load_text

Recordings = PackedEvents | StorePart | StoredFrames | Images | ImageFiles | Sequences
"""What a part is held as: events in memory or in an event store, frames that were binned when they were read, images,
names of files of images, or sequences."""
Part = Recordings | Text
"""Or a text."""


@dataclass(frozen=True)
class Source:
    """A data set.

    load: reads its train or test part, with labels. validates: load reads its validation part, too. says: what
    results on it are called. mean, std: of the training
    images, by channel, in units of the full range; empty for events. stored: events are binned when they are read.
    streamed: images stay in their files. count: finds num_classes where it depends on the files. of_text: token
    ids, whose number depends on the tokenizer. channels: those of sequences; None: no sequences. has_validation: tells
    validates where it depends on the files.
    """

    load: Callable[[Data, str], Part]
    num_classes: int
    says: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    stored: bool = False
    streamed: bool = False
    count: Callable[[Data], int] | None = None
    of_text: bool = False
    channels: Callable[[Data], int] | None = None
    validates: bool = False
    has_validation: Callable[[Data], bool] | None = None

    @property
    def of_images(self) -> bool:
        """Whether these are images, not events."""
        return bool(self.mean)

    @property
    def of_sequences(self) -> bool:
        """Whether these are sequences `[T, N]`, of their own numbers of steps."""
        return self.channels is not None

    @property
    def unit(self) -> str:
        """What a sample is called, in the plural."""
        if self.of_text:
            return "tokens"
        return "images" if self.of_images else "recordings"


def source(data: Data) -> Source:
    """The data set that a recipe names.

    Raises:
        ValueError: there is none of that name; or its classes are counted in a folder, and there is none.
    """
    if data.name not in SOURCES:
        raise ValueError(f"There is no data set {data.name!r}{nearest(data.name, SOURCES)} for recipes.")
    found = SOURCES[data.name]
    if found.has_validation is not None:
        found = replace(found, validates=found.has_validation(data))
    return found if found.count is None else replace(found, num_classes=found.count(data))


def check_augment(augment: Augment, data: Data) -> None:
    """Refuse what cannot be done to the data.

    Raises:
        ValueError: changes of images are asked of events, or the other way round; images are to be binned as events
            are; RandAugment is spelled wrong.
    """
    found = source(data)
    check_text(data, found.of_text)
    check_sequences(augment, data, found.of_sequences)
    if found.of_sequences:
        return
    if found.of_images and data.crop is not None:
        raise ValueError(f"{data.name} has images, and Data.crop cuts frames of events. Pass --data.crop None.")
    plain = Data()
    binning = [
        name for name in ("split", "duration_us", "encoding", "pool") if getattr(data, name) != getattr(plain, name)
    ]
    if found.of_images and binning:
        flags = " ".join(f"--data.{name.replace('_', '-')} {getattr(plain, name)}" for name in binning)
        raise ValueError(
            f"{data.name} has images, and Data.{', '.join(binning)} says how events become frames. Pass {flags}."
        )
    _check_files(augment, data, found)
    on_events = [name for name in ("rotate_degrees", "drop", "jitter_us") if getattr(augment, name)]
    on_images = [name for name in ("rand_augment", "erase") if getattr(augment, name)]
    if found.of_images and (on_events or augment.frame_op):
        given = ", ".join(on_events) or "frame_op"
        raise ValueError(
            f"{data.name} has images, and Augment.{given} changes events or frames of events. Switch it off; shift_px, "
            "flip, rand_augment and erase change images."
        )
    if not found.of_images and on_images:
        raise ValueError(
            f"{data.name} has events, and Augment.{', '.join(on_images)} changes images. Switch it off; frame_op is "
            "what the papers do to frames of events."
        )
    if found.stored and on_events:
        raise ValueError(
            f"The recordings of {data.name} are binned when they are read, and Augment.{', '.join(on_events)} changes "
            "events. Set it to 0; frame_op turns, shifts and cuts frames."
        )
    make_rand_augment(augment, found)


def _check_files(augment: Augment, data: Data, found: Source) -> None:
    """Refuse what only images in files can have, or cannot have.

    Raises:
        ValueError: a setting of the one kind for the other.
    """
    plain = Data()
    if not found.streamed:
        idle = [name for name in ("image_size", "crop_area", "workers") if getattr(data, name) != getattr(plain, name)]
        if idle:
            flags = " ".join(f"--data.{name.replace('_', '-')} {getattr(plain, name)}" for name in idle)
            raise ValueError(
                f"Data.{', '.join(idle)} is for imagenet and image_folder, and changes nothing in {data.name}. Pass "
                f"{flags}."
            )
        return
    if augment.shift_px or augment.legacy_cutmix:
        raise ValueError(
            f"{data.name} has images in files: Augment.shift_px has no place there (--data.crop-area says how they are "
            "cut at random), and Augment.legacy_cutmix changes frames of events alone. Pass --augment.shift-px 0 "
            "--augment.no-legacy-cutmix."
        )


def make_rand_augment(augment: Augment, found: Source) -> RandAugment | None:
    """RandAugment as the recipe spells it, the data's mean coming in from outside; None: none is asked for.

    Raises:
        ValueError: it is spelled wrong.
    """
    if augment.rand_augment is None:
        return None
    kept = TIMM_OPERATIONS if augment.rand_operations == "all" else SPIKFORMER_OPERATIONS
    return RandAugment.parse(augment.rand_augment, operations=kept, mean=found.mean, interpolation="bicubic")


def classes_of(recordings: Part) -> tuple[str, ...] | None:
    """Names of the classes by label where the files say them; None: they are the data set's own."""
    return recordings.classes if isinstance(recordings, (ImageFiles, StorePart)) else None


def take(recordings: Recordings, limit: int | None) -> Recordings:
    """`limit` recordings, spread evenly; None: all."""
    if limit is None or limit >= len(recordings):
        return recordings
    return recordings.select(spread(len(recordings), limit))


def spread(count: int, limit: int | None) -> torch.Tensor:
    """The numbers `[min(count, limit)]` of recordings spread evenly over `count`."""
    kept = count if limit is None else min(limit, count)
    return torch.arange(kept) * count // kept


def _load_saccades(data: Data, part: str) -> PackedEvents:
    config = SaccadeConfig(swap_polarity=data.swap_polarity)
    if part == "test":
        return saccade_mnist("test", config)
    packed = saccade_mnist("train", config)
    return packed.select((torch.arange(len(packed)) % 400 >= data.skip_per_class).nonzero().squeeze(1))


def _load_shapes(data: Data, part: str) -> PackedEvents:
    return moving_shapes(_name(part))


def _load_nmnist(data: Data, part: str) -> PackedEvents:
    root = _root(
        data,
        "Train/<digit>/<id>.bin and Test/<digit>/<id>.bin. Get Train.zip and Test.zip of N-MNIST from "
        "https://www.garrickorchard.com/datasets/n-mnist and unpack both into it.",
    )
    return pack_readable(NMNIST(root, _name(part)), data, part)


def _load_cifar10_dvs(data: Data, part: str) -> StoredFrames:
    found = CIFAR10DVS(_root(data, "the ten class folders with their .aedat files."), _name(part))
    return store_frames(found, spread(len(found), data.limit).unsqueeze(1).tolist(), data, SPLIT_RULE, part)


def _load_actions(kind: type[NumberedActions], data: Data, part: str) -> StoredFrames:
    root = _root(data, f"class folders 1 to {kind.classes} with the {kind.suffix} files of {kind.name}.")
    found = kind(root, _name(part))
    return store_frames(found, spread(len(found), data.limit).unsqueeze(1).tolist(), data, ACTION_RULE, part)


def _load_gesture(data: Data, part: str) -> StoredFrames:
    root = Path(_root(data, "DvsGesture/ as in DvsGesture.tar.gz, or events_np/ as SpikingJelly writes it."))
    if (root / "events_np").is_dir():
        clips = EventClips(root / "events_np" / part)
        return store_frames(clips, spread(len(clips), data.limit).unsqueeze(1).tolist(), data, part=part)
    gestures = DVSGesture(root, _name(part))
    chosen = spread(len(gestures), data.limit).tolist()
    by_file = groupby(chosen, key=lambda index: gestures.gestures[index].file)
    rule = f"every row of the tables of the recordings in trials_to_{part}.txt is one"
    return store_frames(gestures, [list(group) for _, group in by_file], data, rule, part)


def _load_grey(read: Callable[..., Images], page: str, data: Data, part: str) -> Images:
    root = _root(data, f"the four IDX files of {page}, plain or .gz.")
    return read(root, _name(part))


def _load_cifar(read: Callable[..., Images], folder: str, data: Data, part: str) -> Images:
    root = _root(data, f"{folder}/ of the binary version at https://www.cs.toronto.edu/~kriz/cifar.html.")
    return read(root, _name(part), allow_partial=data.allow_partial)


def _load_spikes(read: Callable[..., Sequences], files: str, data: Data, part: str) -> Sequences:
    root = _root(data, f"{files} of https://compneuro.net/datasets/.")
    return read(root, _PARTS.get(part, part))


def _load_speech(data: Data, part: str) -> Sequences:
    root = _root(data, "the folders of words and the two lists of Google's Speech Commands v0.02.")
    return speech_commands(root, _PARTS[part])


def _load_digits(data: Data, part: str) -> Sequences:
    root = _root(data, "<digit>_<speaker>_<index>.wav of the Free Spoken Digit Dataset.")
    return spoken_digits(root, _name(part), speaker=data.speaker)


def _load_manifolds(data: Data, part: str) -> Sequences:
    config = data.manifolds
    count = config.train if part == "train" else config.test
    return random_manifolds(
        _name(part),
        classes=config.classes,
        units=config.units,
        dims=config.dims,
        alpha=config.alpha,
        steps=config.length,
        samples=count,
        seed=config.seed,
    )


def _load_files(read: Callable[..., ImageFiles], holds: str, data: Data, part: str) -> ImageFiles:
    return read(_root(data, holds), _name(part))


def _parts(data: Data) -> dict[str, StorePart]:
    return open_parts(_root(data, STORES), compare=False)  # which `load_store` does


def _count_classes(data: Data) -> int:
    return len(class_names(_root(data, _CLASS_FOLDERS)))


def _name(part: str) -> Literal["train", "test"]:
    return "train" if part == "train" else "test"


def _root(data: Data, holds: str) -> str:
    """The folder of the files.

    Raises:
        ValueError: none was given.
    """
    if data.root is None:
        raise ValueError(
            f"The data set {data.name} is read from files, and no folder was given. Pass --root FOLDER, which holds "
            f"{holds}"
        )
    return data.root


_PARTS: dict[str, Any] = {"train": "train", "validation": "valid", "test": "test"}
_CLASS_FOLDERS = "train/<class>/<name>.jpg, and the same in val/ or test/."
_WNIDS = "train/<wnid>/<name>.JPEG and val/<wnid>/<name>.JPEG of ImageNet-1k (ILSVRC 2012)."
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MNIST = partial(_load_grey, mnist, "http://yann.lecun.com/exdb/mnist")
_FASHION = partial(_load_grey, fashion_mnist, "https://github.com/zalandoresearch/fashion-mnist")

SOURCES = {
    "saccade_mnist": Source(_load_saccades, 10, "simulated events of MNIST images, not N-MNIST"),
    "moving_shapes": Source(_load_shapes, 2, "simulated events of moving shapes, told by the order of motions"),
    "nmnist": Source(_load_nmnist, 10, "N-MNIST recordings"),
    "cifar10_dvs": Source(_load_cifar10_dvs, 10, "CIFAR10-DVS recordings", stored=True),
    "dvs_gesture": Source(_load_gesture, 11, "DVS128 Gesture recordings", stored=True),
    "paf": Source(partial(_load_actions, PAF), PAF.classes, "PAF action recordings", stored=True),
    "efaction": Source(partial(_load_actions, EFAction), EFAction.classes, "E-FAction recordings", stored=True),
    "event_store": Source(
        lambda data, part: load_store(_root(data, STORES), data, part),
        0,
        "packed recordings",
        count=lambda data: len(_parts(data)["train"].classes),
        has_validation=lambda data: "validation" in _parts(data),
    ),
    "mnist": Source(_MNIST, 10, "MNIST images, direct encoding", (0.1307,), (0.3081,)),
    "fashion_mnist": Source(_FASHION, 10, "Fashion-MNIST images, direct encoding", (0.2860,), (0.3530,)),
    "cifar10": Source(
        partial(_load_cifar, cifar10, "cifar-10-batches-bin"),
        10,
        "CIFAR-10 images, direct encoding",
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
    ),
    "cifar100": Source(
        partial(_load_cifar, cifar100, "cifar-100-binary"),
        100,
        "CIFAR-100 images, direct encoding",
        (0.5071, 0.4867, 0.4408),
        (0.2675, 0.2565, 0.2761),
    ),
    "imagenet": Source(
        partial(_load_files, read_imagenet, _WNIDS),
        1000,
        "ImageNet-1k images, direct encoding",
        _IMAGENET_MEAN,
        _IMAGENET_STD,
        streamed=True,
    ),
    "image_folder": Source(
        partial(_load_files, read_image_folder, _CLASS_FOLDERS),
        0,
        "images of a folder, direct encoding",
        _IMAGENET_MEAN,
        _IMAGENET_STD,
        streamed=True,
        count=_count_classes,
    ),
    "shd": Source(
        partial(_load_spikes, shd, "shd_train.h5 and shd_test.h5"),
        20,
        "Spiking Heidelberg Digits, counts per 10 ms and five channels",
        channels=lambda data: 140,
    ),
    "ssc": Source(
        partial(_load_spikes, ssc, "ssc_train.h5, ssc_valid.h5 and ssc_test.h5"),
        35,
        "Spiking Speech Commands, counts per 10 ms and five channels",
        channels=lambda data: 140,
        validates=True,
    ),
    "speech_commands": Source(
        _load_speech, 35, "Speech Commands v0.02, log-mel per 10 ms", channels=lambda data: 140, validates=True
    ),
    "spoken_digits": Source(
        _load_digits, 10, "spoken digits as spikes of a simulated cochlea", channels=lambda data: Cochlea().channels
    ),
    "random_manifolds": Source(
        _load_manifolds,
        0,
        "simulated, one spike per channel, only its time tells",
        channels=lambda data: data.manifolds.units,
        count=lambda data: data.manifolds.classes,
    ),
    "king_james": Source(load_text, 0, "the King James Bible", of_text=True),
    "text_file": Source(load_text, 0, "a text", of_text=True),
    "indexed_text": Source(load_text, 0, "a tokenised text", of_text=True),
}
