"""Every registered model: shapes, gradients, state dict, determinism."""

from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom.models import ConvSNN, ConvSNNConfig, create_model, list_models, model_config

T, B = 3, 2


def frames(seed: int = 0) -> Tensor:
    """Event frames `[T, B, 2, 34, 34]` of zeros and ones."""
    return (torch.rand(T, B, 2, 34, 34, generator=torch.Generator().manual_seed(seed)) < 0.2).float()


def build(name: str, **overrides: Any) -> Any:
    torch.manual_seed(0)
    return create_model(name, **overrides)


@pytest.fixture(params=list_models("conv_snn*"))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_shapes_and_classifier(name: str) -> None:
    model = build(name, num_classes=7)
    assert model(frames()).shape == (T, B, 7)
    features = model.forward_features(frames())
    assert features.shape == (T, B, model.num_features)
    model.reset_classifier(3)
    assert model.num_classes == 3
    assert model(frames()).shape == (T, B, 3)
    headless = build(name, num_classes=0).eval()
    assert torch.equal(headless(frames()), headless.forward_features(frames()))


def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = build(name)
    model(frames()).square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key
        assert bool(parameter.grad.any()), key


def test_the_configuration_builds_it_again(name: str) -> None:
    model = build(name, num_classes=4, dropout=0.5).eval()
    again = create_model(name, **model_config(model))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(frames()), model(frames()))


def test_same_seed_same_numbers_and_no_memory_between_calls(name: str) -> None:
    model = build(name).eval()
    first = model(frames())
    model(frames(1))
    assert torch.equal(model(frames()), first)
    assert torch.equal(build(name).eval()(frames()), first)


def test_samples_do_not_influence_each_other_in_evaluation(name: str) -> None:
    model = build(name).double().eval()
    x = frames().double()
    alone = torch.cat([model(x[:, i : i + 1]) for i in range(B)], dim=1)
    # float64: a convolution of another batch size may add in another order
    torch.testing.assert_close(model(x), alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("shape", "stages"), [((34, 34), (9, 9)), ((33, 20), (9, 5))])
def test_feature_size_is_that_of_the_stages(shape: tuple[int, int], stages: tuple[int, int]) -> None:
    config = ConvSNNConfig(input_size=shape, widths=(4, 4), kernels=(5, 3), strides=(2, 2), pools=(1, 1))
    assert config.feature_size() == stages
    assert ConvSNN(config).stages(torch.zeros(1, 1, 2, *shape)).shape == (1, 1, 4, *stages)


def test_pooling_stages() -> None:
    config = ConvSNNConfig(widths=(4, 8), kernels=(3, 3), strides=(1, 2), pools=(2, 3))
    model = ConvSNN(config)
    assert config.feature_size() == (3, 3)
    assert model(frames()).shape == (T, B, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (4, 8)}, "one entry per stage"),
        ({"kernels": (5, 3, 4)}, "odd sizes"),
        ({"strides": (2, 2, 0)}, "must be >= 1"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"input_size": (4, 4), "pools": (1, 1, 2)}, "nothing is left"),
    ],
)
def test_impossible_configurations_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("conv_snn_small", **options)


def test_wrong_frames_are_refused() -> None:
    model = create_model("conv_snn_tiny")
    with pytest.raises(ValueError, match=r"ConvSNN got an input of shape \[2, 2, 34, 34\]; expected \[T, B, C, H, W\]"):
        model(torch.zeros(2, 2, 34, 34))
    with pytest.raises(ValueError, match=r"frames of shape \[2, 32, 32\]; it was built for \[2, 34, 34\]"):
        model(torch.zeros(T, B, 2, 32, 32))


def test_compiles_without_graph_break(name: str) -> None:
    model = build(name).eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(frames()), model(frames()))
