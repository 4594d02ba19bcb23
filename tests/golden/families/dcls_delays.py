"""Golden delay networks: kernels, layers, networks, streams, training steps, schedules, starting values, data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from spikeloom_tests.golden.delays import layers, nets, prepared, training
from spikeloom_tests.golden.delays.stored import Stored, read

CHECKS: dict[str, Callable[[Stored], None]] = {
    "k1d_": layers.check_kernel,
    "k2d_": layers.check_kernel,
    "layer": layers.check_layer,
    "delay_stream_": layers.check_stream,
    "init_": nets.check_init,
    "training_": training.check_steps,
    "schedules": training.check_schedules,
    "prep_shd_": prepared.check_spikes,
    "prep_gsc_": prepared.check_audio,
    "augment": prepared.check_augment,
}
NETWORKS = {"net_train_": nets.check_train, "net_eval_": nets.check_eval}
"""Prefix of a file's name -> its comparison; networks in both precisions, those with counted operations as streams."""


def variants(path: Path) -> list[str]:
    """Networks in both precisions, streams besides; everything else in the type that is stored."""
    if path.suffix != ".safetensors" or not path.stem.startswith(tuple(NETWORKS)):
        return [""] if path.suffix == ".safetensors" else []
    streams = "out.synaptic_events" in read(path).tensors
    return ["float64", "float32", *(["stream"] if streams else [])]


def check(path: Path, variant: str) -> None:
    """Compare a file in one way."""
    file = read(path)
    if variant == "stream":
        nets.check_streaming(file)
        return
    for prefix, compare in NETWORKS.items():
        if path.stem.startswith(prefix):
            compare(file, torch.float64 if variant == "float64" else torch.float32)
            return
    prefix = max((prefix for prefix in CHECKS if path.stem.startswith(prefix)), key=len)
    CHECKS[prefix](file)
