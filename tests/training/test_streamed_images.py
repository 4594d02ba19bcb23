"""Images that worker processes decode: values, order, entering an epoch in the middle, workers, errors, whole runs."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from spikeloom_tests.training.image_folders import write_folder

from spikeloom import cli
from spikeloom.datasets import ImageFiles
from spikeloom.energy.store import load
from spikeloom.training import Augment, Data, Recipe, TrainingInterrupted, fit, get_recipe, run
from spikeloom.training.checkpoint import read_state, require_checkpoint
from spikeloom.training.data import Batches, load_test, load_train
from spikeloom.training.network import build
from spikeloom.training.sources import check_augment, source
from spikeloom.training.streamed_images import (
    Chunk,
    StreamedImages,
    evaluation_pixels,
    training_pixels,
    worker_count,
)

CPU = torch.device("cpu")
SIZE = 32
EVERYTHING = Augment(
    flip=0.5, rand_augment="rand-m9-mstd0.5-inc1", erase=0.5, erase_mode="pixel", mixup=0.4, cutmix=1.0, mix_prob=0.5
)
NARROW: dict[str, Any] = {"embed_dim": 32, "num_heads": 2, "depths": [1, 1, 1], "input_size": [SIZE, SIZE]}
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("folder"), classes=3, train=8, test=6)


@pytest.fixture
def data(root: Path) -> Data:
    return Data("image_folder", root=str(root), T=2, image_size=SIZE, workers=0)


@pytest.fixture
def narrow(data: Data) -> Recipe:
    """The published recipe with a small network: two epochs of three steps."""
    recipe = get_recipe("maxformer_10_384_imagenet_paper")
    return replace(recipe, model_args=NARROW, data=data, epochs=2, batch_size=8)


def by_hand(path: Path, size: int) -> torch.Tensor:
    """Evaluation with Pillow alone: shorter side to size / 0.875, the middle, normalised."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    short = int(size / 0.875)
    width, height = image.size
    scaled = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    image = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)))
    return (torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255 - MEAN) / STD


def test_evaluation_is_that_of_a_pipeline_by_hand(data: Data) -> None:
    files = load_test(data)
    assert isinstance(files, ImageFiles)
    batches = list(Batches(files, data, 7, CPU, EVERYTHING).in_order())
    assert [len(labels) for _, labels in batches] == [7, 7, 4]
    assert torch.cat([labels for _, labels in batches]).tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x, _ in batches)
    expected = torch.stack([by_hand(files.path(i), SIZE) for i in range(len(files))])
    torch.testing.assert_close(torch.cat([x for x, _ in batches]), expected)


def test_the_usual_sizes() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8))
    pixels = evaluation_pixels(224)(image)
    small = np.asarray(image.resize((341, 256), Image.Resampling.BICUBIC).crop((58, 16, 282, 240)))
    assert torch.equal(pixels, torch.from_numpy(small.copy()).permute(2, 0, 1))


def test_a_random_part_is_one_of_the_image(data: Data) -> None:
    """Of a ramp, a part is a ramp between values that its corner and size say, within the area and the ratio."""
    ramp = np.stack((*np.mgrid[0:200, 0:240], np.zeros((200, 240))), 2).astype(np.uint8)
    change = training_pixels(SIZE, 0.25, 0.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = torch.stack([change(Image.fromarray(ramp)) for _ in range(200)]).float()
    height, width = ((parts[:, c].amax((1, 2)) - parts[:, c].amin((1, 2))) * SIZE / (SIZE - 1) for c in (0, 1))
    area, ratio = height * width / (200 * 240), width / height
    assert 0.2 < area.min() < 0.35 < 0.85 < area.max() < 1.05
    assert 0.7 < ratio.min() < 0.8 < 1.25 < ratio.max() < 1.4
    assert parts[:, 0].amin((1, 2)).unique().numel() > 30


def test_an_area_of_one_is_evaluation(data: Data) -> None:
    whole = replace(data, crop_area=1.0)
    files = load_train(whole)[0]
    shuffled, labels = next(Batches(files, whole, 24, CPU).shuffled(0, 0))
    plain, _ = next(Batches(files, whole, 24, CPU).in_order())
    assert sorted(x.sum().item() for x in shuffled) == pytest.approx(sorted(x.sum().item() for x in plain))
    assert labels.bincount().tolist() == [8, 8, 8]


@pytest.mark.parametrize("augment", [Augment(), EVERYTHING], ids=["none", "all"])
def test_an_epoch_can_be_entered_in_the_middle(data: Data, augment: Augment) -> None:
    batches = Batches(load_train(data)[0], data, 8, CPU, augment)
    whole = list(batches.shuffled(seed=1, epoch=3))
    assert (len(whole), len(batches)) == (3, 3)
    for start in (1, 2):
        rest = list(batches.shuffled(seed=1, epoch=3, start=start))
        assert len(rest) == 3 - start
        assert all(
            torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(whole[start:], rest, strict=True)
        )
    assert not torch.equal(next(batches.shuffled(seed=1, epoch=4))[0], whole[0][0])
    assert not torch.equal(next(batches.shuffled(seed=2, epoch=3))[0], whole[0][0])


def test_numbers_do_not_depend_on_the_workers(data: Data) -> None:
    """20 images: more than a worker makes at a time."""
    files, runs = load_train(data)[0], []
    for workers in (0, 2):
        batches = Batches(files, replace(data, workers=workers), 20, CPU, EVERYTHING)
        before = torch.get_rng_state()
        runs.append([*batches.shuffled(0, 0), *batches.in_order()])
        assert torch.equal(torch.get_rng_state(), before)
    assert [len(x) for x, _ in runs[0]] == [20, 4, 20, 4]
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(*runs, strict=True))


def test_what_workers_get_can_be_sent_to_a_fresh_process(data: Data) -> None:
    inputs = Batches(load_train(data)[0], data, 8, CPU, EVERYTHING).inputs
    assert isinstance(inputs, StreamedImages)
    copy = pickle.loads(pickle.dumps(inputs._maker))
    chunk = Chunk([3, 20], [5, 6], True)
    assert torch.equal(copy[chunk].pixels, inputs._maker[chunk].pixels)


def test_workers_are_no_more_than_there_is_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    assert [worker_count(16, images) for images in (1, 16, 17, 1000)] == [0, 0, 2, 4]
    assert (worker_count(0, 1000), worker_count(3, 1000)) == (0, 3)


def test_boxes_are_erased_before_images_are_mixed(tmp_path: Path) -> None:
    for label in range(2):
        folder = tmp_path / "train" / str(label)
        folder.mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (SIZE, SIZE), (200, 200, 200)).save(folder / f"{number}.png")
    data = Data("image_folder", root=str(tmp_path), image_size=SIZE, workers=0)
    augment = Augment(erase=1.0, mixup=1.0)
    x, shares = next(Batches(load_train(data)[0], data, 8, CPU, augment).shuffled(0, 1))
    assert shares.shape == (8, 2)
    torch.testing.assert_close(shares.sum(1), torch.ones(8))
    grey = float((200 / 255 - 0.485) / 0.229)
    levels = (x[:, 0] / grey).flatten().unique()  # erased in both, in either, in none
    share = levels[(levels > 1e-3) & (levels < 0.999)]
    assert len(share) > 0
    close = (share[:, None] - torch.stack((share[0], 1 - share[0]))).abs().amin(1)
    assert close.max() < 1e-4


def test_limit_and_validation(data: Data) -> None:
    train, held = load_train(replace(data, validation=6, limit=12))
    assert held is not None
    assert (len(train), len(held)) == (6, 6)
    assert held.labels.tolist() == [0, 0, 1, 1, 2, 2]  # type: ignore[union-attr]
    names = {bytes(name) for part in (train, held) for name in part.names}  # type: ignore[union-attr]
    assert len(names) == 12
    assert len(load_test(replace(data, limit=5))) == 5


def test_classes_are_counted(data: Data, narrow: Recipe) -> None:
    assert source(data).num_classes == 3
    assert build(narrow, source(data).num_classes).config.num_classes == 3
    assert source(Data("imagenet")).num_classes == 1000


def test_unreadable_files_are_named_and_counted(tmp_path: Path) -> None:
    root = write_folder(tmp_path, train=8, test=1)
    bad = [root / "train" / "n00000001" / f"n00000001_{number}.JPEG" for number in (2, 5)]
    for path in bad:
        path.write_bytes(b"damaged")
    for workers in (0, 2):
        data = Data("image_folder", root=str(root), image_size=SIZE, workers=workers)
        batches = Batches(load_train(data)[0], data, 24, CPU)
        with pytest.raises(ValueError, match=r"^2 of the 24 images of a batch cannot be read: .*Get these") as found:
            list(batches.shuffled(0, 0))
        assert all(str(path) in str(found.value) for path in bad)
        assert "Traceback" not in str(found.value)


@pytest.mark.parametrize(
    ("data", "augment", "message"),
    [
        (Data("cifar10", image_size=32), Augment(), r"Data.image_size is for imagenet .*--data.image-size 224\."),
        (Data("nmnist", workers=2, crop_area=0.5), Augment(), r"Data.crop_area, workers is for imagenet"),
        (Data("imagenet"), Augment(shift_px=4), "Augment.shift_px has no place there"),
        (Data("imagenet"), Augment(cutmix=1.0, legacy_cutmix=True), "legacy_cutmix changes frames of events"),
        (Data("imagenet"), Augment(frame_op=True), "Augment.frame_op changes events or frames"),
        (Data("imagenet", crop=128), Augment(), "imagenet has images, and Data.crop cuts frames"),
        (Data("imagenet"), Augment(rand_augment="m9"), "expected 'rand' and sections"),
        (Data("image_folder"), Augment(), "image_folder is read from files.* Pass --root FOLDER"),
    ],
    ids=["size", "workers", "shift", "legacy", "frame-op", "crop", "rand-augment", "root"],
)
def test_what_cannot_be_is_refused(data: Data, augment: Augment, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_augment(augment, data)


@pytest.mark.parametrize(
    "change", [{"image_size": 0}, {"crop_area": 0.0}, {"crop_area": 1.5}, {"workers": -1}], ids=str
)
def test_wrong_settings(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Data.{next(iter(change))} is .*expected"):
        Data("imagenet", **change)


def test_a_size_that_the_model_cannot_take(narrow: Recipe, tmp_path: Path) -> None:
    wrong = replace(narrow, data=replace(narrow.data, image_size=36))
    with pytest.raises(ValueError, match=r"Data.image_size is 36"):
        fit(wrong, tmp_path / "run", device="cpu", console=Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_train_eval_and_energy(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    flags = ["--data.name", "image_folder", "--root", str(root), "--model-args", json.dumps(NARROW), "--T", "2"]
    flags += ["--data.image-size", str(SIZE), "--data.workers", "2", "--epochs", "1", "--batch-size", "8"]
    flags += ["--data.validation", "9", "--no-energy", "--out", "run", "--device", "cpu"]
    assert cli.main(["train", "maxformer_10_384_imagenet_paper", *flags]) == 0
    text = capsys.readouterr().out
    assert "on 15 images and 9 held out of image_folder (images of a folder, direct encoding), T = 2" in text
    assert "of 18 images of image_folder" in text
    assert cli.main(["eval", "run", "--part", "validation", "--device", "cpu"]) == 0
    assert "of 9 images of image_folder" in capsys.readouterr().out
    assert cli.main(["energy", "run", "--samples", "4", "--json", "a.json", "--strict", "--device", "cpu"]) == 0
    assert "4 images; image_folder, test part" in capsys.readouterr().out
    assert (load("a.json").T, load("a.json").samples) == (2, 4)


@pytest.mark.parametrize("step", [1, 3])
def test_resumed_equals_uninterrupted(
    step: int, narrow: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop:
        asked = 0

        @property
        def signal(self) -> int | None:
            self.asked += 1
            return signal.SIGINT if self.asked >= step else None

    @contextmanager
    def watch() -> Iterator[Stop]:
        yield Stop()

    quiet = Console(quiet=True)
    fit(narrow, tmp_path / "whole", device="cpu", console=quiet)
    with monkeypatch.context() as patch:
        patch.setattr(run, "watch", watch)
        with pytest.raises(TrainingInterrupted):
            fit(narrow, tmp_path / "cut", device="cpu", console=quiet)
    fit(narrow, tmp_path / "cut", resume=True, device="cpu", console=quiet)
    a, b = (require_checkpoint(tmp_path / name) for name in ("whole", "cut"))
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert read_state(a)["tally"]["loss"] == read_state(b)["tally"]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_signal_to_all_processes_saves_and_leaves_no_worker(
    number: signal.Signals, root: Path, tmp_path: Path
) -> None:
    """As a terminal or a batch system sends it: to the training and its workers alike."""
    flags = ["--data.name", "image_folder", "--root", str(root), "--model-args", json.dumps(NARROW), "--T", "2"]
    flags += ["--data.image-size", str(SIZE), "--data.workers", "2", "--epochs", "500", "--batch-size", "2"]
    command = [sys.executable, "-m", "spikeloom", "train", "maxformer_10_384_imagenet_paper", *flags, "--out", "run"]
    out = tmp_path / "out.txt"
    with out.open("w") as text:
        process = subprocess.Popen(
            [*command, "--device", "cpu"], cwd=tmp_path, stdout=text, stderr=text, start_new_session=True
        )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "run").glob("checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, number)
    assert process.wait(30) == 128 + number, out.read_text()
    assert "everything is saved" in out.read_text()
    assert "Traceback" not in out.read_text()
    deadline = time.monotonic() + 10
    while _lives(process.pid):
        assert time.monotonic() < deadline, "a worker is left"
        time.sleep(0.1)


WORKER = """
import signal, time
from spikeloom.training import streamed_images
streamed_images._GRACE = 1
signal.signal(signal.SIGALRM, lambda *_: None)  # as the main process may have it, from which a worker is forked
streamed_images._ignore_signals(0)
print("ready", flush=True)
while True:
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGALRM")
def test_a_worker_ends_some_time_after_sigterm_whatever_alarms_do_in_the_main_process() -> None:
    with subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        begin = time.monotonic()
        worker.terminate()
        try:
            assert worker.wait(30) == -signal.SIGALRM
        finally:
            worker.kill()
    assert time.monotonic() - begin > 0.5  # it may finish its chunk


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
