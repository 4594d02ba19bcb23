"""Golden SpikMamba: the networks of the public code, through `from_official`."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from spikeloom_tests.golden.mamba.networks import compare, variants_of_networks
from spikeloom_tests.golden.stored import Stored, read
from torch import Tensor

from spikeloom import Stream
from spikeloom.models import from_official
from spikeloom.models.fixed_frames import frames_of_clip
from spikeloom.models.spikmamba_official import rename

ARGUMENTS = (
    *("variant", "T", "img_size", "patch_size", "embed_dims", "num_heads", "mlla_depth", "mamba_depth"),
    *("num_classes", "drop_rate", "drop_path_rate"),
)


def variants(path: Path) -> list[str]:
    """As of every network, and what becomes of entries that no forward reads."""
    return [*variants_of_networks(), "entries"]


def check(path: Path, variant: str) -> None:
    """Compare a file in one way."""
    file = read(path)
    if variant == "entries":
        check_entries(file)
        return
    model = built(file, file.part("state."))
    stream = Stream(model)  # keeps the membranes from call to call, as the code does
    again = "out.logits_second_call_without_reset" in file.tensors

    def call(x: Tensor) -> Tensor:
        logits: Tensor = (stream if again else model)(frames_of_clip(x))
        return logits.mean(0)

    compare(
        file,
        model,
        call,
        place=rename,
        neuron=lambda name: name.removeprefix("layers.0."),
        variant=variant,
    )


def built(file: Stored, state: dict[str, Tensor]) -> Any:
    """Our model of a file's configuration, with a state dict, in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return from_official("spikmamba", {name: file.config[name] for name in ARGUMENTS}, state)
    finally:
        torch.set_default_dtype(before)


def check_entries(file: Stored) -> None:
    """Entries that the code never reads are left out with a warning; one that is read must be there."""
    state = file.part("state.")
    dead = {name: torch.zeros(shape) for name, shape in json.loads(file.meta["dead_keys"]).items()}
    with pytest.warns(UserWarning, match=rf"^{len(dead)} entries that the official spikmamba code never reads"):
        model = built(file, {f"module.{name}": value for name, value in {**state, **dead}.items()})
    own = model.state_dict()
    for name, value in state.items():
        assert torch.equal(own[rename(name)].to(value.dtype), value), name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("patch_embed.proj_bn.bias", list(file.part("state.layers."))[-1], "head.bias"):
            name = name if name in state else f"layers.{name}"
            with pytest.raises(ValueError, match=rf"1 entries missing: {re.escape(name)}"):
                built(file, {key: value for key, value in state.items() if key != name})
