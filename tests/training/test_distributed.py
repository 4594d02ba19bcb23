"""Two processes (gloo, on the CPU): their gradients, runs and checkpoints are those of one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from spikeloom_tests.training.two_processes import digits, launch, quiet, signalled, words

from spikeloom.training.checkpoint import read_description, require_checkpoint
from spikeloom.training.log import RunLog

pytestmark = pytest.mark.timeout(240)


def both(case: str, folder: Path) -> dict[str, Any]:
    """What both processes found: the same."""
    for done in launch(case, folder, timeout=200):
        assert done.returncode == 0, done.stderr[-3000:]
    one, other = (json.loads((folder / f"{case}-{rank}.json").read_text()) for rank in range(2))
    assert one == other
    return dict(one)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(require_checkpoint(run) / "model.safetensors")


def epochs(run: Path) -> list[tuple[float, ...]]:
    lines = RunLog(run / "log.jsonl").lines()
    return [(line["loss"], line.get("accuracy", 0), line["step"]) for line in lines if line["event"] == "epoch"]


@pytest.fixture(scope="module")
def runs(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with the runs of `numbers`."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "data").symlink_to(recordings)
    return folder, both("numbers", folder)


def test_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    found = both("gradients", tmp_path)
    assert "0 (BatchNorm2d)" in found.pop("refused")
    assert found.pop("begins with")
    assert len(found) == 6
    for count, (loss, gradient, correct, _) in found.items():
        assert max(loss, gradient) < 1e-12, count
        assert correct == 0


def test_captured_steps_are_those_that_are_called(tmp_path: Path) -> None:
    """Of batches of different sizes, in which a part of the same size has another share."""
    found = both("captured", tmp_path)
    assert found["captured"][2]
    assert not found["called"][2]
    for one, other in zip(found["captured"][0], found["called"][0], strict=True):
        assert one == pytest.approx(other, rel=1e-5)  # loss, norm of the gradient, how many were right
    assert found["captured"][1] == pytest.approx(found["called"][1], rel=1e-4)


def test_a_run_with_shared_statistics_is_that_of_one_process(runs: tuple[Path, dict[str, Any]]) -> None:
    folder, found = runs
    alone = quiet(digits(folder, shared=False), folder / "one")
    assert found["shared"]["samples"] == alone.test.samples == 20
    assert found["shared"]["loss"] == pytest.approx(alone.test.loss, rel=1e-4)
    for (loss, _, step), (loss2, _, step2) in zip(epochs(folder / "shared"), epochs(folder / "one"), strict=True):
        assert step == step2
        assert loss == pytest.approx(loss2, rel=1e-3)
    for name, value in weights(folder / "one").items():
        torch.testing.assert_close(weights(folder / "shared")[name], value, rtol=2e-2, atol=2e-3)


def test_only_one_process_writes(runs: tuple[Path, dict[str, Any]]) -> None:
    lines = RunLog(runs[0] / "apart" / "log.jsonl").lines()
    assert [line["event"] for line in lines] == ["start", "epoch", "epoch", "test"]
    assert lines[0]["processes"] == 2
    assert {path.name for path in (runs[0] / "apart").iterdir()} == {"recipe.json", "log.jsonl", "checkpoint-000010"}


def test_a_signal_to_one_stops_both_and_the_run_goes_on_in_one_or_two(runs: tuple[Path, dict[str, Any]]) -> None:
    folder, found = runs
    assert found["code"] == 128 + 15
    description = read_description(require_checkpoint(folder / "cut"))
    assert 0 < description.step < 10  # in the middle
    again = both("resumed", folder)["resumed"]
    assert again == found["apart"]  # to the last bit
    assert epochs(folder / "cut") == epochs(folder / "apart")
    for name, value in weights(folder / "apart").items():
        assert torch.equal(weights(folder / "cut")[name], value)


def test_accumulation_is_the_larger_batch(runs: tuple[Path, dict[str, Any]]) -> None:
    folder, found = runs
    assert found["accumulated"]["samples"] == 20
    changed = digits(folder, shared=False, accumulate=4)
    quiet(changed, folder / "four")  # the same four parts of two recordings, in one process
    assert epochs(folder / "four")[0][0] == pytest.approx(epochs(folder / "accumulated")[0][0], rel=1e-3)


def test_divided_weights(tmp_path: Path) -> None:
    alone = quiet(words(), tmp_path / "one")
    main_in_one(tmp_path / "alone")
    found = both("shards", tmp_path)
    assert found["whole"]["samples"] == alone.test.samples
    assert found["whole"]["loss"] == pytest.approx(alone.test.loss, rel=1e-5)
    assert found["accumulated"]["loss"] == pytest.approx(alone.test.loss, rel=1e-5)
    assert found["from_one"]["loss"] == pytest.approx(alone.test.loss, rel=1e-5)
    assert found["resumed"] == found["whole"]
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "whole")[name], value, rtol=1e-3, atol=1e-5)
        assert torch.equal(weights(tmp_path / "cut")[name], weights(tmp_path / "whole")[name])
    checkpoint = require_checkpoint(tmp_path / "elsewhere")
    assert 0 < read_description(checkpoint).step < 8
    assert {path.suffix for path in (checkpoint / "shards").iterdir()} == {".safetensors"}  # nothing is pickled
    elsewhere = quiet(words(shard=True), tmp_path / "elsewhere", resume=True)  # in this process, not divided
    assert elsewhere.test.loss == pytest.approx(alone.test.loss, rel=1e-5)


def main_in_one(out: Path) -> None:
    """A run that one process begins and does not end."""
    from spikeloom.training import TrainingInterrupted

    with pytest.raises(TrainingInterrupted), signalled(rank=0, step=3):
        quiet(words(shard=True), out)


def test_a_lost_process_ends_the_others_with_a_reason(recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(recordings)
    one, other = launch("lost", tmp_path, timeout=100)
    assert other.returncode == 9
    assert one.returncode == 1
    assert "LostProcessError: Process 0 of 2 waited for another one of this training, which has ended" in one.stderr
    assert "--resume" in one.stderr


def test_an_error_of_the_writer_ends_both(recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(recordings)
    one, other = launch("failing", tmp_path, timeout=100)
    assert "OSError: [Errno 28] No space left on device" in one.stderr
    assert "FollowedError: Process 0 of 2 has ended with an error." in other.stderr
