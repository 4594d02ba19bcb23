"""Events in: one layout, binning to frames, augmentation, simulated and real recordings. Knows nothing of models."""

if "." not in __name__:
    # with the repository's root on sys.path another library's `import datasets` would get this folder
    raise ModuleNotFoundError(
        "No module named 'datasets'. The folder of this name is a part of spikeloom: import spikeloom.datasets.",
        name=__name__,
    )

from spikeloom.datasets.adaptive_frames import adaptive_event_frames
from spikeloom.datasets.aedat3 import read_aedat3
from spikeloom.datasets.archives import unpack_archive
from spikeloom.datasets.asl_dvs import ASLDVS
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
from spikeloom.datasets.bible_text import king_james
from spikeloom.datasets.bpe_tokenizer import BPETokenizer, check_neox_20b
from spikeloom.datasets.byte_tokenizer import ByteTokenizer
from spikeloom.datasets.character_tokenizer import CharacterTokenizer, clean_prompt
from spikeloom.datasets.cifar10_dvs import CIFAR10DVS, read_aedat2
from spikeloom.datasets.cochlea import Cochlea
from spikeloom.datasets.digit_speech import digit_speakers, spoken_digits
from spikeloom.datasets.dvs_gesture import DVSGesture, EventClips
from spikeloom.datasets.dvs_lip import DVSLip
from spikeloom.datasets.event_augment import (
    crop,
    drop_area,
    drop_time,
    nda,
    polarity_jitter,
    random_crop_events,
    random_roll,
    spatial_jitter,
)
from spikeloom.datasets.event_files import event_format, read_events
from spikeloom.datasets.event_filters import background_filter, refractory_filter
from spikeloom.datasets.event_mixing import event_mix
from spikeloom.datasets.event_store import EventStore
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
from spikeloom.datasets.google_speech import speech_commands
from spikeloom.datasets.hardvs import HARDVS
from spikeloom.datasets.heidelberg import shd, ssc
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
from spikeloom.datasets.indexed import IndexedTokens, write_indexed
from spikeloom.datasets.manifolds import random_manifolds
from spikeloom.datasets.mnist5k import MNIST5k, saccade_mnist
from spikeloom.datasets.n_caltech101 import NCaltech101
from spikeloom.datasets.n_cars import NCARS
from spikeloom.datasets.nmnist import NMNIST, read_bin, write_bin
from spikeloom.datasets.packed import PackedEvents
from spikeloom.datasets.rand_augment import RandAugment
from spikeloom.datasets.recording_files import EventFolder, RecordingFiles
from spikeloom.datasets.saccades import SaccadeConfig, render_saccades
from spikeloom.datasets.sequences import Sequences
from spikeloom.datasets.spike_bins import bin_spikes
from spikeloom.datasets.store_parts import StorePart, open_parts, split_parts
from spikeloom.datasets.store_writer import Packing, pack_store
from spikeloom.datasets.text import read_text, read_tokens, split_tokens
from spikeloom.datasets.text_windows import IGNORED, TextWindows
from spikeloom.datasets.time_surfaces import time_surface
from spikeloom.datasets.token_ids import Tokenizer, check_tokens
from spikeloom.datasets.tokenizer_folder import load_tokenizer
from spikeloom.datasets.tonic_bridge import TonicDataset, for_tonic, from_tonic, tonic_transform
from spikeloom.datasets.wav import read_wav

__all__ = [
    "ASLDVS",
    "CIFAR10DVS",
    "HARDVS",
    "IGNORED",
    "NCARS",
    "NMNIST",
    "BPETokenizer",
    "ByteTokenizer",
    "CharacterTokenizer",
    "Cochlea",
    "DVSGesture",
    "DVSLip",
    "EventClips",
    "EventFolder",
    "EventStore",
    "Events",
    "EventsFromImages",
    "ImageFiles",
    "Images",
    "IndexedTokens",
    "MNIST5k",
    "NCaltech101",
    "PackedEvents",
    "Packing",
    "RandAugment",
    "RecordingFiles",
    "SaccadeConfig",
    "Sequences",
    "StorePart",
    "TextWindows",
    "Tokenizer",
    "TonicDataset",
    "adaptive_event_frames",
    "augment_frames",
    "background_filter",
    "bin_spikes",
    "check_neox_20b",
    "check_tokens",
    "cifar10",
    "cifar100",
    "clean_prompt",
    "collate",
    "crop",
    "cutmix",
    "digit_speakers",
    "drop_area",
    "drop_time",
    "event_format",
    "event_mix",
    "fashion_mnist",
    "flip_frames",
    "flip_images",
    "for_tonic",
    "frames_by_count",
    "frames_by_time",
    "frames_by_window",
    "from_tonic",
    "king_james",
    "load_tokenizer",
    "mixup",
    "mnist",
    "nda",
    "one_hot_smoothed",
    "open_parts",
    "pack_store",
    "polarity_jitter",
    "random_crop",
    "random_crop_events",
    "random_drop",
    "random_erase",
    "random_flip",
    "random_manifolds",
    "random_polarity_flip",
    "random_roll",
    "random_rotation",
    "random_shift",
    "read_aedat2",
    "read_aedat3",
    "read_bin",
    "read_events",
    "read_image_folder",
    "read_imagenet",
    "read_text",
    "read_tokens",
    "read_wav",
    "refractory_filter",
    "render_saccades",
    "saccade_mnist",
    "shd",
    "shift_frames",
    "spatial_jitter",
    "speech_commands",
    "split_parts",
    "split_tokens",
    "spoken_digits",
    "ssc",
    "time_jitter",
    "time_surface",
    "to_binary",
    "tonic_transform",
    "unpack_archive",
    "voxel_grid",
    "write_bin",
    "write_indexed",
]
