"""The benchmark of several processes runs, in its tiny mode on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scaling.py"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("what", ["ddp", "fsdp"])
def test_tiny(what: str, tmp_path: Path) -> None:
    out = tmp_path / "scaling.json"
    words = ["--tiny", "--what", what, "--processes", "2", "--warmup", "1", "--steps", "1", "--repeats", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, str(SCRIPT), *words, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=230)
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads(out.read_text())["rows"]
    assert row["processes"] == 2
    assert row["what"] == what
    assert row["speed"] > 0
