"""The registry of models."""

import pytest
from torch import nn

from spikeloom.models import create_model, is_model, list_models, model_config, register, registry


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry with three models of one layer; the real one is back after the test."""
    monkeypatch.setattr(registry, "_MODELS", {})

    def build(**overrides: int) -> nn.Module:
        return nn.Linear(2, overrides.get("num_classes", 3))

    for name in ("maxformer_10_384", "maxformer_10_512", "spikformer_4_384"):
        build.__name__ = name
        register(build)


@pytest.mark.usefixtures("names")
def test_models_are_listed_by_pattern() -> None:
    assert list_models() == ["maxformer_10_384", "maxformer_10_512", "spikformer_4_384"]
    assert list_models("max*") == ["maxformer_10_384", "maxformer_10_512"]
    assert list_models("resnet*") == []
    assert is_model("spikformer_4_384")
    assert not is_model("spikformer")


@pytest.mark.usefixtures("names")
def test_overrides_reach_the_model() -> None:
    model = create_model("spikformer_4_384", num_classes=7)
    assert isinstance(model, nn.Linear)
    assert model.out_features == 7


@pytest.mark.usefixtures("names")
def test_an_unknown_name_gives_the_three_nearest() -> None:
    with pytest.raises(ValueError, match=r"no model 'maxformer_512' \(nearest: (\w+, ){2}\w+\)") as raised:
        create_model("maxformer_512")
    assert "nearest: maxformer_10_512, maxformer_10_384, " in str(raised.value)


@pytest.mark.usefixtures("names")
def test_a_duplicate_name_is_an_error() -> None:
    def spikformer_4_384() -> nn.Module:
        return nn.Identity()

    with pytest.raises(ValueError, match=r"'spikformer_4_384' .* is already registered"):
        register(spikformer_4_384)


def test_a_module_without_config_is_no_model_of_the_registry() -> None:
    with pytest.raises(TypeError, match="Linear has no `config` dataclass"):
        model_config(nn.Linear(2, 2))
