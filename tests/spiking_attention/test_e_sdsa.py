"""E-SDSA of the base and of the large models: orders, layouts, buffers, folding, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeloom.spiking_attention import ESDSA, ESDSALarge, IntegerMLP
from spikeloom.spiking_attention.e_sdsa import cheaper
from spikeloom.spiking_attention.integer import integer_neuron
from spikeloom.synapses import NormNeuron


def maps(T: int = 1, B: int = 3, C: int = 16, H: int = 4, W: int = 5, seed: int = 0) -> Tensor:
    """Membranes `[T, B, C, H, W]` that fire from 0 to 4 times."""
    return 1 + 2 * torch.randn(T, B, C, H, W, generator=torch.Generator().manual_seed(seed))


def build(kind: type[nn.Module], *sizes: int, **options: Any) -> nn.Module:
    """A module whose neurons fire often enough for the attention to fire."""
    torch.manual_seed(0)
    module = kind(*sizes, **options)
    for part in module.modules():
        if isinstance(part, NormNeuron):
            nn.init.constant_(part.bias, 1.5)
    return module


def settled(module: nn.Module, x: Tensor) -> nn.Module:
    """In evaluation, with this batch's statistics as the running ones, so that neurons fire."""
    norms = [part for part in module.modules() if isinstance(part, NormNeuron | nn.BatchNorm2d)]
    for part in norms:
        part.momentum = 1.0
    module.train()(x)
    for part in norms:
        part.momentum = 0.1
    return module.eval()


def test_the_neuron_forgets_and_its_spikes_are_quarters() -> None:
    x = torch.tensor([[-1.0, 0.4, 0.5, 1.5, 2.4, 9.0]])
    expected = [[0.0, 0.0, 0.0, 0.5, 0.5, 1.0]]
    assert integer_neuron()(x).tolist() == expected
    assert integer_neuron()(x.expand(3, -1)).tolist() == expected * 3
    assert integer_neuron(rounding="half_up")(x).tolist() == [[0.0, 0.0, 0.25, 0.5, 0.5, 1.0]]
    assert integer_neuron(norm=1.0)(x).tolist() == [[0.0, 0.0, 0.0, 2.0, 2.0, 4.0]]


def test_integer_spikes_are_four_binary_steps_of_a_folded_convolution() -> None:
    spikes = integer_neuron()(maps().double())[0]
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 6, 3, padding=1).double()
    binary = torch.stack([(4 * spikes > step).double() for step in range(4)])  # [4, B, C, H, W], n ones first
    assert binary.unique().tolist() == [0.0, 1.0]
    assert torch.equal(binary.sum(0), 4 * spikes)
    current = sum(nn.functional.conv2d(step, conv.weight / 4, padding=1) for step in binary)
    torch.testing.assert_close(current + conv.bias.view(-1, 1, 1), conv(spikes), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [ESDSA, ESDSALarge])
def test_both_orders_give_the_same_bits(kind: type[nn.Module], dtype: torch.dtype) -> None:
    x = maps().to(dtype)
    found = []
    for order in ("qk_v", "q_kv", "auto"):
        module = build(kind, 16, 2, order=order, layout="TBCHW").to(dtype).train()
        fired: list[Tensor] = []
        module.attn_neuron.register_forward_hook(lambda m, given, spikes, fired=fired: fired.append(spikes))
        found.append((module(x), fired[0]))
    assert found[0][1].unique().numel() > 2
    for out, fired in found[1:]:
        assert torch.equal(out, found[0][0])
        assert torch.equal(fired, found[0][1])


@pytest.mark.parametrize(
    ("sizes", "order"),
    [((196, 6, 24), "q_kv"), ((196, 45, 180), "q_kv"), ((4, 32, 128), "qk_v"), ((33, 32, 32), "q_kv")],
)
def test_the_cheaper_order(sizes: tuple[int, int, int], order: str) -> None:
    N, d, e = sizes
    assert cheaper(N, d, e) == order
    operations = {"qk_v": N * N * d + N * N * e, "q_kv": N * d * e + N * d * e}
    assert order == min(operations, key=lambda name: operations[name])


@pytest.mark.parametrize("kind", [ESDSA, ESDSALarge, IntegerMLP])
def test_layouts_hold_the_same_values(kind: type[nn.Module]) -> None:
    x = maps().double()
    given = {"TBCHW": x, "TBCN": x.flatten(3), "TBNC": x.flatten(3).transpose(2, 3)}
    found = {name: build(kind, 16, 2, layout=name).double()(value) for name, value in given.items()}
    assert {name: value.shape for name, value in found.items()} == {name: x.shape for name, x in given.items()}
    torch.testing.assert_close(found["TBCHW"].flatten(3), found["TBCN"])
    torch.testing.assert_close(found["TBCN"].transpose(2, 3), found["TBNC"])


@pytest.mark.parametrize("kind", [ESDSA, ESDSALarge, IntegerMLP])
def test_in_evaluation_every_sample_and_step_is_alone(kind: type[nn.Module]) -> None:
    x = maps(T=2).double()
    module = settled(build(kind, 16, 4, layout="TBCHW").double(), x)
    out = module(x)
    assert out.std() > 0.1
    alone = torch.cat([torch.cat([module(x[t : t + 1, b : b + 1]) for b in range(3)], 1) for t in range(2)])
    torch.testing.assert_close(out, alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["q", "v"])
def test_running_statistics_follow_their_definition(name: str) -> None:
    module = build(ESDSA, 16, 4).double().train()
    rows: list[Tensor] = []
    parts = {name: module.get_submodule(f"{name}.fire"), "proj": module.get_submodule("proj.norm")}
    for part in (name, "proj"):
        module.get_submodule(f"{part}.synapse").register_forward_hook(lambda m, given, out: rows.append(out))
    for norm in parts.values():
        norm.running_mean.uniform_()
        norm.running_var.uniform_()
    before = {part: (norm.running_mean.clone(), norm.running_var.clone()) for part, norm in parts.items()}
    module(maps(T=2).double())
    for (part, norm), seen in zip(parts.items(), rows, strict=True):
        flat = seen.flatten(0, 2)  # [T B N, C]: one update over all of them, with the unbiased variance
        mean, var = before[part]
        torch.testing.assert_close(norm.running_mean, 0.9 * mean + 0.1 * flat.mean(0))
        torch.testing.assert_close(norm.running_var, 0.9 * var + 0.1 * flat.var(0, unbiased=True))
        assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("name", ["q", "proj"])
def test_a_stack_of_the_large_attention_is_one_map_in_evaluation(name: str) -> None:
    x = maps().double()
    module = settled(build(ESDSALarge, 16, 4, layout="TBCHW").double(), x)
    stack = module.get_submodule(name)
    for norm in (stack.wide.norm, stack.narrow.norm):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias)
    spikes = integer_neuron()(x).flatten(3).transpose(2, 3)
    weight, bias = stack.folded()
    assert weight.shape == (16, 16)
    folded = spikes @ weight.T + bias
    expected = integer_neuron(rounding="half_up")(folded) if name == "q" else folded
    torch.testing.assert_close(stack(spikes), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("kind", "sizes", "options", "message"),
    [
        (ESDSA, (16, 3), {}, "ESDSA got dim=16 and num_heads=3"),
        (ESDSA, (16, 4), {"ratio": 0}, "ESDSA got ratio=0; expected a whole number >= 1"),
        (ESDSA, (16, 4), {"order": "kv"}, "ESDSA got order='kv'; expected 'auto', 'qk_v', 'q_kv'"),
        (ESDSALarge, (16, 4), {"order": "kv"}, "ESDSALarge got order='kv'"),
        (ESDSALarge, (15, 5), {}, "ESDSALarge got dim=15; expected an even number"),
        (ESDSA, (16, 4), {"layout": "BCHW"}, "ESDSA got layout='BCHW'"),
        (IntegerMLP, (16, 4), {"layout": "BCHW"}, "IntegerMLP got layout='BCHW'"),
    ],
)
def test_impossible_sizes_are_refused(
    kind: type[nn.Module], sizes: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(*sizes, **options)


@pytest.mark.parametrize("kind", [ESDSA, IntegerMLP])
def test_wrong_input_is_refused(kind: type[nn.Module]) -> None:
    module = kind(16, 4)
    with pytest.raises(ValueError, match=rf"{kind.__name__} got .* \[3, 16, 4, 5\]; expected \[T, B, C=16, H, W\]"):
        module(maps()[0])
    with pytest.raises(ValueError, match=r"expected .*C=16"):
        module(maps(C=8))
