"""Events in: one layout, binning to frames, augmentation, simulated and real recordings. Knows nothing of models."""

if "." not in __name__:
    # with the repository's root on sys.path another library's `import datasets` would get this folder
    raise ModuleNotFoundError(
        "No module named 'datasets'. The folder of this name is a part of spikeloom: import spikeloom.datasets.",
        name=__name__,
    )

from spikeloom.datasets.aedat3 import read_aedat3
from spikeloom.datasets.augment import (
    flip_frames,
    random_drop,
    random_flip,
    random_polarity_flip,
    random_rotation,
    random_shift,
    shift_frames,
    time_jitter,
)
from spikeloom.datasets.cifar10_dvs import CIFAR10DVS, read_aedat2
from spikeloom.datasets.dvs_gesture import DVSGesture, EventClips
from spikeloom.datasets.events import Events
from spikeloom.datasets.frame_augment import augment_frames
from spikeloom.datasets.frames import (
    collate,
    frames_by_count,
    frames_by_time,
    frames_by_window,
    to_binary,
    voxel_grid,
)
from spikeloom.datasets.from_images import EventsFromImages
from spikeloom.datasets.image_augment import (
    cutmix,
    flip_images,
    mixup,
    one_hot_smoothed,
    random_crop,
    random_erase,
)
from spikeloom.datasets.image_files import ImageFiles, read_image_folder
from spikeloom.datasets.imagenet import read_imagenet
from spikeloom.datasets.images import Images, cifar10, cifar100, fashion_mnist, mnist
from spikeloom.datasets.mnist5k import MNIST5k, saccade_mnist
from spikeloom.datasets.nmnist import NMNIST, read_bin, write_bin
from spikeloom.datasets.packed import PackedEvents
from spikeloom.datasets.rand_augment import RandAugment
from spikeloom.datasets.saccades import SaccadeConfig, render_saccades

__all__ = [
    "CIFAR10DVS",
    "NMNIST",
    "DVSGesture",
    "EventClips",
    "Events",
    "EventsFromImages",
    "ImageFiles",
    "Images",
    "MNIST5k",
    "PackedEvents",
    "RandAugment",
    "SaccadeConfig",
    "augment_frames",
    "cifar10",
    "cifar100",
    "collate",
    "cutmix",
    "fashion_mnist",
    "flip_frames",
    "flip_images",
    "frames_by_count",
    "frames_by_time",
    "frames_by_window",
    "mixup",
    "mnist",
    "one_hot_smoothed",
    "random_crop",
    "random_drop",
    "random_erase",
    "random_flip",
    "random_polarity_flip",
    "random_rotation",
    "random_shift",
    "read_aedat2",
    "read_aedat3",
    "read_bin",
    "read_image_folder",
    "read_imagenet",
    "render_saccades",
    "saccade_mnist",
    "shift_frames",
    "time_jitter",
    "to_binary",
    "voxel_grid",
    "write_bin",
]
