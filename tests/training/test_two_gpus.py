"""Two GPUs, one process each: steps as CUDA graphs, which hold the exchange of gradients, against steps called."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spikeloom.training.log import RunLog

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
    pytest.mark.timeout(240),
]


def train(graphs: str, out: Path) -> list[float]:
    """Losses of the epochs of a short training in two processes."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "spikeloom"]
    words += ["train", "saccade_small", "--out", str(out), "--epochs", "4", "--data.limit", "512", "--batch-size", "64"]
    words += ["--no-bf16", "--no-energy", "--cuda-graph", graphs, "--model-args", '{"dropout": 0.0}']
    environment = {**os.environ, "NCCL_NVLS_ENABLE": "0"}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=220, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = RunLog(out / "log.jsonl").lines()
    assert not [line for line in lines if line["event"] == "notice"]
    return [line["loss"] for line in lines if line["event"] == "epoch"]


def test_graphs_give_what_calls_give(tmp_path: Path) -> None:
    captured, called = train("on", tmp_path / "on"), train("off", tmp_path / "off")
    assert len(captured) == 4
    assert captured == pytest.approx(called, rel=2e-2)
    assert captured[-1] < captured[0]
