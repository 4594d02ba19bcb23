"""Classification of texts: padding, the registry, and a body that learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from spikeloom_tests.models.small_spikegpt import B, T, V, text, tiny
from torch import nn

from spikeloom.models import (
    SpikeGPT,
    SpikeGPTClassifier,
    SpikeGPTClassifierConfig,
    SpikeGPTConfig,
    create_model,
    load_model,
    save_model,
)


@torch.no_grad()
def test_a_mean_in_half_precision_is_rounded_once() -> None:
    """bfloat16 has no length like 1028, and not the sum of as many features."""
    model = SpikeGPTClassifier.of(tiny(), 4)
    features = torch.rand(1030, 2, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    lengths = torch.tensor([1028, 517])
    found, exact = model.pooled(features, lengths), model.pooled(features.double(), lengths)
    assert exact.dtype == torch.float64
    assert torch.equal(found, exact.bfloat16())


@pytest.mark.parametrize("pool", ["mean", "last"])
@torch.no_grad()
def test_padding_changes_no_class(pool: Any) -> None:
    model = SpikeGPTClassifier.of(tiny(), 4, pool)
    ids, lengths = text(), torch.tensor([3, T, 7])
    alone = torch.cat([model(ids[:n, b : b + 1]) for b, n in enumerate(lengths.tolist())])
    assert alone.shape == (B, 4)
    torch.testing.assert_close(model(ids, lengths), alone, rtol=0, atol=1e-12)
    padded = torch.cat([ids, torch.ones(5, B, dtype=torch.long)])
    torch.testing.assert_close(model(padded, lengths), alone, rtol=0, atol=1e-12)
    for wrong in (
        torch.tensor([3, T + 1, 7]),
        torch.tensor([0, 1, 2]),
        torch.tensor([3, 4]),
        torch.tensor([1.0, 2.0, 3.0]),
    ):
        with pytest.raises(ValueError, match=r"expected 3 whole numbers, the real tokens of each text, from 1 to 12"):
            model(ids, wrong)


def test_a_classifier_is_registered_saved_and_changed(tmp_path: Path) -> None:
    small = {"vocab_size": V, "embed_dim": 8, "depth": 2, "num_classes": 3}
    model: Any = create_model("spikegpt_classifier_46m", **small).eval()
    save_model(model, tmp_path / "saved")
    again: Any = load_model(tmp_path / "saved")
    assert torch.equal(again(text()), model(text()))
    model.reset_classifier(5)
    assert model(text()).shape == (B, 5)
    model.reset_classifier(0)
    assert torch.equal(model(text()), model.forward_features(text()).mean(0))
    with pytest.raises(ValueError, match="num_classes=-1"):
        SpikeGPTClassifierConfig(num_classes=-1)


def test_a_classifier_learns_to_tell_two_kinds_of_text() -> None:
    torch.manual_seed(0)
    model = SpikeGPTClassifier.of(SpikeGPT(SpikeGPTConfig(vocab_size=V, embed_dim=16, depth=2)), 2).train()
    label = torch.arange(16) % 2
    ids = text(3, texts=16)
    ids = torch.where((label == 1) & (torch.arange(T)[:, None] % 3 == 0), 5, ids)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(30):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(ids, torch.full((16,), T)), label)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.2
    assert torch.equal(model.eval()(ids).argmax(1), label)
