"""PAF and E-FAction: files of a DAVIS346, class folders, lists and rule of the splits, what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spikeloom.datasets.human_actions import PAF, EFAction, read_davis346


def write_davis346(path: Path, events: list[tuple[int, int, int, int]], *, frames: int = 0, cut: int = 0) -> None:
    """Events (t, x, y, p) as AEDAT 2.0, with words that are no pixel's events in front."""
    words = [(0x8000_0000 | i, 5) for i in range(frames)]
    words += [(y << 22 | (345 - x) << 12 | (1 - p) << 11, t) for t, x, y, p in events]
    data = np.array(words, dtype=">u4").reshape(-1).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"#!AER-DAT2.0\r\n# AEChip: Davis346\r\n" + data[: len(data) - cut])


def paf(root: Path, classes: int = 10, each: int = 5) -> Path:
    for number in range(1, classes + 1):
        for i in range(each):
            write_davis346(root / str(number) / f"{i}.aedat", [(10 * number, number, i, 1), (10 * number + 7, 0, 0, 0)])
    return root


def test_a_file_of_a_davis346(tmp_path: Path) -> None:
    path = tmp_path / "a.aedat"
    write_davis346(path, [(100, 0, 0, 0), (103, 345, 259, 1), (104, 20, 30, 1), (105, 20, 300, 1)], frames=3)
    events = read_davis346(path)
    assert (events.height, events.width) == (260, 346)
    columns = [column.tolist() for column in (events.t, events.x, events.y, events.p)]
    assert columns == [[0, 3, 4], [0, 345, 20], [0, 259, 30], [0, 1, 1]], "off the sensor is left out"


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.aedat"
    write_davis346(path, [(100, 0, 0, 0)], cut=3)
    with pytest.raises(ValueError, match=r"5 bytes behind its header, which ends at byte 34.*cut off"):
        read_davis346(path)
    path.write_bytes(b"#!AER-DAT2.0 and no end")
    with pytest.raises(ValueError, match="ends at byte 23, within the line of its header from byte 0"):
        read_davis346(path)
    path.write_bytes(b"#!AER-DAT4.0\r\n")
    with pytest.raises(ValueError, match=r"begins with b'#!AER-DAT4\.0"):
        read_davis346(path)


def test_a_first_event_is_no_line_of_the_header(tmp_path: Path) -> None:
    """The address of a pixel of rows 140 to 143 begins with the byte of '#'."""
    path = tmp_path / "a.aedat"
    for y in (139, 140, 143, 144):
        events = [(5, 0, y, 0), (10, 3, 4, 1), (0x0A0A, 345, 140, 1)]
        write_davis346(path, events)
        assert read_davis346(path).y.tolist() == [y, 4, 140]


def test_a_recording_in_both_lists_is_refused(tmp_path: Path) -> None:
    root = paf(tmp_path, classes=2, each=2)
    (root / "train.txt").write_text("2/0.aedat\n1/1.aedat\n")
    (root / "test.txt").write_text("1/0.aedat\n./2/0.aedat\n")
    for part in ("train", "test"):
        with pytest.raises(ValueError, match=r"1 recordings twice \(2/0\.aedat\)"):
            PAF(root, part)  # type: ignore[arg-type]
    (root / "test.txt").write_text("1/0.aedat\n1/0.aedat\n")
    with pytest.raises(ValueError, match=r"twice \(1/0\.aedat\)"):
        PAF(root, "test")
    (root / "test.txt").write_text("1/0.aedat\n")
    assert len(PAF(root, "test")) == 1


def test_without_lists_every_fifth_tests(tmp_path: Path) -> None:
    train, test = (PAF(paf(tmp_path), part) for part in ("train", "test"))
    assert (len(train), len(test)) == (40, 10)
    assert test.labels.tolist() == list(range(10)), "class 10 is behind class 9, not behind class 1"
    assert {file.name for file in test.files} == {"4.aedat"}
    assert not set(train.files) & set(test.files)
    packed = test.pack([2, 9])
    assert packed.labels is not None
    assert packed.labels.tolist() == [2, 9]
    assert [int(events.x[0]) for events in packed] == [3, 10]
    assert torch.equal(test[2][0].t, torch.tensor([0, 7]))
    assert "our rule; partial: 50 of 450" in test.says.replace(")", "")


def test_lists_say_what_is_which(tmp_path: Path) -> None:
    root = paf(tmp_path, classes=2, each=2)
    (root / "train.txt").write_text("2/0.aedat\n1/1.aedat\n")
    assert PAF(root, "train").labels.tolist() == [1, 0]
    with pytest.raises(FileNotFoundError, match=r"no .*test\.txt, only the other part's list"):
        PAF(root, "test")
    (root / "test.txt").write_text("1/0.aedat\n../1/0.aedat\n")
    with pytest.raises(FileNotFoundError, match=r"lists 2 recordings, of which 1 are not .*\.\./1/0\.aedat"):
        PAF(root, "test")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Expected ROOT/<1 to 10>/<name>\.aedat, 450 recordings of PAF.*doi"):
        PAF(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"1,024 recordings of E-FAction"):
        EFAction(tmp_path)
    paf(tmp_path, classes=11, each=1)
    with pytest.raises(ValueError, match="class 11 is not 1 to 10"):
        PAF(tmp_path)
    (tmp_path / "twice").mkdir()
    paf(tmp_path / "twice", classes=1)
    (tmp_path / "twice" / "action_001").mkdir()
    with pytest.raises(ValueError, match="class 1 is there twice"):
        PAF(tmp_path / "twice")
    with pytest.raises(ValueError, match="split is 'valid'"):
        PAF(tmp_path, "valid")  # type: ignore[arg-type]
