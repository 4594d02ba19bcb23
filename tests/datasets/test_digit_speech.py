"""Spoken digits: both splits, the real recordings where they are at hand, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from spikeloom_tests.datasets.sounds import write_wav
from torch.nn import functional as F

from spikeloom.datasets import Cochlea, Sequences, digit_speakers, read_wav, spoken_digits

FEW = Cochlea(channels=8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two digits, three speakers, seven recordings of each; a speaker's name may hold an underscore."""
    for digit in (0, 7):
        for speaker in ("ann", "bob", "c_d"):
            for number in (0, 1, 4, 5, 9, 10, 49):
                write_wav(tmp_path / f"{digit}_{speaker}_{number}.wav", 400 + 10 * number, 8000, 300 + 100 * digit)
    return tmp_path


def test_the_split_of_the_publisher(root: Path) -> None:
    train, test = (spoken_digits(root, part, cochlea=FEW) for part in ("train", "test"))
    assert (len(train), len(test), test.channels, test.values.dtype) == (24, 18, 8, torch.uint8)
    assert test.labels is not None
    assert test.labels.tolist() == [0] * 9 + [7] * 9
    assert test.groups is not None
    assert test.groups.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] * 2
    assert test.names[7] == "7"
    assert digit_speakers(root) == ("ann", "bob", "c_d")
    assert train.lengths[:4].tolist() == [-(-(400 + 10 * number) // 80) for number in (5, 9, 10, 49)]
    alone = FEW.encode([read_wav(root / "7_c_d_4.wav")[0]])
    assert torch.equal(test[17], alone.values)


def test_a_speaker_left_out(root: Path) -> None:
    train, test = (spoken_digits(root, part, speaker="bob", cochlea=FEW) for part in ("train", "test"))
    assert (len(train), len(test)) == (28, 14)
    assert test.groups is not None
    assert test.groups.unique().tolist() == [1]
    assert train.groups is not None
    assert train.groups.unique().tolist() == [0, 2]


def test_a_clone_has_its_recordings_in_a_folder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    clone = tmp_path_factory.mktemp("clone")
    (clone / "recordings").symlink_to(root)
    assert len(spoken_digits(clone, "test", cochlea=FEW)) == 18


def test_what_is_not_there_is_refused(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ValueError, match=r"speaker is 'eve'; .* has ann, bob, c_d"):
        spoken_digits(root, speaker="eve")
    with pytest.raises(ValueError, match="part is 'valid'"):
        spoken_digits(root, "valid")  # type: ignore[arg-type]
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(FileNotFoundError, match=r"There is no .wav file .*free-spoken-digit-dataset"):
        spoken_digits(empty)
    write_wav(empty / "3_ann_7.wav", 400, 8000)
    with pytest.raises(ValueError, match="no recording of the part 'test'"):
        spoken_digits(empty, "test")
    with pytest.raises(ValueError, match="one of two or more"):
        spoken_digits(empty, speaker="ann")


def test_other_files_are_refused(root: Path) -> None:
    write_wav(root / "1_ann_0.wav", 400, 16000)
    with pytest.raises(ValueError, match=r"1_ann_0.wav is sampled at 16000 Hz; expected 8000 Hz"):
        spoken_digits(root, "test", cochlea=FEW)
    (root / "1_ann_0.wav").rename(root / "noise.wav")
    with pytest.raises(ValueError, match=r"noise.wav is not named <digit>_<speaker>_<number>.wav"):
        spoken_digits(root, "test", cochlea=FEW)


def binned(data: Sequences, bins: int = 12) -> torch.Tensor:
    """Recordings stretched to so many steps, `[R, bins N]`."""
    rows = [F.interpolate(data[i].float().t()[None], bins, mode="linear") for i in range(len(data))]
    return torch.cat(rows).flatten(1)


@pytest.mark.filterwarnings("error")
def test_a_linear_map_reads_the_real_digits(tmp_path: Path) -> None:
    """Ten recordings of each digit and speaker; a guess is right in 10 %."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "fsdd"
    if not folder.is_dir():
        pytest.skip(f"real recordings are not at {folder}")
    for number in range(10):
        for path in folder.glob(f"*_{number}.wav"):
            (tmp_path / path.name).symlink_to(path)
    train, test = spoken_digits(tmp_path), spoken_digits(tmp_path, "test")
    assert train.labels is not None
    assert test.labels is not None
    x, z = binned(train), binned(test)
    mean, targets = x.mean(0), F.one_hot(train.labels, 10).float() - 0.1
    x, z = x - mean, z - mean
    gram = x @ x.t()
    weights = torch.linalg.solve(gram + 0.3 * gram.diagonal().mean() * torch.eye(len(x)), targets)
    right = ((z @ x.t() @ weights).argmax(1) == test.labels).float().mean()
    assert right > 0.8
