"""Golden adaptive event frames: pieces, scores and pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from spikeloom_tests.golden.stored import read

from spikeloom.datasets import Events
from spikeloom.datasets.adaptive_frames import adaptive_pieces


def variants(path: Path) -> list[str]:
    """On the CPU and on a GPU."""
    return ["", "cuda"]


def check(path: Path, variant: str) -> None:
    """Compare a file in one way."""
    file = read(path)
    x, y, _, p = file["in.events_xytp"].unbind(1)  # of the times, only the order matters
    events = Events.from_arrays(torch.arange(len(x)), x, y, p, *file.config["sensor_hw"]).to(variant or "cpu")
    found = adaptive_pieces(
        events,
        size=tuple(file.config["out_hw"]),
        min_events=file.config["min_events"],
        threshold=file.config["threshold"],
    )
    assert torch.equal(found.segments, file["out.segments"])
    torch.testing.assert_close(found.scores, file["out.scores_lo_hi"], rtol=1e-6, atol=0)
    frames = found.frames.permute(0, 2, 3, 1).cpu().double()
    torch.testing.assert_close(frames, file["out.frames"].double(), rtol=1e-6, atol=1e-4 if variant else 1e-6)
