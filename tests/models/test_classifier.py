"""The read-out of all models: what a fresh one is like, and inputs of the wrong type."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spikeloom.models import create_model

TINY: dict[str, dict[str, Any]] = {
    "conv_snn_tiny": {},
    "spikformer_small": {"embed_dim": 16, "num_heads": 2},
    "qkformer_cifar": {"embed_dim": 32},
    "sdt_cifar_2_256": {"embed_dim": 32, "depth": 1},
    "sdt_v3_t": {"embed_dims": (8, 16, 24, 32), "depths": (0, 0, 0, 0, 1), "num_heads": 4},
    "spikformer_v2_8_384": {"embed_dim": 16, "num_heads": 2, "depth": 1},
}


def build(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return create_model(name, **{**TINY[name], **options})


@pytest.mark.parametrize("name", TINY)
def test_a_fresh_classifier_is_of_the_type_and_device_of_the_model(name: str) -> None:
    model = build(name).double().eval()
    model.reset_classifier(3)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert not model.head.training
    size = model.config.input_size
    if max(size) < 100:  # the larger ones are slow here
        x = torch.rand(getattr(model.config, "T", 2), 1, model.config.in_channels, *size, dtype=torch.float64)
        assert model(x).dtype == torch.float64
    model = build(name).to("meta")
    model.reset_classifier(3)
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize("classes", [-1, 2.0, True, "3", None], ids=str)
@pytest.mark.parametrize("name", ["conv_snn_tiny", "spikformer_small"])
def test_an_impossible_number_of_classes_changes_nothing(name: str, classes: Any) -> None:
    model = build(name, num_classes=5)
    head = model.head
    with pytest.raises(ValueError, match=r"num_classes is .*; expected a whole number >= 0 \(0: no classifier\)"):
        model.reset_classifier(classes)
    assert model.head is head
    assert model.num_classes == 5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("name", ["conv_snn_tiny", "spikformer_small"])
def test_whole_numbers_are_refused_by_name(name: str, dtype: torch.dtype) -> None:
    model = build(name)
    x = torch.ones(getattr(model.config, "T", 2), 1, model.config.in_channels, *model.config.input_size, dtype=dtype)
    with pytest.raises(ValueError, match=rf"got an input of {dtype}; expected floating point: x.float\(\)"):
        model(x)
