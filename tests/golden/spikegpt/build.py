"""Our model with the parameters of a golden file of SpikeGPT."""

from __future__ import annotations

from typing import Any

import torch
from spikeloom_tests.golden.stored import Stored
from torch import Tensor, nn

from spikeloom.models import SpikeGPT, from_official
from spikeloom.models.official import load_official, translate

ARGUMENTS = ("vocab_size", "ctx_len", "n_layer", "n_embd", "model_type")


def model_of(file: Stored, dtype: torch.dtype, device: str, **options: Any) -> SpikeGPT:
    """Our model by the official arguments and state dict of a file, in evaluation."""
    arguments = {name: file.config[name] for name in ARGUMENTS if name in file.config}
    model = from_official("spikegpt", arguments, file.part("state."), **options)
    assert isinstance(model, SpikeGPT)
    load_official(model.to(dtype), file.part("state."), "spikegpt")  # a fresh model rounds to single precision
    return model.to(device).eval()


def ours(model: nn.Module, key: str) -> str:
    """Our name of an official parameter."""
    return translate("spikegpt", key, model.state_dict())


def close(found: Tensor | None, expected: Tensor, atol: float, what: str) -> None:
    """Every entry within `atol`."""
    assert found is not None, what
    difference = (found.detach().cpu().double().reshape(expected.shape) - expected.double()).abs().max().item()
    assert difference <= atol, f"{what}: {difference:.3g} apart, {atol:.3g} allowed"


def relatively_close(found: Tensor | None, expected: Tensor, rtol: float, what: str) -> None:
    """Every entry within `rtol` of the larger of 1 and the tensor's largest entry."""
    close(found, expected, rtol * max(1.0, expected.abs().max().item()), what)
