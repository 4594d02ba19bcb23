"""A folder of the form of Google Speech Commands: parts, frames, the cache, and what is refused."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spikeloom_tests.datasets.sounds import write_wav
from torch.nn import functional as F

from spikeloom.datasets import Sequences, read_wav, speech_commands
from spikeloom.datasets.google_speech import WORDS
from spikeloom.datasets.log_mel import log_mel


def names(part: str) -> list[str]:
    speaker = {"train": "00b01445", "valid": "00f0204f", "test": "0132a06d"}[part]
    return [f"{word}/{speaker}_nohash_0.wav" for word in WORDS]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three speakers say the 35 words, one for each part; two of them are short."""
    root = tmp_path_factory.mktemp("commands")
    for part, samples in (("train", 16000), ("valid", 11111), ("test", 14000)):
        for number, name in enumerate(names(part)):
            write_wav(root / name, samples, pitch=200 + 40 * number)
    (root / "validation_list.txt").write_text("\n".join(names("valid")) + "\n")
    (root / "testing_list.txt").write_text("\n".join(names("test")) + "\n")
    write_wav(root / "_background_noise_" / "pink_noise.wav", 40000)
    (root / "README.md").write_text("words")
    return root


@pytest.fixture
def root(published: Path, tmp_path: Path) -> Path:
    """One to damage."""
    return Path(shutil.copytree(published, tmp_path / "copy"))


def frames(path: Path, f_max: float = 14000.0) -> torch.Tensor:
    samples = read_wav(path)[0]
    return log_mel(F.pad(samples, (0, 16000 - len(samples))), f_max=f_max)


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_parts_are_those_of_the_lists(published: Path, part: Any) -> None:
    data = speech_commands(published, part)
    assert (len(data), data.channels, data.values.dtype) == (35, 140, torch.float16)
    assert data.lengths.tolist() == [101] * 35
    assert data.names == WORDS
    assert data.labels is not None
    assert data.labels.tolist() == list(range(35))
    speaker = ("train", "valid", "test").index(part)  # their names ascend in this order
    assert data.groups is not None
    assert data.groups.tolist() == [speaker] * 35
    x, _ = data.batch([0, 20, 34])
    whole = torch.stack([frames(published / names(part)[word]) for word in (0, 20, 34)], 1)
    assert (x - whole).abs().max() < 0.04  # half a step of float16 between 64 and 128 is 0.031
    assert bool((x[..., 87:] == -100).all())


def test_words_are_in_order() -> None:
    assert len(WORDS) == 35
    assert list(WORDS) == sorted(set(WORDS))


def test_frames_of_other_settings(published: Path) -> None:
    calls: list[tuple[int, int]] = []
    data = speech_commands(
        published,
        "valid",
        f_max=4000.0,
        dtype=torch.float32,
        threads=1,
        progress=lambda done, total: calls.append((done, total)),
    )
    torch.testing.assert_close(data[7], frames(published / names("valid")[7], 4000.0), atol=1e-4, rtol=0)
    assert calls == [(35, 35)]


def test_a_cache_is_read_in_place_of_sound(root: Path) -> None:
    def load() -> Sequences:
        return speech_commands(root, "test", cache=root / "frames")

    plain, first = speech_commands(root, "test"), load()
    (root / names("test")[3]).write_bytes(b"no sound")
    again = load()
    assert torch.equal(plain.values, first.values)
    assert torch.equal(plain.values, again.values)
    again.values[0, 0] = 1  # reaches memory, not the file
    assert torch.equal(load().values, plain.values)
    (file,) = (root / "frames").iterdir()
    assert file.name.startswith("speech_commands_test_140_14000_float16_")
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"not a whole cache .* Delete it"):
        load()
    file.unlink()
    with pytest.raises(ValueError, match="not a whole WAV file"):
        load()
    assert not list((root / "frames").iterdir())  # nothing half written is left


def test_a_cache_of_another_shape_is_refused(root: Path) -> None:
    speech_commands(root, "test", cache=root / "frames")
    (file,) = (root / "frames").iterdir()
    with file.open("wb") as raw:
        np.save(raw, np.zeros((35, 140), dtype=np.float16))
    with pytest.raises(ValueError, match=r"holds float16 \[35, 140\]; expected float16 \[3535, 140\]"):
        speech_commands(root, "test", cache=root / "frames")


def test_folders_that_are_not_whole(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"lacks backward, bed, .* \(37\).*speech_commands_v0.02.tar.gz"):
        speech_commands(root / "nowhere")
    shutil.rmtree(root / "zero")
    with pytest.raises(FileNotFoundError, match=r"lacks zero \(1\)"):
        speech_commands(root)
    (root / "zero").mkdir()
    with pytest.raises(ValueError, match="name 2 files that are not there"):
        speech_commands(root)


def test_lists_that_cannot_be(root: Path) -> None:
    (root / "testing_list.txt").write_text(names("valid")[0])
    with pytest.raises(ValueError, match="and 1 twice"):
        speech_commands(root)
    (root / "testing_list.txt").write_text("")
    with pytest.raises(ValueError, match="no recording of the part 'test'"):
        speech_commands(root, "test")


@pytest.mark.parametrize(
    ("samples", "rate", "says"),
    [(8000, 8000, "sampled at 8000 Hz; expected 16000 Hz"), (16001, 16000, "16001 samples; expected at most 16000")],
)
def test_other_sound_is_refused(root: Path, samples: int, rate: int, says: str) -> None:
    write_wav(root / names("valid")[9], samples, rate)
    with pytest.raises(ValueError, match=says):
        speech_commands(root, "valid")


@pytest.mark.parametrize("settings", [{"n_mels": 0}, {"f_max": 50.0}, {"f_max": math.nan}], ids=str)
def test_filters_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected a filter or more, and 0 <= f_min < f_max"):
        speech_commands("nowhere", **settings)
    with pytest.raises(ValueError, match=r"expected a filter or more, and 0 <= f_min < f_max"):
        log_mel(torch.zeros(100), **settings)


def test_caches_of_close_settings_are_two(root: Path) -> None:
    for f_max in (4000.0, 4000.001):
        speech_commands(root, "test", cache=root / "frames", f_max=f_max)
    assert len(list((root / "frames").iterdir())) == 2


@pytest.mark.parametrize(
    "settings", [{"part": "dev"}, {"dtype": torch.int16}, {"threads": 0}], ids=["part", "dtype", "threads"]
)
def test_other_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected 'train', 'valid' or 'test', torch.float16 or"):
        speech_commands("nowhere", **settings)
