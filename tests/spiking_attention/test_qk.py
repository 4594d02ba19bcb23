"""QK attention: the gate by its words, the logical or, layouts, memory, operations, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeloom.energy import count
from spikeloom.energy.counts import PairCount, SumCount
from spikeloom.neurons import LIF, Stream
from spikeloom.spiking_attention import QKChannelAttention, QKTokenAttention, fires_if_any
from spikeloom.spiking_attention.layout import Layout

T, B, C, HEADS, H, W = 4, 2, 12, 3, 3, 5
MIXERS: list[Any] = [
    pytest.param(lambda layout="TBNC": QKTokenAttention(C, HEADS, layout=layout), id="token"),
    pytest.param(lambda layout="TBNC": QKChannelAttention(C, layout=layout), id="channel"),
]
Build = Callable[..., nn.Module]


def built(build: Build, layout: Layout = "TBNC") -> nn.Module:
    """The same parameters every time, evaluated, with normalisations that let it fire."""
    torch.manual_seed(0)
    module = build(layout).eval()
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(0.02 if name.startswith("proj") else 0.3)
    return module


def tokens(steps: int = T, batch: int = B, seed: int = 1) -> Tensor:
    """Whole numbers `[T, B, N, C]`, as a sum of spikes is."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 3, (steps, batch, H * W, C), generator=generator).float()


@pytest.mark.parametrize("steps", [1, 2, 7, 16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [0.02, 0.3, 0.9])
def test_the_or_equals_the_neuron(steps: int, dtype: torch.dtype, density: float) -> None:
    generator = torch.Generator().manual_seed(steps)
    fires = torch.rand(steps, 5, 40, 16, generator=generator) < density
    for counts in (fires.to(dtype), fires.sum(3).to(dtype), 3136 * fires.to(dtype)):
        spikes, (v,) = LIF(v_threshold=0.5)(counts, return_state=True)
        assert torch.equal(fires_if_any(counts), spikes)
        assert fires_if_any(counts).dtype == dtype
        assert not v.any()  # so the next chunk of a stream begins at rest too


def test_the_gradient_is_not_that_of_an_or() -> None:
    counts = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    LIF(v_threshold=0.5)(counts)[1].sum().backward()
    slope = torch.sigmoid(torch.tensor(-2.0, dtype=torch.float64))
    slope = 4 * slope * (1 - slope)  # at h - 0.5 = -0.5
    assert counts.grad is not None
    torch.testing.assert_close(counts.grad[:, 0], torch.stack([slope / 4, slope / 2]))


def test_token_attention_passes_a_head_of_a_token_where_its_query_fires() -> None:
    module = QKTokenAttention(C, HEADS)
    q, k = (tokens(seed=seed).eq(2).float() for seed in (2, 3))
    passed = module.gate(q, k)
    for head in range(HEADS):
        own = slice(head * C // HEADS, (head + 1) * C // HEADS)
        assert torch.equal(passed[..., own], k[..., own] * q[..., own].any(3, keepdim=True))
    assert 0 < passed.sum() < k.sum()


def test_channel_attention_passes_a_channel_where_any_token_fires() -> None:
    q, k = (tokens(seed=seed).eq(2).float() for seed in (2, 3))
    q = q * (torch.rand(T, B, 1, C, generator=torch.Generator().manual_seed(4)) < 0.5)
    passed = QKChannelAttention(C).gate(q, k)
    assert torch.equal(passed, k * q.any(2, keepdim=True))
    assert 0 < passed.sum() < k.sum()


@pytest.mark.parametrize("build", MIXERS)
def test_layouts_agree(build: Build) -> None:
    x = tokens()
    out = built(build)(x)
    assert out.shape == x.shape
    assert set(out.unique().tolist()) == {0.0, 1.0}
    first = x.transpose(2, 3)
    assert torch.equal(built(build, "TBCN")(first), out.transpose(2, 3))
    maps = built(build, "TBCHW")(first.unflatten(3, (H, W)))
    assert torch.equal(maps, out.transpose(2, 3).unflatten(3, (H, W)))


@pytest.mark.parametrize("build", MIXERS)
def test_a_stream_of_chunks_is_one_call(build: Build) -> None:
    module, x = built(build), tokens(9)
    stream = Stream(module)
    chunks = torch.cat([stream(part) for part in x.split([4, 1, 2, 2])])
    assert torch.equal(chunks, module(x))
    assert len(stream.state) == 4  # q, k, attn_lif and proj


@pytest.mark.parametrize("build", MIXERS)
def test_samples_do_not_influence_each_other(build: Build) -> None:
    module, x = built(build), tokens(batch=5)
    order = torch.tensor([3, 0, 4, 1, 2])
    out = module(x)
    assert torch.equal(module(x[:, order]), out[:, order])
    assert torch.equal(torch.cat([module(part) for part in x.split([1, 3, 1], 1)], 1), out)


@pytest.mark.parametrize("build", MIXERS)
def test_its_operations_are_counted(build: Build) -> None:
    module, seen = built(build), {}
    for name in ("q", "k", "attn_lif"):
        module.get_submodule(name).register_forward_hook(lambda m, a, y, name=name: seen.update({name: y}))
    with torch.no_grad(), count(module, strict=True) as run:
        module(tokens())
    counts = run.counts()
    assert [layer.name for layer in counts.layers] == ["q.synapse", "k.synapse", "proj.synapse"]
    assert [int(entry.events.sum()) for entry in counts.of(SumCount)] == [int(seen["q"].sum())]
    (mask,) = counts.of(PairCount)
    assert int(mask.both_nonzero.sum()) == int(counts.layers[2].events.sum()) > 0
    assert seen["attn_lif"].shape[:2] == (T, B)


def test_bad_arguments_and_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"QKTokenAttention got dim=12 and num_heads=5; .*dim=12 takes 1, 2, 3, 4"):
        QKTokenAttention(12, 5)
    with pytest.raises(ValueError, match="QKChannelAttention got layout='BTNC'; expected 'TBNC'"):
        QKChannelAttention(12, layout="BTNC")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"QKTokenAttention got an input of shape .*; expected \[T, B, N, C=12\]"):
        QKTokenAttention(12, 3)(torch.zeros(4, 2, 12, 15))
    with pytest.raises(ValueError, match=r"QKChannelAttention got .*; expected \[T, B, C=12, H, W\]"):
        QKChannelAttention(12, layout="TBCHW")(torch.zeros(4, 2, 12, 15))
