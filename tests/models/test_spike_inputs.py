"""What models declare to be spikes is zeros and ones: every layer that reads its input as bits looks at it."""

from __future__ import annotations

import pytest
import torch
from spikeloom_tests.models.test_all_models import build, cases, image
from torch import Tensor, nn

from spikeloom.kernels.bits import check_spikes
from spikeloom.models import create_model, list_models
from spikeloom.models.registry import describe
from spikeloom.spiking_attention import products
from spikeloom.synapses import SpikeConv2d, SpikeLinear

NO_BITS = ("SDTV3", "SpikMamba", "SpikMambaOfficial")
"""Classes whose neurons fire integers, or whose spikes meet real numbers before the next weights."""


def watched(net: nn.Module) -> int:
    """Every such layer of the network looks; how many there are."""
    layers = [m for m in net.modules() if isinstance(m, SpikeConv2d | SpikeLinear)]
    for layer in layers:
        layer.check = True
    return len(layers)


@pytest.fixture
def operands(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mix`, which keeps Q, K and V as bits, looks too."""
    split = products.split_heads

    def checked(x: Tensor, num_heads: int) -> Tensor:
        check_spikes(x, "mix")
        return split(x, num_heads)

    monkeypatch.setattr(products, "split_heads", checked)


@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
def test_classifiers(name: str, train: bool, operands: None) -> None:
    model = build(name).train(train)
    assert bool(watched(model)) != (describe(name).kind.__name__ in NO_BITS)
    x = image(model)
    with torch.no_grad():
        features = model.forward_features(x.expand(model.config.T, *x.shape))
    assert features.any()
    if train:
        assert model(x).isfinite().all()


def kinds(names: list[str]) -> dict[str, str]:
    """Name of a class -> one model of it."""
    return {describe(name).kind.__name__: name for name in names}


@pytest.mark.parametrize("kind", sorted(kinds(list_models()).keys() - kinds(cases()).keys()))
def test_the_other_classes_read_no_bits(kind: str) -> None:
    with torch.device("meta"):
        model = create_model(kinds(list_models())[kind])
    assert not watched(model)
