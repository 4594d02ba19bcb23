"""Events in: one layout, binning to frames, augmentation, simulated and real recordings. Knows nothing of models."""

if "." not in __name__:
    # with the repository's root on sys.path another library's `import datasets` would get this folder
    raise ModuleNotFoundError(
        "No module named 'datasets'. The folder of this name is a part of spikeloom: import spikeloom.datasets.",
        name=__name__,
    )

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
from spikeloom.datasets.events import Events
from spikeloom.datasets.frames import (
    collate,
    frames_by_count,
    frames_by_time,
    frames_by_window,
    to_binary,
    voxel_grid,
)
from spikeloom.datasets.from_images import EventsFromImages
from spikeloom.datasets.mnist5k import MNIST5k, saccade_mnist
from spikeloom.datasets.nmnist import NMNIST, read_bin, write_bin
from spikeloom.datasets.packed import PackedEvents
from spikeloom.datasets.saccades import SaccadeConfig, render_saccades

__all__ = [
    "NMNIST",
    "Events",
    "EventsFromImages",
    "MNIST5k",
    "PackedEvents",
    "SaccadeConfig",
    "collate",
    "flip_frames",
    "frames_by_count",
    "frames_by_time",
    "frames_by_window",
    "random_drop",
    "random_flip",
    "random_polarity_flip",
    "random_rotation",
    "random_shift",
    "read_bin",
    "render_saccades",
    "saccade_mnist",
    "shift_frames",
    "time_jitter",
    "to_binary",
    "voxel_grid",
    "write_bin",
]
