"""Every registered classifier, built small: inputs, classifier, gradients, files, streaming, energy, compilation.

Variants of a class that are alike once they are small are one case. A class that is not in TINY fails a test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeloom import Stream
from spikeloom.energy import count
from spikeloom.models import create_model, list_models, load_model, model_config, save_model
from spikeloom.models.classifier import Classifier
from spikeloom.models.config import configure
from spikeloom.models.registry import default_config, describe
from spikeloom.models.sizes import parameters
from spikeloom.synapses import NormNeuron

T, B = 2, 2

TINY: dict[str, Callable[[Any], dict[str, Any]]] = {
    "Spikformer": lambda config: {"embed_dim": 32, "num_heads": 4, "depth": 1, "mlp_ratio": 1.0, "scale": 0.5},
    "SpikformerV2": lambda config: {"embed_dim": 32, "num_heads": 4, "depth": 1, "mlp_ratio": 1.0, "scale": 0.5},
    "QKFormer": lambda config: {
        "embed_dim": 32,
        "num_heads": 2,
        "depths": (1,) * len(config.depths),
        "mlp_ratio": 1.0,
        "scale": 0.5,
    },
    "MaxFormer": lambda config: {
        "embed_dim": 32,
        "num_heads": 2,
        "depths": (1,) * len(config.depths),
        "mlp_ratio": 1.0,
        "scale": 0.5,
    },
    "MaxResNet": lambda config: {
        "stem_width": 8,
        "widths": (8, 16, 16, 16)[-len(config.widths) :],
        "depths": (2,) * len(config.widths),
    },
    "SpikeDrivenTransformer": lambda config: {"embed_dim": 32, "num_heads": 4, "depth": 1, "mlp_ratio": 1.0},
    "SDTV3": lambda config: {"embed_dims": (4, 8, 8, 8), "num_heads": 2, "depths": (1,) * 5, "mlp_ratio": 1.0},
    "SpikMamba": lambda config: {
        "embed_dim": 16,
        "num_heads": 2,
        "depth": 1,
        "mlp_ratio": 1.0,
        "patch_size": 4,
        "input_size": (8, 8),
    },
    "SpikMambaOfficial": lambda config: {
        "embed_dim": 16,
        "num_heads": 2,
        "depth": 1,
        "mamba_depth": min(1, config.mamba_depth),
        "patch_size": 4,
        "input_size": (8, 8),
    },
}
"""Name of a class -> overrides of a variant's configuration that make the model small.

A larger scale lets the attention of a few tokens fire.
"""


def classifiers() -> list[str]:
    """The registered models with the contract of `Classifier`."""
    return [name for name in list_models() if issubclass(describe(name).kind, Classifier)]


def overrides(name: str) -> dict[str, Any]:
    """What makes a registered model small."""
    return {**TINY[describe(name).kind.__name__](default_config(name)), "T": T, "num_classes": 7}


def cases() -> list[str]:
    """One name for all models that are alike once they are small."""
    found: dict[Any, str] = {}
    for name in classifiers():
        kind = describe(name).kind
        if kind.__name__ in TINY:
            small = replace(configure(default_config(name), overrides(name)), input_size=(0, 0))
            found.setdefault((kind, small), name)
    return sorted(found.values())


def image(model: Any, seed: int = 0, rows: int = 2, columns: int = 2) -> Tensor:
    """Grey images `[B, C, H, W]` of so many tokens."""
    size = (B, model.config.in_channels, rows * model.stride, columns * model.stride)
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def build(name: str, **more: Any) -> Any:
    """A small model whose neurons fire: its normalisations have the statistics of an input, and stretch it."""
    torch.manual_seed(0)
    model: Any = create_model(name, **{**overrides(name), **more})
    norms = [m for m in model.modules() if isinstance(m, NormNeuron | nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.constant_(norm.weight, 2.0)
    with torch.no_grad():
        x = image(model)
        model(x.expand(T, *x.shape))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


@pytest.fixture(params=cases())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("kind", sorted({describe(name).kind.__name__ for name in classifiers()}))
def test_every_class_has_a_small_form(kind: str) -> None:
    assert kind in TINY, f"{kind} is registered; add overrides that make it small to TINY of {Path(__file__).name}"


def test_small_forms_are_small(name: str) -> None:
    assert parameters(build(name)) < 150_000


def test_shapes_and_classifier(name: str) -> None:
    model = build(name)
    x = image(model)
    assert model.num_classes == 7
    features = model.forward_features(x)
    assert features.shape == (T, B, model.num_features)
    assert features.any(), "no neuron of the last layer fires, so the tests of this model would show nothing"
    assert model(x).shape == (T, B, 7)
    assert torch.equal(model.forward_head(features), model(x))
    model.reset_classifier(3)
    assert model.num_classes == model.config.num_classes == 3
    assert model(x).shape == (T, B, 3)
    model.reset_classifier(0)
    assert torch.equal(model(x), features)
    assert create_model(name, **{**overrides(name), "num_classes": 0}).num_classes == 0


def test_an_image_is_shown_at_every_step(name: str) -> None:
    model = build(name)
    x = image(model)
    assert torch.equal(model(x), model(x.expand(T, *x.shape)))
    assert torch.equal(model(x), model(x))
    if getattr(model, "fixed_input", False):
        return
    wide = image(model, columns=3)
    assert model(wide).shape == (T, B, 7)
    assert not torch.equal(model(wide), model(wide.flip(-1)))


def test_wrong_inputs_are_explained(name: str) -> None:
    model = build(name)
    x = image(model)
    with pytest.raises(ValueError, match=rf"T=3 steps and was built for T={T}"):
        model(x.expand(3, *x.shape))
    with pytest.raises(ValueError, match=rf"expected images \[B, {x.shape[1]}, H, W\].*in_channels={x.shape[1]}"):
        model(torch.cat([x, x], 1))
    with pytest.raises(ValueError, match=rf"multiples of {model.stride}"):
        model(x[..., :-1])
    with pytest.raises(ValueError, match="expected images"):
        model(x[0])
    if getattr(model, "fixed_input", False):
        with pytest.raises(ValueError, match="and was built for 8 x 8"):
            model(image(model, columns=3))
        return
    with pytest.raises(ValueError, match="built with T=None and got images"):
        create_model(name, **{**overrides(name), "T": None})(x)


def test_impossible_configurations_are_refused(name: str) -> None:
    for wrong in ({"T": 0}, {"in_channels": 0}, {"num_classes": -1}, {"num_heads": 5}):
        with pytest.raises(ValueError, match=str(next(iter(wrong)))):
            create_model(name, **{**overrides(name), **wrong})


def test_backward_reaches_every_parameter(name: str) -> None:
    model = build(name).train()
    x = image(model).requires_grad_()
    model(x).square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key
    # in front of a normalisation with the batch's statistics a bias is taken out again
    silent = [key for key, p in model.named_parameters() if not p.grad.any() and not key.endswith("bias")]
    assert not silent
    assert x.grad is not None
    assert bool(x.grad.any())


def test_shapes_without_values(name: str) -> None:
    """On device `meta`: in training with gradients, and in evaluation, where no loop over time is run."""
    with torch.device("meta"):
        model: Any = create_model(name, **overrides(name))
    x = image(model).to("meta")
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape and p.grad.is_meta for p in model.parameters())
    with torch.no_grad():
        y = model.eval()(x)
    assert y.shape == (T, B, 7)
    assert y.is_meta


def test_files_and_configuration_build_it_again(name: str, tmp_path: Path) -> None:
    model = build(name)
    x = image(model)
    save_model(model, tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    assert not loaded.training
    assert type(loaded) is type(model)
    assert torch.equal(loaded(x), model(x))
    again: Any = create_model(name, **model_config(model))
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x), model(x))


def test_samples_do_not_influence_each_other_in_evaluation(name: str) -> None:
    model = build(name).double()
    if getattr(model, "mixes_samples", False):
        pytest.skip("its published code takes [B T] for time")
    x = image(model).double()
    alone = torch.cat([model(x[i : i + 1]) for i in range(B)], 1)
    # float64: a convolution of another batch size may add in another order
    torch.testing.assert_close(model(x), alone, rtol=1e-10, atol=1e-10)


def test_a_stream_of_chunks_is_one_call(name: str) -> None:
    if getattr(describe(name).kind, "fixed_input", False):
        pytest.skip("its number of steps is fixed")
    model = build(name, T=None).double()
    x = torch.stack([image(model, seed) for seed in range(5)]).double()
    stream = Stream(model)
    with torch.no_grad():
        chunks = torch.cat([stream(chunk) for chunk in x.split([1, 2, 2])])
        torch.testing.assert_close(chunks, model(x), rtol=1e-10, atol=1e-10)


def test_every_operation_is_counted(name: str) -> None:
    model = build(name)
    x = image(model)
    with torch.no_grad(), count(model, strict=True) as run:
        counted = model(x.expand(T, *x.shape))
    found = run.counts()
    assert not found.uncounted
    assert len(found.layers) >= 8
    assert all(layer.assigned for layer in found.layers)
    torch.testing.assert_close(counted, model(x))


def test_the_membrane_stays_float32_under_autocast(name: str) -> None:
    model = build(name)
    stream = Stream(model)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = stream(image(model))
    assert bool(logits.isfinite().all())
    assert {value.dtype for value in stream.state_dict().values()} <= {torch.float32}


@pytest.mark.parametrize("name", ["spikformer_cifar_2_256", "spikformer_v2_8_512"])  # tracing takes seconds
def test_compiles_without_graph_break(name: str) -> None:
    model = build(name)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(image(model)), model(image(model)))
    torch.compiler.reset()
