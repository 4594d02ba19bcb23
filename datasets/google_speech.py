"""Google Speech Commands v0.02 as log-mel frames: 35 words, one second each, 101 frames of 140 filters.

P. Warden 2018, "Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition", arXiv:1804.03209 (CC BY 4.0).
105,829 files `<word>/<speaker>_nohash_<n>.wav`, 16 kHz, 16 bits, at most a second. `validation_list.txt` (9,981) and
`testing_list.txt` (11,005) name two parts; all other files of the words are the training part (84,843).
`_background_noise_` is left out. Frames: `log_mel`.

Frames are stored in float16 unless told otherwise: between -100 and 100 dB it is exact to 0.03 dB, and -100, the floor,
is exact. The training part then takes 2.4 GB.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from spikeloom.datasets.log_mel import F_MIN, RATE, SAMPLES, log_mel_batch, mel_filters
from spikeloom.datasets.sequences import Sequences
from spikeloom.datasets.token_ids import part_beside
from spikeloom.datasets.wav import read_wav

Progress = Callable[[int, int], None]

WORDS = (
    *("backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go", "happy"),
    *("house", "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop"),
    *("three", "tree", "two", "up", "visual", "wow", "yes", "zero"),
)
FRAMES = 101

_LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
_CHUNK = 128
_HELP = (
    "Expected ROOT/<word>/<speaker>_nohash_<n>.wav for 35 words, ROOT/validation_list.txt and ROOT/testing_list.txt. "
    "Get http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz and unpack it into ROOT."
)


def speech_commands(
    root: str | Path,
    part: Literal["train", "valid", "test"] = "train",
    *,
    f_max: float = 14000.0,
    n_mels: int = 140,
    dtype: torch.dtype = torch.float16,
    cache: str | Path | None = None,
    threads: int = 4,
    progress: Progress | None = None,
) -> Sequences:
    """The recordings of a part, 101 frames each, in dB; labels are words in alphabetical order, groups the speakers.

    Args:
        f_max: upper end of the filters, Hz; 14000 as published, 4000 is what the rate of the frames can hold.
        dtype: of the frames, float16 or float32.
        cache: a folder for the frames. A second call then maps them into memory and reads no sound. The file is found
            by the settings and the names of the recordings: delete it when recordings themselves were changed.
        threads: that read files. progress: called with the recordings done and their number.

    Raises:
        FileNotFoundError: words or lists are missing; says where the data set is to be had.
        ValueError: a list that names files which are not there, a file of another format or rate or longer than a
            second, a damaged cache.
    """
    if part not in ("train", "valid", "test") or dtype not in (torch.float16, torch.float32) or threads < 1:
        raise ValueError(
            f"part={part!r}, dtype={dtype}, threads={threads}; expected 'train', 'valid' or 'test', torch.float16 or "
            "torch.float32, and one thread or more."
        )
    mel_filters(n_mels, F_MIN, f_max)  # refuses what makes no frames, before anything is read
    folder = Path(root)
    names, speakers = _listed(folder, part)
    shape = (len(names) * FRAMES, n_mels)
    kind = np.dtype(str(dtype).removeprefix("torch."))
    target = None if cache is None else Path(cache) / _cache_name(part, names, f_max, n_mels, kind)
    if target is None:
        values: NDArray[Any] = np.empty(shape, dtype=kind)
        _fill(values, folder, names, f_max, threads, progress)
    else:
        if not target.is_file():
            _write_cache(target, shape, kind, lambda array: _fill(array, folder, names, f_max, threads, progress))
        values = _opened(target, shape, kind)
    labels = torch.tensor([WORDS.index(name.split("/")[0]) for name in names])
    offsets = torch.arange(len(names) + 1) * FRAMES
    return Sequences(torch.from_numpy(values), offsets, labels, torch.tensor(speakers), WORDS)


def _listed(folder: Path, part: str) -> tuple[list[str], list[int]]:
    """The recordings `<word>/<file>` of a part, and the numbers of their speakers among those of all parts."""
    missing = [name for name in WORDS if not (folder / name).is_dir()]
    missing += [name for name in _LISTS.values() if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing[:6])}{' ...' if len(missing) > 6 else ''} ({len(missing)}). {_HELP}"
        )
    there = [
        f"{word}/{entry.name}"
        for word in WORDS
        for entry in sorted(os.scandir(folder / word), key=lambda entry: entry.name)
        if entry.name.endswith(".wav")
    ]
    lists = {key: set((folder / name).read_text().split()) for key, name in _LISTS.items()}
    gone = sorted((lists["valid"] | lists["test"]) - set(there))
    if gone or lists["valid"] & lists["test"]:
        raise ValueError(
            f"{folder}: the lists name {len(gone)} files that are not there ({', '.join(gone[:3])}) and "
            f"{len(lists['valid'] & lists['test'])} twice. Unpack the archive again; of v0.01 or parts of the data set "
            "nothing can be compared."
        )
    held_out = lists["valid"] | lists["test"]
    chosen = [name for name in there if (name in lists[part] if part in lists else name not in held_out)]
    if not chosen:
        raise ValueError(f"{folder} has no recording of the part {part!r}. {_HELP}")
    numbers = {speaker: number for number, speaker in enumerate(sorted({_speaker(name) for name in there}))}
    return chosen, [numbers[_speaker(name)] for name in chosen]


def _speaker(name: str) -> str:
    return name.split("/")[1].split("_nohash_")[0]


def _fill(
    values: NDArray[Any], folder: Path, names: list[str], f_max: float, threads: int, progress: Progress | None
) -> None:
    """Frames of all recordings into `values` `[R * 101, n_mels]`."""
    R, n_mels = len(names), values.shape[1]
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, R, _CHUNK):
            stop = min(start + _CHUNK, R)
            sounds = torch.stack(list(pool.map(lambda name: _second(folder / name), names[start:stop])))
            frames = log_mel_batch(sounds, n_mels, f_max)
            values[start * FRAMES : stop * FRAMES] = frames.view(-1, n_mels).numpy()
            if progress is not None:
                progress(stop, R)


def _second(path: Path) -> Tensor:
    """A recording `[16000]`, zeros behind its end."""
    samples, _ = read_wav(path, RATE)
    if len(samples) > SAMPLES:
        raise ValueError(f"{path} has {len(samples)} samples; expected at most {SAMPLES}, a second. Cut it first.")
    return F.pad(samples, (0, SAMPLES - len(samples)))


def _cache_name(part: str, names: list[str], f_max: float, n_mels: int, kind: np.dtype[Any]) -> str:
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
    return f"speech_commands_{part}_{n_mels}_{f_max:.17g}_{kind.name}_{digest}.npy"


def _write_cache(
    target: Path, shape: tuple[int, int], kind: np.dtype[Any], fill: Callable[[NDArray[Any]], None]
) -> None:
    """Write the array under another name, which becomes `target` when it is whole and on disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = part_beside(target)
    try:
        array = np.lib.format.open_memmap(part, mode="w+", dtype=kind, shape=shape)
        fill(array)
        array.flush()
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _opened(path: Path, shape: tuple[int, int], kind: np.dtype[Any]) -> NDArray[Any]:
    """The array of a cache; pages are read when used, and writing to them does not reach the file."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a whole cache ({error}). Delete it.") from error
    if array.shape != shape or array.dtype != kind:
        raise ValueError(f"{path} holds {array.dtype} {list(array.shape)}; expected {kind} {list(shape)}. Delete it.")
    return array
