"""Time steps, memory layouts, storage types; what is saved for backward; no copies, and nothing left unwritten."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom.kernels import detach, layout, spike, step, where

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@step(state={"v": 0.0, "w": 0.25})
def two_states(x: Any, z: Any, v: Any, w: Any, *, tau: Any = 2.5) -> Any:
    h = v + (x - v - 0.3 * w) / tau
    s = spike(h - 0.5, "triangle", 0.5)
    return s, where(detach(s), 0.0, h), 0.9 * w + 0.2 * s + 0.1 * z


@step(state={"v": 0.0})
def leaky(x: Any, v: Any, *, tau: Any = 2.0) -> Any:
    h = v + (x - v) / tau
    s = spike(h - 0.5, "triangle", 0.5)
    return s, where(detach(s), 0.0, h)


def drawn(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("neurons", [(1,), (2, 3, 7), (255,), (257,), (3, 1001)], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 16, 17, 32, 33, 100])
def test_any_number_of_steps_and_neurons(
    loom: Any, generator: torch.Generator, steps: int, neurons: tuple[int, ...]
) -> None:
    x, z = drawn(generator, steps, *neurons), drawn(generator, steps, *neurons)
    _, got = loom.agree(two_states, [x, z], {"tau": torch.tensor(2.5)})
    assert 0 < got.outputs[0].sum() < got.outputs[0].numel() or x.numel() < 50


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("steps", [4, 35])
def test_every_storage_type(loom: Any, generator: torch.Generator, dtype: torch.dtype, steps: int) -> None:
    x, z = (drawn(generator, steps, 3, 43, dtype=dtype) for _ in "xz")
    _, got = loom.agree(two_states, [x, z], {"tau": torch.tensor(2.5)})
    assert got.outputs[0].dtype == dtype
    assert got.states[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize(("dtype", "x", "fires"), [(torch.bfloat16, 2**-9, 384), (torch.float16, 2**-12, 3072)])
def test_membrane_is_float32_under_half_types(loom: Any, dtype: torch.dtype, x: float, fires: int) -> None:
    """An integrator that adds x until it reaches 0.75. In the half type it would stay at 0.5, where x is half a unit in
    the last place and the tie goes to the even neighbour: no spike at all."""
    half = torch.tensor(0.5, dtype=dtype)
    assert half + torch.tensor(x, dtype=dtype) == half
    inputs = torch.full((fires + 5, 3), x, dtype=dtype)
    _, got = loom.agree(integrator, [inputs], backward=False)
    assert got.outputs[0].nonzero().tolist() == [[fires - 1, lane] for lane in range(3)]
    assert got.states[0].tolist() == [5 * x] * 3


@step(state={"v": 0.0})
def integrator(x: Any, v: Any) -> Any:
    h = v + x
    s = spike(h - 0.75)
    return s, where(detach(s), 0.0, h)


def test_membrane_is_float64_under_float64(loom: Any) -> None:
    _, got = loom.agree(integrator, [torch.full((8, 1), 1e-12, dtype=torch.float64)], None, [0.5 + torch.zeros(1)])
    assert got.states[0].item() == pytest.approx(0.5 + 8e-12, abs=1e-15)


class Saved:
    """What autograd keeps for backward between `with` and the end of backward."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def __enter__(self) -> Saved:
        def keep(t: Tensor) -> Tensor:
            self.tensors.append(t)
            return t

        self._hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
        self._hooks.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._hooks.__exit__(*raised)

    def bytes_beside(self, *given: Tensor) -> int:
        """Bytes of the saved tensors that do not share memory with `given`."""
        known = {t.untyped_storage().data_ptr() for t in given}
        others = {t.untyped_storage().data_ptr(): t for t in self.tensors}
        return sum(t.untyped_storage().nbytes() for place, t in others.items() if place not in known)


@pytest.mark.parametrize("steps", [1, 16, 17, 100, 161])
def test_backward_keeps_the_input_and_a_sixteenth_of_the_states(
    loom: Any, generator: torch.Generator, steps: int
) -> None:
    lanes = 77
    x = drawn(generator, steps, lanes).to(loom.device).requires_grad_()
    tau = torch.tensor(2.5, device=loom.device, requires_grad=True)
    with Saved() as saved:
        leaky(x, tau=tau, backend=loom.device)
    assert any(t.data_ptr() == x.data_ptr() for t in saved.tensors)
    assert saved.bytes_beside(x, tau) == (steps - 1) // 16 * lanes * 4 <= 4 / 16 * steps * lanes
    with Saved() as reference:
        leaky(x, tau=tau, backend="reference")
    assert reference.bytes_beside(x, tau) > 4 * steps * lanes


def test_half_types_keep_states_in_float32_at_the_same_distance(loom: Any, generator: torch.Generator) -> None:
    x, z = (drawn(generator, 100, 8, dtype=torch.bfloat16).to(loom.device).requires_grad_() for _ in "xz")
    with Saved() as saved:
        two_states(x, z, backend=loom.device)
    assert saved.bytes_beside(x, z) == 2 * 6 * 8 * 4


def test_nothing_is_kept_without_gradients(loom: Any, generator: torch.Generator) -> None:
    x = drawn(generator, 100, 8).to(loom.device)
    with Saved() as saved:
        leaky(x, backend=loom.device)
        with torch.no_grad():
            leaky(x.requires_grad_(), backend=loom.device)
    assert saved.tensors == []


@pytest.mark.gpu
def test_memory_on_the_gpu_is_input_output_and_gradients(generator: torch.Generator) -> None:
    steps, lanes = 64, 2**16
    x = drawn(generator, steps, lanes).cuda().requires_grad_()
    leaky(x, backend="cuda")[0].sum().backward()
    x.grad = None
    size = x.numel() * 4
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    y, _ = leaky(x, backend="cuda")
    cotangent = torch.ones_like(y)
    assert torch.cuda.memory_allocated() - start < 2.1 * size
    y.backward(cotangent)
    assert torch.cuda.max_memory_allocated() - start < 3.1 * size


DENSE = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3),
    "batch first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "batch and channels first": lambda x: x.permute(1, 2, 0, 3, 4).contiguous().permute(2, 0, 1, 3, 4),
    "time last": lambda x: x.permute(1, 2, 3, 4, 0).contiguous().permute(4, 0, 1, 2, 3),
    "neurons reversed": lambda x: x.permute(0, 4, 3, 2, 1).contiguous().permute(0, 4, 3, 2, 1),
    "from the second step": lambda x: torch.cat([x[:1], x])[1:],
    "at an odd address": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "channels last at an odd address": lambda x: (
        torch.cat([x.new_zeros(3), x.movedim(2, -1).flatten()])[3:].view(x.movedim(2, -1).shape).movedim(-1, 2)
    ),
}
"""[T, B, C, H, W] without gaps, in different orders of axes and at different addresses."""

LOOSE = {
    "every other column": lambda x: torch.stack([x, -x], -1).flatten(-2)[..., ::2],
    "every other step": lambda x: torch.stack([x, -x], 1).flatten(0, 1)[::2],
    "a window": lambda x: torch.nn.functional.pad(x, (1, 2, 3, 1))[..., 3:-1, 1:-2],
    "some channels": lambda x: torch.cat([x, x], 2)[:, :, 1:-2],
    "the same frame at every step": lambda x: x[:1].expand_as(x),
    "the same for the whole batch": lambda x: x[:, :1].expand_as(x),
    "one number": lambda x: x[:1, :1, :1, :1, :1].expand_as(x),
    "channels last with gaps": lambda x: torch.cat([x, x], 2).movedim(2, -1).contiguous().movedim(-1, 2)[:, :, 1:-2],
}
"""[T, B, C, H, W] with gaps or overlap."""


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the tensors that a call copied to lay them out otherwise."""
    made: list[tuple[int, ...]] = []
    in_order = layout.in_order

    def watched(tensor: Tensor, strides: Any) -> Tensor:
        result = in_order(tensor, strides)
        if result is not tensor:
            made.append(tuple(tensor.shape))
        return result

    monkeypatch.setattr(layout, "in_order", watched)
    return made


@pytest.mark.parametrize("steps", [1, 5, 18])
@pytest.mark.parametrize("order", DENSE)
def test_dense_layouts_are_read_where_they_lie(
    loom: Any, generator: torch.Generator, copies: list[tuple[int, ...]], order: str, steps: int
) -> None:
    x, z = (DENSE[order](drawn(generator, steps, 2, 3, 5, 7)) for _ in "xz")
    loom.agree(two_states, [x, z], {"tau": torch.full((3, 1, 1), 2.5)})
    assert copies == []
    on = x.detach().to(loom.device)
    assert on.stride() == x.stride()
    (y, (v, _)) = two_states(on.requires_grad_(), on, backend=loom.device)
    y.backward(torch.ones_like(y))
    if steps > 1:
        assert y.stride() == on.grad.stride() == x.stride()
        assert sorted(range(4), key=v.stride().__getitem__) == sorted(range(4), key=x[0].stride().__getitem__)


@pytest.mark.parametrize(
    "neurons", [(1, 7), (7, 1), (1, 1, 7), (3, 1, 7), (3, 7, 1, 1), (1, 3, 1, 1), (1,), (1, 1)], ids=str
)
def test_axes_of_size_one_cost_no_copy(
    loom: Any, generator: torch.Generator, copies: list[tuple[int, ...]], neurons: tuple[int, ...]
) -> None:
    x, z = (drawn(generator, 4, *neurons) for _ in "xz")
    loom.agree(two_states, [x, z], None, [torch.rand(neurons), torch.rand(neurons)])
    if len(neurons) > 2:
        last = [t.movedim(2, -1).contiguous().movedim(-1, 2) for t in (x, z)]
        loom.agree(two_states, last)
    assert copies == []


@pytest.mark.parametrize("kind", LOOSE)
def test_tensors_with_gaps_give_the_same_as_their_copies(loom: Any, generator: torch.Generator, kind: str) -> None:
    x, z = (LOOSE[kind](drawn(generator, 5, 2, 3, 5, 7)) for _ in "xz")
    _, got = loom.agree(two_states, [x, z], {"tau": torch.full((x.shape[2], 1, 1), 2.5)})
    again = loom.run(two_states, [x.contiguous(), z.contiguous()], {"tau": torch.full((x.shape[2], 1, 1), 2.5)})
    assert torch.equal(got.outputs[0], again.outputs[0])


def test_inputs_states_and_gradients_of_different_layouts(loom: Any, generator: torch.Generator) -> None:
    x = DENSE["channels last"](drawn(generator, 5, 2, 3, 5, 7))
    z = DENSE["batch first"](drawn(generator, 5, 2, 3, 5, 7))
    state = [drawn(generator, 2, 3, 5, 7), drawn(generator, 7, 5, 3, 2).permute(3, 2, 1, 0)]
    loom.agree(two_states, [x, z], None, state)
    on = [t.to(loom.device).requires_grad_() for t in (x, z)]
    y, _ = two_states(*on, backend=loom.device)
    y.sum().backward()  # a cotangent of one number, expanded
    expected = loom.run(two_states, [x, z], only=0, ones=True, backend="reference")
    assert loom.distance(expected.gradients["x"], on[0].grad.cpu()) < 1e-6


@pytest.mark.parametrize("layout_of_x", ["the same frame at every step", "the same for the whole batch"])
def test_results_of_an_expanded_input_lie_in_the_usual_order(
    loom: Any, generator: torch.Generator, layout_of_x: str
) -> None:
    """An axis of stride 0 must not become the fastest one of the output: a row in memory would be one lane."""
    x = LOOSE[layout_of_x](drawn(generator, 5, 2, 3, 5, 7)).to(loom.device)
    y, (v,) = leaky(x, backend=loom.device)
    assert y.stride()[2:] == x.stride()[2:] == v.stride()[1:] == (35, 7, 1)


@pytest.mark.parametrize("shape", [(4, 0), (4, 0, 7), (4, 3, 0), (20, 0, 7)], ids=str)
def test_an_empty_batch(loom: Any, shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)
    state = [torch.zeros(shape[1:])] * 2
    for tau in (torch.tensor(2.5), torch.full(shape[2:], 2.5)):
        _, got = loom.agree(two_states, [x, x], {"tau": tau}, state)
        assert got.gradients["tau"].shape == tau.shape
        assert not got.gradients["tau"].any()
        assert got.outputs[0].shape == shape


def test_threads_do_not_change_a_bit(generator: torch.Generator) -> None:
    """60,000 lanes are shared out to threads; outputs and sums come out the same for any number of them."""
    x, tau = drawn(generator, 4, 60_001), 1.5 + torch.rand(60_001, generator=generator)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf, rate = x.clone().requires_grad_(), tau.clone().requires_grad_()
            y, (v,) = leaky(leaf, tau=rate, backend="cpu")
            (y.sum() + v.sum()).backward()
            results.append((y, v, leaf.grad, rate.grad))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_fresh_memory_is_full_of_nan_in_these_tests(nan_memory: None, device: str) -> None:
    """The comparisons above show an unwritten element only if this holds."""
    like = torch.zeros(4, 3, device=device).t()
    assert layout.empty_dense(like, torch.float32).isnan().all()
    assert layout.empty_slab(like, torch.bfloat16).isnan().all()
    assert like.new_empty((2, 2)).isnan().all()
