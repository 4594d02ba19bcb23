"""Golden SpikeGPT: the kind of a file is its name up to the first "_"."""

from __future__ import annotations

from pathlib import Path

import torch
from spikeloom_tests.golden.spikegpt.network import check_text, check_tokens, check_training
from spikeloom_tests.golden.spikegpt.parts import check_first_values, check_sampling, check_wkv
from spikeloom_tests.golden.stored import read

PRECISE = {"wkv": check_wkv, "lm": check_text, "rnn": check_tokens}
SINGLE = {"init": check_first_values, "sampling": check_sampling, "train": check_training}


def variants(path: Path) -> list[str]:
    """WKV and networks in both precisions, in single precision on a GPU too."""
    return ["float64", "float32", "cuda"] if path.stem.partition("_")[0] in PRECISE else [""]


def check(path: Path, variant: str) -> None:
    """Compare a file in one way."""
    kind = path.stem.partition("_")[0]
    if kind in SINGLE:
        SINGLE[kind](read(path))
    else:
        dtype = torch.float64 if variant == "float64" else torch.float32
        PRECISE[kind](read(path), dtype, "cuda" if variant == "cuda" else "cpu")
