"""Kills, a full disk, dead workers, files that cannot be read, two runs in a folder, pickles."""

import ast
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from spikeloom_tests.training.image_folders import write_folder

from spikeloom.training import Data, Recipe, Result, fit, run, session
from spikeloom.training.checkpoint import find_checkpoint, load_model, read_state, require_checkpoint
from spikeloom.training.data import Batches, load_train
from spikeloom.training.faults import CheckpointWriteError, DataFaultError, UnreadableWarning, WorkerDiedError
from spikeloom.training.folder_lock import LOCK, FolderInUseError, locked
from spikeloom.training.streamed_images import ChunkMaker

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def quiet(recipe: Recipe, out: Path, resume: bool = False) -> Result:
    return fit(recipe, out, resume=resume, device="cpu", console=Console(quiet=True))


@pytest.mark.timeout(180)
def test_kill_at_random_moments(tmp_path: Path) -> None:
    """A handful; `scripts/kill_and_resume.py --kills 50` does as many as one likes."""
    script = [sys.executable, str(ROOT / "scripts" / "kill_and_resume.py"), "--kills", "3", "--epochs", "4"]
    done = subprocess.run([*script, "--folder", str(tmp_path)], capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no checkpoint was lost or damaged, all numbers agree" in done.stdout


@pytest.fixture
def small_files() -> Any:
    """A function that limits the size of files, as a full disk would; afterwards there is no limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [1000, 30_000, 200_000], ids=["weights", "weights_end", "state"])
def test_a_full_disk_leaves_the_checkpoint_before(
    size: int, tiny: Recipe, tmp_path: Path, small_files: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, saved = tmp_path / "run", session.save_checkpoint
    sizes: list[int] = []

    def second_fails(*given: Any) -> Path:
        if sizes:
            small_files(min(size, max(sizes) - 1))
        found = saved(*given)
        sizes.extend(file.stat().st_size for file in found.iterdir())
        return found

    with monkeypatch.context() as patch:
        patch.setattr(session, "save_checkpoint", second_fails)
        with pytest.raises(CheckpointWriteError, match=r"cannot be written in .*run: .*MiB free.*--resume"):
            quiet(tiny, out)
    small_files(resource.RLIM_INFINITY)
    assert {path.name for path in out.iterdir()} == {"recipe.json", "log.jsonl", "checkpoint-000005"}
    load_model(out)
    ended = quiet(tiny, out, resume=True)
    whole = quiet(tiny, tmp_path / "whole")
    assert (ended.test.loss, ended.test.correct) == (whole.test.loss, whole.test.correct)


@pytest.fixture
def folder(tmp_path: Path) -> Data:
    root = write_folder(tmp_path / "images", classes=3, train=8, test=3)
    return Data("image_folder", root=str(root), T=2, image_size=32, workers=0)


def truncate(data: Data, *numbers: int) -> list[Path]:
    """Cut some of the training images off in the middle."""
    files = sorted(path for path in (Path(str(data.root)) / "train").rglob("*") if path.is_file())
    for number in numbers:
        whole = files[number].read_bytes()
        files[number].write_bytes(whole[: len(whole) // 3])
    return [files[number] for number in numbers]


def test_truncated_images_are_skipped_and_counted(folder: Data) -> None:
    cut = truncate(folder, 3, 17)
    train = load_train(folder)[0]
    with pytest.raises(DataFaultError, match=r"1 of the 8 images .* cannot be read: .*--data\.unreadable skip"):
        list(Batches(train, folder, 8, CPU).shuffled(0, 0))
    skipping = Batches(train, replace(folder, unreadable="skip"), 8, CPU)
    with pytest.warns(UnreadableWarning) as told:
        batches = list(skipping.shuffled(0, 0))
    assert [len(y) for _, y in batches] == [8, 8, 8]
    said = "\n".join(str(warning.message) for warning in told)
    assert "(2 in all so far)" in said
    assert all(path.name in said for path in cut)
    for x, y in batches:  # each image has the label that belongs to it
        for image, label in zip(x, y, strict=True):
            same = [number for number, other in enumerate(x) if torch.equal(image, other)]
            assert all(y[number] == label for number in same)
    with pytest.raises(DataFaultError, match="cannot be read"):  # an evaluation does not leave anything out
        list(skipping.in_order())


def test_nothing_to_show_stops(folder: Data) -> None:
    truncate(folder, *range(24))
    batches = Batches(load_train(folder)[0], replace(folder, unreadable="skip"), 8, CPU)
    with pytest.raises(DataFaultError, match="8 of the 8 images"):
        list(batches.shuffled(0, 0))


def killed_worker(maker: ChunkMaker, chunk: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_explained(folder: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChunkMaker, "__getitem__", killed_worker)
    batches = Batches(load_train(folder)[0], replace(folder, workers=2), 24, CPU)
    batches.inputs._workers = 2  # type: ignore[union-attr]  # also where there is one core
    with pytest.raises(WorkerDiedError, match=r"One of the 2 processes that read data has ended .*--data\.workers"):
        list(batches.shuffled(0, 0))


def test_a_data_fault_in_the_middle_of_an_epoch_keeps_the_steps_before(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_epoch = run.train_epoch

    def faulty(*given: Any) -> Any:
        for number, tally in enumerate(train_epoch(*given)):
            yield tally
            if number == 2:
                raise DataFaultError("1 of the 8 images of a batch cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr(run, "train_epoch", faulty)
        with pytest.raises(DataFaultError):
            quiet(tiny, tmp_path / "run")
    assert read_state(require_checkpoint(tmp_path / "run"))["progress"]["batch"] == 3
    ended, whole = quiet(tiny, tmp_path / "run", resume=True), quiet(tiny, tmp_path / "whole")
    assert (ended.test.loss, ended.test.correct) == (whole.test.loss, whole.test.correct)


HOLD = """
import sys, pathlib
from spikeloom.training.folder_lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_two_runs_in_a_folder_are_refused_until_the_first_has_ended(tiny: Recipe, tmp_path: Path) -> None:
    quiet(replace(tiny, epochs=1), tmp_path / "run")
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for resume in (True, False):
            with pytest.raises(FolderInUseError, match=rf"run is in use: process {holder.pid} on .* trains there"):
                quiet(replace(tiny, epochs=1), tmp_path / "run", resume=resume)
        holder.kill()
    assert (tmp_path / "run" / LOCK).exists()  # what is left of a killed one holds nothing
    quiet(replace(tiny, epochs=1), tmp_path / "run", resume=True)
    assert not (tmp_path / "run" / LOCK).exists()


def test_what_a_kill_before_the_first_file_leaves_is_no_obstacle(tiny: Recipe, tmp_path: Path) -> None:
    for name in (LOCK, "recipe.json.part-x1"):
        (tmp_path / name).write_text("half")
    quiet(replace(tiny, epochs=1), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.json", "log.jsonl", "checkpoint-000005"}


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    with locked(tmp_path):
        command = [sys.executable, "-c", HOLD, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
        assert "FolderInUseError" in done.stderr
    assert find_checkpoint(tmp_path) is None


def shipped() -> list[Path]:
    folders = ("conversion", "datasets", "energy", "kernels", "models", "neurons", "spikeloom", "spiking_attention")
    return [path for name in (*folders, "synapses", "training") for path in (ROOT / name).rglob("*.py")]


def test_nothing_shipped_unpickles_what_a_file_says() -> None:
    """torch.load only with weights_only=True, numpy.load only with allow_pickle=False, no pickle.load."""
    found = []
    for path in shipped():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            bad = name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load")
            bad |= name == "torch.load" and given.get("weights_only") != "True"
            bad |= name in ("np.load", "numpy.load", "NpzFile", "np.lib.npyio.NpzFile") and (
                given.get("allow_pickle") != "False"
            )
            bad |= name.endswith("FileSystemReader")  # torch's own format keeps its index as a pickle
            if bad:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    assert not found
