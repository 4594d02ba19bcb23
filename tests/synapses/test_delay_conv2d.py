"""Convolutions of frames with delays: against sums over elements, layers of fewer axes, streams, energy."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom import Stream
from spikeloom.energy import count, price
from spikeloom.models import DelaySchedule, parameter_groups
from spikeloom.neurons import LIF
from spikeloom.synapses import BatchNorm2d, Dcls2d, DelayConv1d, DelayConv2d, construct_3d, fold

VERSIONS = ("v0", "v1", "max", "gauss")
SIZE = (5, 3, 5)
T, B = 6, 2


def layer(**options: Any) -> DelayConv2d:
    """Groups, strides and paddings that differ by axis; positions all over the kernel, some at whole numbers."""
    torch.manual_seed(0)
    given = {"kernel_count": 2, "max_delay": SIZE[0], "kernel_size": SIZE[1:], "stride": (2, 1), "padding": (1, 2)}
    made = DelayConv2d(4, 6, **{**given, "groups": 2, "bias": True, **options}).double()
    with torch.no_grad():
        for axis, taps in enumerate(made.size):
            made.P[axis].uniform_(-taps / 2, taps / 2)
        made.P[..., 0] = made.P[..., 0].round()
        if made.SIG is not None:
            made.SIG.normal_()
    made.clamp_positions_()
    return made


def frames(**sizes: int) -> Tensor:
    shape = {"T": T, "B": B, "C": 4, "H": 5, "W": 4, **sizes}
    return (torch.rand(*shape.values(), generator=torch.Generator().manual_seed(1)) < 0.3).double()


def profile(version: str, p: float, sigma: float, size: int) -> list[float]:
    """One element's profile along an axis, tap by tap, not normalised."""
    if version == "v0":
        below = math.floor(p)
        return [{below: 1 - (p - below), below + 1: p - below}.get(k, 0.0) for k in range(size)]
    width = {"v1": 1.0, "max": abs(sigma) + 1.0, "gauss": abs(sigma) + 0.27}[version]
    if version == "gauss":
        return [math.exp(-0.5 * ((k - p) / width) ** 2) for k in range(size)]
    return [max(width - abs(k - p), 0.0) for k in range(size)]


def by_hand(made: DelayConv2d, x: Tensor) -> Tensor:
    """Every element on every tap to every output, in plain numbers; without bias."""
    outputs, per_group, elements = made.weight.shape
    sizes = zip(x.shape[3:], made.padding, made.size[1:], made.stride, strict=True)
    out = [(side + 2 * p - k) // s + 1 for side, p, k, s in sizes]
    y = torch.zeros(len(x) + made.tail_steps, x.shape[1], outputs, *out, dtype=torch.float64)
    for o, i, c in itertools.product(range(outputs), range(per_group), range(elements)):
        channel = o // (outputs // made.groups) * per_group + i
        sigmas = [0.0] * 3 if made.SIG is None else made.SIG[:, o, i, c].tolist()
        places = [p + taps // 2 for p, taps in zip(made.P[:, o, i, c].tolist(), made.size, strict=True)]
        axes = [profile(made.version, p, s, k) for p, s, k in zip(places, sigmas, made.size, strict=True)]
        total = 1.0 if made.version == "v0" else sum(map(math.prod, itertools.product(*axes))) + 1e-7
        for k, r, q in itertools.product(*map(range, made.size)):
            share = float(made.weight[o, i, c]) * axes[0][k] * axes[1][r] * axes[2][q] / total
            for t, h, w in itertools.product(*map(range, (len(y), *out))):
                sent = t - (made.size[0] - 1 - k)  # tap k delays by K - 1 - k
                row, column = made.stride[0] * h + r - made.padding[0], made.stride[1] * w + q - made.padding[1]
                if share and 0 <= sent < len(x) and 0 <= row < x.shape[3] and 0 <= column < x.shape[4]:
                    y[t, :, o, h, w] += share * x[sent, :, channel, row, column]
    return y


@pytest.mark.parametrize("version", VERSIONS)
def test_a_layer_is_the_sum_of_its_elements(version: str) -> None:
    made = layer(version=version, max_delay=3, kernel_size=3, kernel_count=1).requires_grad_(False)
    x = torch.randn(3, B, 4, 5, 4, dtype=torch.float64)
    assert made.bias is not None
    expected = by_hand(made, x) + made.bias.view(-1, 1, 1)
    torch.testing.assert_close(made(x), expected, rtol=1e-12, atol=1e-12)


def test_a_spike_arrives_at_its_time_and_place() -> None:
    """P[0] = +2 is no delay, -2 the longest; P[1] is the row, P[2] the column that an output looks at."""
    made = DelayConv2d(1, 1, 1, 5, (3, 5), version="v0", padding=(1, 2), tail="lossless").double()
    with torch.no_grad():
        made.P.copy_(torch.tensor([-1.0, 1.0, -2.0]).view(3, 1, 1, 1))
        made.weight.fill_(1.0)
    assert made.delays().item() == 3
    assert made.places().flatten().tolist() == [2, 0]
    x = torch.zeros(2, 1, 1, 4, 6, dtype=torch.float64)
    x[1, 0, 0, 2, 1] = 1
    assert made(x).nonzero().tolist() == [[4, 0, 0, 1, 3]]


@pytest.mark.parametrize("version", VERSIONS)
def test_derivatives_are_those_of_the_formulas(version: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, *spread = (
        torch.randn(s, generator=generator, dtype=torch.float64) for s in ((2, 1, 2), *[(3, 2, 1, 2)] * 2)
    )
    given = [weight, spread[0] + 0.1234, *([spread[1] + 0.3] if version in ("max", "gauss") else [])]

    def build(*elements: Tensor) -> Tensor:
        sigma = elements[2] if len(elements) > 2 else None
        return construct_3d(elements[0], elements[1], sigma, (5, 3, 5), version)

    assert torch.autograd.gradcheck(build, [x.requires_grad_() for x in given])


def test_gradients_of_a_layer() -> None:
    made = layer(kernel_count=1, max_delay=3, kernel_size=3, groups=2)
    x = torch.randn(2, 1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in made.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(made, dict(zip(names, values, strict=True)), x)
        return y

    assert torch.autograd.gradcheck(run, [x, *made.parameters()], fast_mode=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_one_tap_in_time_is_the_layer_in_space(version: str) -> None:
    made = layer(version=version, max_delay=1)
    flat = Dcls2d(
        4, 6, 2, stride=(2, 1), padding=(1, 2), dilated_kernel_size=SIZE[1:], groups=2, version=version,
        axis_order="row_col",
    ).double()  # fmt: skip
    with torch.no_grad():
        flat.load_state_dict({k: v[1:] if k in ("P", "SIG") else v for k, v in made.state_dict().items()})
    torch.testing.assert_close(made(frames()), flat(frames()), rtol=1e-6, atol=1e-6)  # 1e-7 beside other sums
    torch.testing.assert_close(made.kernel().sum(2), flat.kernel(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("tail", ["official", "none", "lossless"])
def test_one_tap_in_space_is_the_layer_along_time(version: str, tail: Any) -> None:
    made = layer(version=version, kernel_size=1, stride=1, padding=0, tail=tail)
    line = DelayConv1d(4, 6, 2, SIZE[0], tail=tail, groups=2, bias=True, version=version).double()
    with torch.no_grad():
        line.load_state_dict({k: v[:1] if k in ("P", "SIG") else v for k, v in made.state_dict().items()})
    x = frames()
    y = made(x)
    assert len(y) == T + made.tail_steps == T + line.tail_steps
    pixels = line(x.permute(0, 1, 3, 4, 2).flatten(1, 3)).unflatten(1, (B, 5, 4)).permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(y, pixels, rtol=1e-6, atol=1e-6)
    assert torch.equal(made.delays(), line.delays())


@pytest.mark.parametrize("sizes", [[6], [1] * 6, [1, 4, 1], [5, 1]], ids=str)
@pytest.mark.parametrize("tail", ["official", "lossless"])
def test_a_stream_of_chunks_is_one_call(sizes: list[int], tail: Any) -> None:
    made, x = layer(tail=tail), frames()
    stream = Stream(made)
    chunks = x.split(sizes)
    parts = [*(stream(chunk) for chunk in chunks[:-1]), stream(chunks[-1], tail=True)]
    torch.testing.assert_close(torch.cat(parts), made(x), rtol=1e-12, atol=1e-13)
    assert [list(part.shape) for part in stream.state.values() for part in part] == [[5, 2, 4, 5, 4], []]


def test_gradients_flow_through_chunks_and_streams_do_not_disturb_each_other() -> None:
    made, x = layer(tail="none"), frames()
    made(x).square().sum().backward()
    assert made.P.grad is not None
    whole = made.P.grad.clone()
    made.zero_grad()
    stream, other = Stream(made, detach=False), Stream(made)
    parts = []
    for chunk in x.split(4):
        parts.append(stream(chunk))
        other(1 - chunk)
    torch.cat(parts).square().sum().backward()
    torch.testing.assert_close(made.P.grad, whole)
    assert bool(whole.flatten(1).any(1).all())


def test_outputs_look_back_only() -> None:
    made, x = layer(), frames()
    changed = x.clone()
    changed[4:] = 1 - changed[4:]
    torch.testing.assert_close(made(changed)[:4], made(x)[:4], rtol=0, atol=1e-13)


def test_channels_last_frames_stay_so() -> None:
    made = layer().float()
    x = frames().float()
    last = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (T, B))
    y = made(last)
    torch.testing.assert_close(y, made(x))
    assert y.stride(2) == 1
    assert fold(y.transpose(0, 1)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("version", VERSIONS)
def test_rounded_elements_are_single_taps(version: str) -> None:
    made = layer(version=version, kernel_count=1)
    with torch.no_grad():
        made.P[0, 0, 0, 0], made.P[1, 0, 0, 0], made.P[2, 0, 0, 0] = 9.0, -9.0, 0.5
    made.round_positions_()
    assert made.P[:, 0, 0, 0].tolist() == [2.0, -1.0, 0.0]
    assert made.version == ("max" if version == "gauss" else version)
    kernel = made.kernel().detach()
    assert bool((kernel.flatten(2).count_nonzero(-1) == 1).all())
    o, i = torch.meshgrid(torch.arange(6), torch.arange(2), indexing="ij")
    row, column = made.places()[..., 0]
    at = kernel[o, i, SIZE[0] - 1 - made.delays()[..., 0], row, column]
    torch.testing.assert_close(at, made.weight.detach()[..., 0], rtol=2e-7, atol=0)


def test_it_trains_by_the_scheme_of_the_delay_networks() -> None:
    """Positions have their own rate, widths follow the schedule, and steps are clamped by axis."""
    made = layer(learn_sigma=False, tail="none")
    optimizer = torch.optim.Adam(parameter_groups(made, lr=0.05))
    schedule = DelaySchedule(epochs=4, sigma=2.0)
    goal, before = layer(version="v0", tail="none"), made.P.detach().clone()
    losses = []
    for epoch in range(4):
        schedule.apply(epoch, made, optimizer)
        loss = (made(frames()) - goal(frames()).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        made.clamp_positions_()
        losses.append(loss.item())
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["positions"] == schedule.at(3).position_lr
    assert made.SIG is not None
    assert bool((made.SIG == 0.23).all())
    assert bool((before != made.P).flatten(1).any(1).all())
    assert bool((made.P.abs().amax((1, 2, 3)) <= torch.tensor([2.0, 1.0, 2.0])).all())
    assert losses[-1] < losses[0]


def test_half_precision_by_autocast() -> None:
    made, x = layer(tail="none").float(), frames().float()
    with torch.autocast("cpu", torch.bfloat16):
        y = made(x)
        stream = Stream(made)
        parts = torch.cat([stream(x[:2]), stream(x[2:])])
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), made(x), rtol=0.05, atol=0.05)
    torch.testing.assert_close(parts, y)


def operations(made: DelayConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Elements that deliver, by the step in which a spike is sent and in which it arrives, [T, B], one by one."""
    sent, arrived = torch.zeros(len(x), x.shape[1], dtype=torch.long), torch.zeros(len(x), x.shape[1], dtype=torch.long)
    out = made(x, tail=False).shape[3:]
    outputs, per_group, elements = made.weight.shape
    delays, (rows, columns) = made.delays(), made.places()
    for t, b, channel, h, w in x.nonzero().tolist():
        for o, i, c in itertools.product(range(outputs), range(per_group), range(elements)):
            row = h + made.padding[0] - int(rows[o, i, c])
            column = w + made.padding[1] - int(columns[o, i, c])
            arrives = t + int(delays[o, i, c])
            mine = o // (outputs // made.groups) * per_group + i == channel
            meets = row % made.stride[0] == 0 and column % made.stride[1] == 0
            inside = row // made.stride[0] in range(out[0]) and column // made.stride[1] in range(out[1])
            if mine and meets and inside and arrives < len(x):
                sent[t, b] += 1
                arrived[arrives, b] += 1
    return sent, arrived


@pytest.mark.parametrize("stride", [(2, 1), (1, 3)], ids=str)
def test_energy_counts_elements_at_rounded_places(stride: tuple[int, int]) -> None:
    made, x = layer(stride=stride, tail="none"), frames()
    with torch.no_grad():
        made.weight[0] = 0
        with count(made, strict=True) as run:
            y = made(x)
        expected = operations(made, x)
    (counted,) = run.counts().layers
    assert counted.sop.tolist() == expected[0].tolist()
    assert counted.sop_at_arrival is not None
    assert counted.sop_at_arrival.tolist() == expected[1].tolist()
    assert counted.events.sum() == x.sum()
    assert counted.kind == "binary"
    assert counted.bias_adds == y[0, 0].numel() == counted.out_numel
    assert counted.dense_nominal == 6 * 2 * 2 * math.prod(SIZE) * y[0, 0, 0].numel()
    ones = layer(stride=stride, tail="none", kernel_count=2)
    assert counted.dense_exact == int(operations(ones, torch.ones(T, 1, 4, 5, 4).double())[0].sum()) / T
    assert counted.sop_nonzero_weight is not None
    assert 0 < counted.sop_nonzero_weight.sum() < counted.sop.sum()


def test_energy_of_a_network_and_of_its_stream() -> None:
    net = torch.nn.Sequential(layer(tail="none"), BatchNorm2d(6), LIF(v_threshold=0.1), layer_of_six()).double().eval()
    x = frames()
    with torch.no_grad():
        with count(net, strict=True) as run:
            net(x)
        whole = run.counts()
        stream = Stream(net)
        with count(net, strict=True) as run, run.batch(T=T, B=B):
            for step in x.split(1):
                stream(step)
        stepped = run.counts()
    assert [entry.op for entry in whole.layers] == ["delay_frames"] * 2
    for one, other in zip(whole.layers, stepped.layers, strict=True):
        assert one.sop.tolist() == other.sop.tolist()
        assert one.sop.sum() > 0
        assert one.sop_at_arrival is not None
        assert other.sop_at_arrival is not None
        assert one.sop_at_arrival.tolist() == other.sop_at_arrival.tolist()
    for model in ("paper", "lemaire2022"):
        assert price(whole, model).mean > 0


def layer_of_six() -> DelayConv2d:
    return DelayConv2d(6, 2, 1, 3, 3, padding=1, tail="none")


def test_a_growing_sequence_is_refused_by_the_count() -> None:
    made = layer()
    with pytest.raises(ValueError, match="tail=False"), torch.no_grad(), count(made, strict=True):
        made(frames())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_delay": 4}, "expected odd numbers of taps"),
        ({"kernel_size": (3, 4)}, "expected odd numbers of taps"),
        ({"kernel_size": (3, 3, 3)}, r"one number, or \(rows, columns\)"),
        ({"stride": 0}, "expected stride >= 1"),
        ({"padding": (0, -1)}, "expected stride >= 1"),
        ({"groups": 3}, "multiples of groups"),
        ({"tail": "all"}, "official, none, lossless"),
        ({"version": "v2"}, "expected one of v0, v1, max, gauss"),
    ],
)
def test_impossible_layers_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DelayConv2d(4, 4, **given)


def test_wrong_inputs_are_explained() -> None:
    made = layer()
    with pytest.raises(ValueError, match=r"expected \[T, B, 4, H, W\]. Channels come before"):
        made(torch.zeros(3, 2, 5, 5, 4))
    with pytest.raises(ValueError, match=r"expected \[T, B, C, H, W\]"):
        made(torch.zeros(3, 2, 4))
    with pytest.raises(ValueError, match=r"frames of \[5, 4\], \[5, 4\] with its padding"):
        layer(kernel_size=7, padding=0)(frames())


@pytest.mark.gpu
@pytest.mark.parametrize("last", [False, True])
def test_a_gpu_gives_what_the_cpu_gives(last: bool) -> None:
    made, x = layer().float(), frames().float()
    expected = made(x)
    expected.square().sum().backward()
    twin = layer().float().cuda()
    there = x.cuda()
    if last:
        there = there.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (T, B))
    torch.backends.cudnn.allow_tf32, kept = False, torch.backends.cudnn.allow_tf32
    try:
        y = twin(there)
        y.square().sum().backward()
    finally:
        torch.backends.cudnn.allow_tf32 = kept
    torch.testing.assert_close(y.cpu(), expected, rtol=1e-4, atol=1e-5)
    for (name, one), (_, other) in zip(made.named_parameters(), twin.named_parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(other.grad.cpu(), one.grad, rtol=1e-3, atol=1e-4, msg=name)
    with torch.no_grad():
        stream = Stream(twin)
        parts = [stream(there[:1]), stream(there[1:], tail=True)]
    torch.testing.assert_close(torch.cat(parts), y, rtol=1e-4, atol=1e-5)
