"""Windowed linear attention: rotary codes, windows, the formula token by token, spikes, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeloom.energy import count
from spikeloom.neurons import ILIF
from spikeloom.spiking_attention import WindowedLinearAttention
from spikeloom.spiking_attention.rotary import Rotary, rotate, rotations
from spikeloom.spiking_attention.windowed_linear import EPS, from_windows, linear_attention, on_grid, to_windows

T, B, C, HEADS, GRID = 3, 2, 16, 4, (4, 6)
N = GRID[0] * GRID[1]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(**options: Any) -> WindowedLinearAttention:
    """A layer whose neurons fire, in float64, to evaluate."""
    torch.manual_seed(0)
    module = WindowedLinearAttention(C, HEADS, GRID, **options).double()
    for norm in (module.qk_bn, module.attn_bn):
        nn.init.constant_(norm.weight, 4.0)
        norm.running_var.fill_(0.1)
        nn.init.constant_(norm.bias, 0.6)
    return module.eval()


def test_rotation_is_that_of_complex_numbers() -> None:
    table = rotations(*GRID, C)
    x = random(5, N, C)
    turned = torch.view_as_complex(x.view(5, N, C // 2, 2)) * torch.view_as_complex(table.flatten(0, 1))
    torch.testing.assert_close(rotate(x, table), torch.view_as_real(turned).flatten(-2))
    angle = torch.atan2(table[..., 1], table[..., 0])
    assert angle[1, 0].tolist() == pytest.approx([10000 ** (-4 * j / C) for j in range(C // 4)] + [0] * (C // 4))
    torch.testing.assert_close(table[2, :, : C // 4], table[2, :1, : C // 4].expand(GRID[1], -1, -1))
    torch.testing.assert_close(table[:, 3, C // 4 :], table[:1, 3, C // 4 :].expand(GRID[0], -1, -1))


def test_products_of_rotated_tokens_depend_on_their_distance() -> None:
    q, k = random(C), random(C, seed=1)
    table = rotations(*GRID, C)
    rotated = [rotate(x.expand(N, C), table).view(*GRID, C) for x in (q, k)]
    product = torch.einsum("yxc,vuc->yxvu", *rotated)
    torch.testing.assert_close(product[0, 0, 1, 2], product[2, 3, 3, 5])
    torch.testing.assert_close(product[1, 4, 0, 2], product[3, 3, 2, 1])


def test_the_table_is_rounded_once() -> None:
    rotary = Rotary(*GRID, C)
    assert rotary.table.dtype == torch.float32
    assert torch.equal(rotary.double().table, rotations(*GRID, C))
    assert torch.equal(rotary.half().float().table, rotations(*GRID, C).float())
    assert not rotary.state_dict()
    assert rotary.to("meta").table.is_meta


def test_windows_are_cut_row_by_row_and_put_back() -> None:
    x = torch.arange(24).view(1, 24, 1)
    parts = to_windows(x, GRID, (2, 3))
    assert parts[0, :, :, 0].tolist() == [
        [0, 1, 2, 6, 7, 8],
        [3, 4, 5, 9, 10, 11],
        [12, 13, 14, 18, 19, 20],
        [15, 16, 17, 21, 22, 23],
    ]
    for window in ((1, 1), (2, 3), (4, 2), GRID):
        tokens = random(T, B, N, C)
        assert torch.equal(from_windows(to_windows(tokens, GRID, window), GRID, window), tokens)


def test_linear_attention_is_its_quadratic_form() -> None:
    q, k = random(B, N, C).abs() + 1, random(B, N, C, seed=1).abs() + 1
    v, turn = random(B, N, C, seed=2), Rotary(*GRID, C).double()
    found = linear_attention(q, k, v, turn, HEADS)
    qr, kr = turn(q), turn(k)
    for head in range(HEADS):
        part = slice(head * C // HEADS, (head + 1) * C // HEADS)
        weights = torch.einsum("bnc,bmc->bnm", qr[..., part], kr[..., part]) / N
        norm = torch.einsum("bnc,bmc->bn", q[..., part], k[..., part]) / N + EPS
        torch.testing.assert_close(found[..., part], weights @ v[..., part] / norm[..., None])


def test_a_window_sees_nothing_of_the_others() -> None:
    q, k, v = (random(1, 1, N, C, seed=seed).abs() for seed in range(3))
    module = layer(window=(2, 3))
    whole = module._attend(q, k, v)
    apart = v.clone()
    apart[..., 0, :] += 1
    changed = (module._attend(q, k, apart) != whole).any(-1)[0, 0]
    assert changed.nonzero().flatten().tolist() == [0, 1, 2, 6, 7, 8]


def test_the_window_of_a_frame_is_no_window() -> None:
    y = random(T, B, N, C)
    assert torch.equal(layer()(y), layer(window=GRID)(y))
    assert not torch.allclose(layer()(y), layer(window=(2, 3))(y))


def test_queries_keys_and_result_spike_and_state_starts_at_rest() -> None:
    module, seen = layer(), {}
    for name in ("qk_bn", "attn_bn"):
        module.get_submodule(name).register_forward_hook(lambda m, given, out, name=name: seen.update({name: out}))
    y = random(T, B, N, C)
    first = module(y)
    for name, spikes in seen.items():
        assert 0.02 < spikes.mean() < 0.98, name
        assert not (spikes * (1 - spikes)).any(), name
    assert torch.equal(module(y), first)
    order = [1, 0]
    torch.testing.assert_close(module(y[:, order]), first[:, order])


def test_frames_do_not_mix_but_through_the_neurons() -> None:
    """A change of the last frame changes nothing before it."""
    module, y = layer(), random(T, B, N, C)
    other = y.clone()
    other[-1] += 1
    assert torch.equal(module(other)[:-1], module(y)[:-1])
    assert not torch.equal(module(other)[-1], module(y)[-1])


def test_gradients_are_those_of_differences() -> None:
    """Of values, gates and the rest that has no neuron in front: the surrogate takes no part in evaluation of these."""
    q, k = random(2, 4, 8).abs() + 1, random(2, 4, 8, seed=1).abs() + 1
    v = random(2, 4, 8, seed=2)
    turn = Rotary(2, 2, 8).double()
    inputs = tuple(t.requires_grad_() for t in (q, k, v))
    assert torch.autograd.gradcheck(lambda *given: linear_attention(*given, turn, 2), inputs)


def test_a_layer_runs_on_grid() -> None:
    conv = layer().dwc
    tokens = random(T, B, N, C)
    frames = tokens.view(T, B, *GRID, C).permute(0, 1, 4, 2, 3)
    expected = conv(frames).permute(0, 1, 3, 4, 2).reshape(T, B, N, C)
    torch.testing.assert_close(on_grid(conv, tokens, GRID), expected)


def test_only_spikes_count_as_spikes() -> None:
    module = layer().float()
    with torch.no_grad(), count(module, strict=True) as run:
        module(random(T, B, N, C).float())
    kinds = {layer.name: layer.kind for layer in run.counts().layers}
    weights = ("act_proj", "in_proj", "dwc", "qk", "lepe", "out_proj")
    assert {name: kinds[name] for name in weights} == dict.fromkeys(weights, "float")
    assert set(kinds.values()) == {"float", "integer"}, "q = 1 + s times the mean of k is the one with whole numbers"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window": (3, 3)}, r"window=\(3, 3\) on a grid of 4 x 6 tokens; .* not padded"),
        ({"window": (0, 3)}, r"window=\(0, 3\)"),
        ({"window": (2, 3, 1)}, r"window=\(2, 3, 1\)"),
    ],
    ids=["divides", "empty", "three sides"],
)
def test_windows_that_do_not_tile_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        WindowedLinearAttention(C, HEADS, GRID, **options)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        WindowedLinearAttention(6, 2, GRID)
    with pytest.raises(ValueError, match="num_heads=3"):
        WindowedLinearAttention(C, 3, GRID)
    with pytest.raises(ValueError, match=r"expected \[T, B, 24, 16\], 4 x 6 tokens a frame"):
        layer()(random(T, B, N - 1, C))
    with pytest.raises(ValueError, match=r"\[T, B, N, C\]"):
        layer()(random(B, N, C))
    for shape in ((0, B, N, C), (T, 0, N, C)):
        with pytest.raises(ValueError, match="no axis empty"):
            layer()(random(*shape))


def test_another_neuron() -> None:
    module = layer(neuron=ILIF)
    assert module(random(T, B, N, C)).shape == (T, B, N, C)
