"""Delay networks: sizes, starting values, read-outs, schedules, rounding, streams, energy, official checkpoints."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom import Stream
from spikeloom.energy import count
from spikeloom.models import (
    DelaySchedule,
    DelaySNN,
    DelaySNNConfig,
    create_model,
    from_official,
    list_models,
    load_model,
    model_config,
    parameter_groups,
    save_model,
)
from spikeloom.models.delay_official import official_state
from spikeloom.models.delay_readout import accuracy, delay_loss, read_out
from spikeloom.models.sizes import size_of
from spikeloom.synapses import NormNeuron

T, B, K = 9, 3, 7
SIZES: dict[str, Any] = {"in_features": 12, "hidden": 10, "num_classes": 5, "max_delay": K, "tau": 1.5}
KINDS: dict[str, dict[str, Any]] = {
    "learned": {},
    "3L2KC": {"depth": 3, "kernel_count": 2},
    "fixed": {"delays": "fixed"},
    "none": {"delays": "none"},
    "plif_filter": {"neuron": "plif", "filter_tau": 1.6, "learn_filter": True},
    "fixed_filter": {"filter_tau": 2.0},
    "heaviside": {"neuron": "heaviside"},
    "bias": {"batch_norm": False, "bias": True},
    "spike_count": {"readout": "spike_count", "output_threshold": 0.2},
    "v1": {"version": "v1"},
    "sparse": {"sparsity": 0.5},
}


def build(kind: str, **more: Any) -> DelaySNN:
    """A small network whose neurons fire."""
    torch.manual_seed(0)
    model = DelaySNN(DelaySNNConfig(**{**SIZES, **KINDS[kind], **more}))
    for module in model.modules():
        if isinstance(module, NormNeuron):
            torch.nn.init.constant_(module.bias, 0.5)
    return model.double()


def counts(T: int = T) -> Tensor:
    return torch.poisson(torch.full((T, B, 12), 0.4, dtype=torch.float64), torch.Generator().manual_seed(1))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("name", "overrides", "trainable", "everything"),
    [
        ("delays_shd_2l_1kc", {}, 214_016, 320_512),
        ("delays_ssc_2l_1kc", {}, 705_536, 1_057_280),
        ("delays_ssc_2l_2kc", {}, 1_409_024, 2_112_512),
        ("delays_ssc_3l_1kc", {}, 1_230_848, 1_844_736),
        ("delays_ssc_3l_2kc", {}, 2_458_624, 3_686_400),
        ("delays_shd_2l_1kc", {"delays": "fixed"}, 107_520, 320_512),
        ("delays_ssc_2l_1kc", {"delays": "fixed"}, 353_792, 1_057_280),
        ("delays_ssc_3l_1kc", {"delays": "fixed"}, 616_960, 1_844_736),
        ("delays_ssc_3l_1kc", {"delays": "none"}, 616_960, 616_960),
    ],
)
def test_published_sizes(name: str, overrides: dict[str, Any], trainable: int, everything: int) -> None:
    with torch.device("meta"):
        model = create_model(name, **overrides)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
    assert sum(p.numel() for p in model.parameters()) == everything
    if not overrides:
        assert size_of(name).parameters == everything
        assert size_of(name).shape == (140,)


def test_every_variant_is_tested_and_runs() -> None:
    for name in list_models("delays_*"):
        model: Any = create_model(name, hidden=8).eval()
        grown = (model.config.depth + 1) * (model.config.max_delay // 2)
        assert model(torch.rand(4, 2, 140)).shape == (4 + grown, 2, model.num_classes)


def test_shapes_tails_and_output_layer(kind: str) -> None:
    model = build(kind).eval()
    step = 0 if kind == "none" else K // 2
    layers = len(model.blocks) + 1
    y = model(counts())
    assert y.shape == (T + layers * step, B, 5)
    assert y.any()
    torch.testing.assert_close(model(counts(), tail=False), y[:T])
    torch.testing.assert_close(model.forward_head(model.forward_features(counts())), y)
    model.reset_classifier(3)
    assert model(counts()).shape[2] == model.num_classes == 3
    assert model.head.synapse.weight.dtype == torch.float64
    model.reset_classifier(0)
    assert torch.equal(model(counts()), model.forward_features(counts()))


def test_gradients_reach_every_trained_parameter(kind: str) -> None:
    model = build(kind).train()
    model(counts()).square().sum().backward()
    for key, value in model.named_parameters():
        if value.requires_grad:
            assert value.grad is not None, key
            assert bool(value.grad.any()), key
            assert bool(value.grad.isfinite().all()), key
        else:
            assert key.endswith(("SIG", ".P")), key
            assert value.grad is None, key


def test_streams_in_any_chunks_and_files(kind: str, tmp_path: Path) -> None:
    model, x = build(kind).eval(), counts()
    with torch.no_grad():
        for sizes in ([T], [1] * T, [2, 6, 1]):
            stream, chunks = Stream(model), x.split(sizes)
            y = torch.cat([*(stream(chunk) for chunk in chunks[:-1]), stream(chunks[-1], tail=True)])
            torch.testing.assert_close(y, model(x), rtol=1e-11, atol=1e-12)
    save_model(model, tmp_path / "saved")
    again: Any = load_model(tmp_path / "saved")
    assert torch.equal(again.double()(x), model(x))
    twin: Any = create_model("delays_shd_2l_1kc", **model_config(model))
    assert twin.config == model.config


def test_rounding_and_back(kind: str) -> None:
    model, x = build(kind).train(), counts()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with model.rounded(), torch.no_grad():
        assert not model.training
        assert all(torch.equal(layer.P, layer.P.round()) for layer in model.delayed())
        inside = model(x)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.config == build(kind).config
    model.round_()
    with torch.no_grad():
        assert torch.equal(model.eval()(x), inside)
    again: Any = create_model("delays_shd_2l_1kc", **model_config(model))  # the configuration knows that it is rounded
    again.double().load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x), inside)


def test_energy_counts_every_operation(kind: str) -> None:
    model = build(kind).eval()
    with torch.no_grad(), count(model, strict=True) as run:
        y = model(counts(), tail=False)
    found = run.counts()
    assert not found.uncounted
    assert [layer.op for layer in found.layers] == ["linear" if kind == "none" else "delay_linear"] * len(
        model.synapses()
    )
    assert all(layer.assigned for layer in found.layers)
    assert y.shape == (T, B, 5)


def test_starting_values() -> None:
    """Published: positions from -(K // 2) - 1, so that 1 / K of them starts at the longest delay."""
    torch.manual_seed(0)
    model: Any = create_model("delays_shd_2l_1kc")
    P = torch.cat([layer.P.detach().flatten() for layer in model.delayed()])
    assert (P == -12).double().mean().item() == pytest.approx(1 / 25, rel=0.05)
    assert P.max() <= 12
    for layer in model.delayed():
        assert layer.weight.abs().max().item() == pytest.approx(math.sqrt(6 / layer.in_channels), rel=1e-2)
        assert bool((layer.SIG == 12).all())
        assert not layer.SIG.requires_grad
    torch.manual_seed(5)
    model.reset_parameters()
    first = model.state_dict()["blocks.0.synapse.weight"].clone()
    torch.manual_seed(5)
    model.reset_parameters()
    assert torch.equal(first, model.state_dict()["blocks.0.synapse.weight"])


def test_after_a_step_positions_are_inside_and_absent_synapses_absent() -> None:
    model = build("sparse").train()
    masks = [layer.mask.clone() for layer in model.synapses()]
    assert 0.3 < torch.cat([mask.flatten() for mask in masks]).double().mean().item() < 0.7
    optimizer = torch.optim.Adam(parameter_groups(model, lr=0.5))
    delay_loss(model(counts()), torch.tensor([0, 1, 2])).backward()
    optimizer.step()
    model.settle_()
    for layer, mask in zip(model.synapses(), masks, strict=True):
        assert not layer.weight[~mask].any()
    assert all(bool((layer.P.abs() <= K // 2).all()) for layer in model.delayed())
    loaded = build("sparse")
    loaded.reset_parameters()
    loaded.load_state_dict(model.state_dict())
    loaded.settle_()
    assert torch.equal(loaded.blocks[0].synapse.weight, model.blocks[0].synapse.weight)


def test_parameter_groups() -> None:
    groups = parameter_groups(build("plif_filter"), lr=1e-3)
    assert [group["name"] for group in groups] == ["weights", "time constants", "norms and biases", "positions"]
    assert [len(group["params"]) for group in groups] == [3, 3, 4, 3]
    assert [group["lr"] for group in groups] == [1e-3, 1e-3, 1e-3, 0.1]
    assert [group["weight_decay"] for group in groups] == [1e-5, 1e-5, 0.0, 0.0]
    with_filters = parameter_groups(build("plif_filter"), train_filters=True)
    assert [len(group["params"]) for group in with_filters] == [3, 5, 4, 3]
    assert [group["name"] for group in parameter_groups(build("fixed"))] == ["weights", "norms and biases"]


def test_schedules_are_those_of_torch() -> None:
    model = build("learned")
    optimizer, positions = (torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.1) for _ in range(2))
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=20)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(positions, 20)
    schedule = DelaySchedule(20, sigma=3.0)
    ours = torch.optim.Adam(parameter_groups(model))
    for epoch in range(20):
        values = schedule.apply(epoch, model, ours)
        assert values.lr == pytest.approx(one_cycle.get_last_lr()[0], rel=1e-9)
        assert values.position_lr == pytest.approx(cosine.get_last_lr()[0], rel=1e-9)
        assert values.beta1 == pytest.approx(optimizer.param_groups[0]["betas"][0], rel=1e-9)
        assert ours.param_groups[0]["lr"] == values.lr
        assert ours.param_groups[-1]["lr"] == values.position_lr
        assert values.sigma == pytest.approx(3.0 * (0.23 / 3.0) ** (min(epoch, 5) / 5))
        assert model.delayed()[0].SIG.unique().item() == values.sigma
        for part in (optimizer, positions, one_cycle, cosine):
            part.step()
    with pytest.raises(ValueError, match="from 0 to 19"):
        schedule.at(20)


def test_read_outs_by_hand() -> None:
    y = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]], [[9.0, 0.0]]])
    share = torch.tensor([[1.0, 0.0], [0.0, 3.0], [9.0, 0.0]]).softmax(1)
    torch.testing.assert_close(read_out(y, "sum")[0], share.sum(0))
    torch.testing.assert_close(read_out(y, "mean")[0], torch.tensor([10 / 3, 1.0]))
    assert read_out(y, "max")[0].tolist() == [9, 3]
    assert read_out(y, "spike_count")[0].tolist() == [10, 3]
    two = torch.tensor([2])
    torch.testing.assert_close(read_out(y, "nll", two)[0], share[:2].mean(0))
    assert read_out(y, "max", two)[0].tolist() == [1, 3]
    label = torch.tensor([1])
    torch.testing.assert_close(delay_loss(y, label, "nll", two), -share[:2, 1].mean().log())
    for kind in ("sum", "mean", "max", "spike_count", "nll"):
        hot = torch.tensor([[0.0, 1.0]])
        torch.testing.assert_close(delay_loss(y, label, kind), delay_loss(y, hot, kind))
    assert accuracy(y, label, "sum").item() == 0
    with pytest.raises(ValueError, match="expected one of sum, mean"):
        read_out(y, "last")
    with pytest.raises(ValueError, match="1 whole numbers from 1 to 3"):
        read_out(y, "sum", torch.tensor([4]))
    with pytest.raises(ValueError, match=r"\[T, B, K\]"):
        read_out(y[0])


OFFICIAL: dict[str, Any] = {"max_delay": K, "init_tau": 1.5, "dropout_p": 0.4, "sigInit": 3}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("learned", {}),
        ("3L2KC", {}),
        ("none", {}),
        ("fixed", {"model_type": "snn_delays_lr0"}),
        ("bias", {"use_batchnorm": False, "bias": True}),
        ("heaviside", {"spiking_neuron_type": "heaviside"}),
        ("spike_count", {"loss": "spike_count", "output_v_threshold": 0.2}),
        ("sparse", {"sparsity_p": 0.5}),
        (
            "plif_filter",
            {
                "spiking_neuron_type": "plif",
                "stateful_synapse": True,
                "stateful_synapse_tau": 1.6,
                "stateful_synapse_learnable": True,
            },
        ),
    ],
)
def test_official_checkpoints_there_and_back(kind: str, more: dict[str, Any]) -> None:
    model = build(kind).float().eval()
    state = official_state(model)
    assert all(re.fullmatch(r"model\.\d+\.\w+", key) for key in state)
    theirs = from_official("dcls_delays", {**OFFICIAL, **more}, {"state_dict": state}).eval()
    x = counts().float()
    assert torch.equal(theirs(x), model(x))
    again = official_state(theirs)  # type: ignore[arg-type]
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items())


def test_checkpoints_that_do_not_fit_are_explained() -> None:
    state = official_state(build("learned").float())
    with pytest.raises(ValueError, match=r"no max_delay"):
        from_official("dcls_delays", {"init_tau": 1.5}, state)
    with pytest.raises(ValueError, match=r"max_delays"):
        from_official("dcls_delays", {**OFFICIAL, "max_delays": 7}, state)
    with pytest.raises(ValueError, match=r"1 entries missing: model.4.P"):
        from_official("dcls_delays", OFFICIAL, {key: v for key, v in state.items() if key != "model.4.P"})
    with pytest.raises(ValueError, match=r"1 entries too many: model.9.w"):
        from_official("dcls_delays", OFFICIAL, {**state, "model.9.w": torch.zeros(())})
    with pytest.raises(ValueError, match=r"other shapes: model.0.weight \[10, 12, 1\] for \[11, 12, 1\]"):
        from_official("dcls_delays", {**OFFICIAL, "n_hidden_neurons": 11}, state)
    with pytest.raises(ValueError, match="model_type is 'ann'"):
        from_official("dcls_delays", {**OFFICIAL, "model_type": "ann"}, state)
    with pytest.raises(ValueError, match="right_padding=2"):
        from_official("dcls_delays", {**OFFICIAL, "right_padding": 2}, state)
    with pytest.raises(ValueError, match="0 weights of synapses"):
        from_official("dcls_delays", OFFICIAL, {"fc.bias": torch.zeros(2)})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_delay": 8}, "expected an odd number of taps.*9 holds delays of 0 to 8"),
        ({"depth": 0}, "depth is 0"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"neuron": "heaviside", "readout": "spike_count"}, "no output neuron"),
        ({"delays": "random"}, "delays is 'random'"),
        ({"neuron": "plif", "tau": 1.0}, "expected > 1|must be > 1"),
    ],
)
def test_impossible_networks_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        create_model("delays_shd_2l_1kc", **given)


def test_wrong_inputs_are_explained() -> None:
    model = build("learned")
    with pytest.raises(ValueError, match=r"expected \[T, B, 12\], time first"):
        model(torch.zeros(3, 12, 9))
    with pytest.raises(ValueError, match="One time step"):
        model(torch.zeros(3, 12))
    with pytest.raises(ValueError, match="floating point"):
        model(torch.zeros(4, 3, 12, dtype=torch.uint8))
    with pytest.raises(ValueError, match="num_classes is -2"):
        model.reset_classifier(-2)


def test_zeros_behind_the_input_stand_for_tails() -> None:
    model = create_model("delays_shd_2l_1kc", in_features=6, hidden=8, num_classes=3, max_delay=5).eval()
    x = torch.rand(9, 4, 6)
    with torch.no_grad():
        expected = model(x)
        with model.whole_sequence() as steps:
            made = model(torch.cat([x, x.new_zeros(steps, 4, 6)]))
        assert steps == len(expected) - len(x) == 6
        torch.testing.assert_close(made, expected)
        torch.testing.assert_close(model(x), expected)
