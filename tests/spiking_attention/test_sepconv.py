"""Convolutional parts of Spike-driven Transformer V3: separable convolution, its block, and RepConv attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeloom.spiking_attention import ConvBlock, SDSARepConv, SepConv
from spikeloom.spiking_attention.sdsa_repconv import NormPad, RepConv
from spikeloom.synapses import NormNeuron


def maps(T: int = 1, B: int = 2, C: int = 8, H: int = 5, W: int = 7) -> Tensor:
    """Membranes `[T, B, C, H, W]`."""
    return 1 + 2 * torch.randn(T, B, C, H, W, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def build(kind: type[nn.Module], *sizes: int, **options: Any) -> nn.Module:
    """In float64, normalisations with weights and running statistics away from their first values."""
    torch.manual_seed(0)
    module = kind(*sizes, **options).double()
    for part in module.modules():
        if isinstance(part, NormNeuron | nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias)
            part.running_mean.uniform_(-0.2, 0.2)
            part.running_var.uniform_(0.02, 0.1)
    return module


CASES = [
    (SepConv, (8,), {}),
    (SepConv, (8,), {"kernel": 3}),
    (ConvBlock, (8,), {"ratio": 2}),
    (SDSARepConv, (8, 2), {}),
]


@pytest.mark.parametrize(("kind", "sizes", "options"), CASES, ids=["sepconv", "sepconv-3", "convblock", "repconv"])
def test_samples_and_steps_are_alone_in_evaluation(
    kind: type[nn.Module], sizes: tuple[int, ...], options: dict[str, Any]
) -> None:
    module, x = build(kind, *sizes, **options).eval(), maps(T=3)
    out = module(x)
    assert out.shape == x.shape
    assert out.std() > 0.05
    alone = torch.cat([torch.cat([module(x[t : t + 1, b : b + 1]) for b in range(2)], 1) for t in range(3)])
    torch.testing.assert_close(out, alone, rtol=1e-10, atol=1e-10)


def test_kernels_reach_as_far_as_they_should() -> None:
    for kernel in (3, 7):
        module, x = build(SepConv, 8, kernel=kernel).eval(), torch.zeros(1, 1, 8, 15, 15, dtype=torch.float64)
        silent = module(x)
        x[..., 7, 7] = 4.0
        changed = (module(x) != silent).any(2)[0, 0].nonzero()
        assert changed.min() >= 7 - kernel // 2
        assert changed.max() <= 7 + kernel // 2
        assert len(changed) > 1


def test_block_statistics_follow_their_definition() -> None:
    module = build(ConvBlock, 8, ratio=2).train()
    pairs = [("conv1.synapse", "conv1.fire"), ("conv2.synapse", "conv2.norm"), ("sep.dw.synapse", "sep.dw.fire")]
    seen: dict[str, Tensor] = {}
    for synapse, norm in pairs:
        module.get_submodule(synapse).register_forward_hook(lambda m, a, y, norm=norm: seen.update({norm: y}))
    before = {norm: module.get_submodule(norm).running_var.clone() for _, norm in pairs}
    module(maps(T=2))
    for _, norm in pairs:
        flat = seen[norm].transpose(0, 2).flatten(1)  # [C, B T H W]
        expected = 0.9 * before[norm] + 0.1 * flat.var(1, unbiased=True)
        torch.testing.assert_close(module.get_submodule(norm).running_var, expected)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_padding_is_what_the_running_statistics_make_of_zero(train: bool) -> None:
    module, x = build(NormPad, 8).train(train), maps(T=2)
    before = module.running_mean.clone(), module.running_var.clone()
    y = module(x)
    rows = x.transpose(0, 2).flatten(1)
    mean, var = (rows.mean(1), rows.var(1, unbiased=True)) if train else before
    mean, var = 0.9 * before[0] + 0.1 * mean, 0.9 * before[1] + 0.1 * var  # this step's update is already in
    zero = module.bias - mean * module.weight / (var + 1e-5).sqrt()
    for side in (y[..., 0, :], y[..., -1, :], y[..., :, 0], y[..., :, -1]):
        torch.testing.assert_close(side, zero.view(1, 1, 8, 1).expand_as(side))
    used = rows.mean(1), rows.var(1, unbiased=False)
    inside = nn.functional.batch_norm(
        x.flatten(0, 1), *(used if train else before), module.weight, module.bias, eps=1e-5
    )
    torch.testing.assert_close(y[..., 1:-1, 1:-1].flatten(0, 1), inside)


def test_padding_passes_no_gradient() -> None:
    module, x = build(NormPad, 8).train(), maps().requires_grad_()
    y = module(x)
    border = torch.ones_like(y)
    border[..., 1:-1, 1:-1] = 0
    y.backward(border)
    assert not module.weight.grad.any()
    assert not module.bias.grad.any()
    assert not x.grad.any()


def test_in_evaluation_repconv_is_a_convolution_of_a_map_padded_with_zeros() -> None:
    module, x = build(RepConv, 8).eval(), maps()
    wider = module(nn.functional.pad(x, (2, 2, 2, 2)))
    torch.testing.assert_close(module(x), wider[..., 2:-2, 2:-2], rtol=1e-10, atol=1e-10)


def test_orders_of_repconv_attention_give_the_same_bits() -> None:
    fired: list[Tensor] = []
    outs = []
    for order in ("qk_v", "q_kv"):
        module = build(SDSARepConv, 8, 2, order=order).float().train()
        module.attn_neuron.register_forward_hook(lambda m, given, spikes: fired.append(spikes))
        outs.append(module(maps().float()))
    assert fired[0].unique().numel() > 2
    assert torch.equal(fired[0], fired[1])
    assert torch.equal(outs[0], outs[1])


@pytest.mark.parametrize(
    ("kind", "sizes", "options", "message"),
    [
        (SepConv, (8,), {"kernel": 4}, "SepConv got kernel=4; expected an odd size"),
        (SepConv, (8,), {"ratio": 0}, "SepConv got ratio=0"),
        (SDSARepConv, (8, 3), {}, "SDSARepConv got dim=8 and num_heads=3"),
        (SDSARepConv, (8, 2), {"order": "vk"}, "SDSARepConv got order='vk'"),
    ],
)
def test_impossible_sizes_are_refused(
    kind: type[nn.Module], sizes: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(*sizes, **options)


@pytest.mark.parametrize(
    "module", [SepConv(8), ConvBlock(8, ratio=1), SDSARepConv(8, 2)], ids=lambda m: type(m).__name__
)
def test_wrong_input_is_refused(module: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"got an input of shape \[2, 8, 5, 7\]; expected \[T, B, C=8, H, W\]"):
        module(maps()[0].float())
