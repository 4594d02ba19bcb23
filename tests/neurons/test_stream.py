"""Stream: chunks of any sizes are the same as one call; the state can be saved, cloned, cut and reset."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spikeloom import Stream
from spikeloom.neurons import ALIF, EIF, IF, ILIF, LI, LIF, PLIF, QIF, CubaLIF, Izhikevich, Recurrent

CUTS = [[1] * 12, [5, 7], [1, 11], [3, 1, 2, 6], [12]]


class Delay(nn.Module):
    """A streaming module of another kind: the input `steps` later; its state is a bare tensor."""

    streams = True

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor, *, state: Tensor | None = None, return_state: bool = False) -> Any:
        past = x.new_zeros(self.steps, *x.shape[1:]) if state is None else state
        line = torch.cat([past, x])
        return (line[: len(x)], line[len(x) :]) if return_state else line[: len(x)]


class Block(nn.Module):
    """Nested and shared modules, a skip connection, and a layer that reads its own membrane."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.shared = LIF(1.5, 0.3)
        self.inner = nn.Sequential(nn.Linear(6, 6), PLIF(3.0, 0.4), Delay(2))
        self.recurrent = Recurrent(ALIF(v_threshold=0.5), nn.Linear(6, 6))
        self.readout = LI(4.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.shared(self.fc(x))
        b = self.shared(self.inner(a) + x)
        c, state = self.recurrent(b + x, return_state=True)
        return self.readout(c + b), state[1]


def join(stream: Stream, x: Tensor, cuts: list[int]) -> Any:
    results = [stream(chunk) for chunk in x.split(cuts)]
    if isinstance(results[0], tuple):
        return torch.cat([r[0] for r in results]), results[-1][1]
    return torch.cat(results)


@pytest.fixture
def x() -> Tensor:
    return 3 * torch.rand(12, 4, 6, generator=torch.Generator().manual_seed(0)) - 1


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block()


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("kind", [IF, LIF, PLIF, CubaLIF, ALIF, EIF, QIF, Izhikevich, LI, ILIF])
def test_chunks_are_one_call(kind: Any, cuts: list[int], x: Tensor, device: str) -> None:
    layer = kind().to(device)
    x = x.to(device)
    assert torch.equal(join(Stream(layer), x, cuts), layer(x))


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_chunks_through_a_network(block: Block, x: Tensor, cuts: list[int], device: str) -> None:
    """The matrix products of another number of rows may round differently, so membranes agree to rounding."""
    block, x = block.to(device), x.to(device)
    with torch.no_grad():
        whole, membrane = block(x)
        chunks, last = join(Stream(block), x, cuts)
    torch.testing.assert_close(chunks, whole)
    torch.testing.assert_close(last, membrane)
    assert whole.abs().max() > 0.1


def test_chunks_through_a_network_in_float64_are_exact_in_spikes(block: Block, x: Tensor) -> None:
    net = nn.Sequential(block.fc, block.shared, block.inner, block.recurrent).double()
    assert net(x.double()).any()
    assert torch.equal(join(Stream(net), x.double(), [3, 1, 2, 6]), net(x.double()))


def test_the_network_itself_stays_without_memory(block: Block, x: Tensor) -> None:
    alone = block(x)[0]
    stream, other = Stream(block), Stream(block)
    stream(x[:5])
    assert torch.equal(block(x)[0], alone)
    join(other, x, [4, 8])
    torch.testing.assert_close(torch.cat([Stream(block)(x[:5])[0], stream(x[5:])[0]]), alone)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in block.modules())


def test_state_names(block: Block, x: Tensor) -> None:
    stream = Stream(block)
    stream(x)
    assert sorted(stream.state_dict()) == [
        "inner.1#0/0",
        "inner.2#0",
        "readout#0/0",
        "recurrent#0/0",
        "recurrent#0/1",
        "recurrent#0/2",
        "shared#0/0",
        "shared#1/0",
    ]
    assert repr(stream) == "Stream(Block, 6 states, 8 tensors)"


class TestGradient:
    @pytest.mark.parametrize("make", [lambda: PLIF(3.0), lambda: Recurrent(PLIF(3.0), nn.Linear(6, 6))])
    def test_flows_through_the_boundary_if_asked(self, make: Any, x: Tensor) -> None:
        whole = make()
        pieces = copy.deepcopy(whole)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        cotangent = torch.randn(x.shape)
        whole(a).backward(cotangent)
        join(Stream(pieces, detach=False), b, [5, 3, 4]).backward(cotangent)
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-5, atol=1e-6)
        assert a.grad[:5].any()
        for mine, theirs in zip(pieces.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)

    def test_is_cut_otherwise(self, x: Tensor) -> None:
        a = x.clone().requires_grad_()
        stream = Stream(LIF())
        stream(a[:5])
        stream(a[5:]).sum().backward()
        assert not a.grad[:5].any()
        assert a.grad[5:].any()

    def test_can_be_cut_by_hand(self, x: Tensor) -> None:
        a = x.clone().requires_grad_()
        stream = Stream(LIF(), detach=False)
        stream(a[:5])
        stream.detach()
        stream(a[5:]).sum().backward()
        assert not a.grad[:5].any()


class TestState:
    def test_is_saved_and_loaded(self, block: Block, x: Tensor, tmp_path: Path) -> None:
        stream = Stream(block)
        stream(x[:5])
        save_file(stream.state_dict(), tmp_path / "state.safetensors")
        expected = stream(x[5:])[0]
        fresh = Stream(block).load_state_dict(load_file(tmp_path / "state.safetensors"))
        assert torch.equal(fresh(x[5:])[0], expected)

    def test_of_another_network_is_refused(self, block: Block, x: Tensor) -> None:
        stream = Stream(block)
        stream(x)
        with pytest.raises(KeyError, match=r"no streaming layer inner\.1, inner\.2, readout, .*; it has 1"):
            Stream(nn.Sequential(nn.Linear(6, 6), LIF())).load_state_dict(stream.state_dict())

    def test_clone_goes_its_own_way(self, block: Block, x: Tensor) -> None:
        stream = Stream(block)
        stream(x[:5])
        twin = stream.clone()
        twin(x[:3])
        torch.testing.assert_close(torch.cat([block(x)[0][:5], stream(x[5:])[0]]), block(x)[0])

    def test_reset_starts_from_rest_with_any_batch_size(self, x: Tensor) -> None:
        layer = LIF()
        stream = Stream(layer)
        stream(x)
        assert torch.equal(stream.reset()(x[:, :2]), layer(x[:, :2]))

    def test_moves(self, x: Tensor, device: str) -> None:
        layer = LIF()
        stream = Stream(layer)
        first = stream(x[:5])
        stream.to(device)
        assert torch.equal(torch.cat([first, stream(x[5:].to(device)).cpu()]), layer(x))

    def test_is_kept_when_a_call_fails(self, x: Tensor) -> None:
        class Moody(nn.Module):
            sulks = False

            def forward(self, y: Tensor) -> Tensor:
                if self.sulks:
                    raise RuntimeError("not today")
                return y

        net = nn.Sequential(LIF(), Moody(), LI())
        stream = Stream(net)
        first = stream(x[:5])
        net[1].sulks = True
        with pytest.raises(RuntimeError, match="not today"):
            stream(x[5:])
        net[1].sulks = False
        assert torch.equal(torch.cat([first, stream(x[5:])]), net(x))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())

    def test_given_by_the_caller_is_the_caller_s(self, x: Tensor) -> None:
        """A module that carries the state of a neuron itself is not interfered with."""

        class Careful(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.neuron = LIF()

            def forward(self, y: Tensor) -> Tensor:
                return self.neuron(y, state=(torch.full_like(y[0], 0.5),))

        stream = Stream(Careful())
        assert torch.equal(stream(x), stream(x))
        assert stream.state == {}


def test_another_thread_runs_the_network_undisturbed(x: Tensor) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neuron = LIF()
            self.aside: list[Tensor] = []

        def forward(self, y: Tensor) -> Tensor:
            worker = threading.Thread(target=lambda: self.aside.append(self.neuron(y)))
            worker.start()
            worker.join()
            return self.neuron(y)

    net = Outer()
    assert torch.equal(join(Stream(net), x, [5, 7]), LIF()(x))
    assert torch.equal(net.aside[1], LIF()(x[5:]))


class TestErrors:
    def test_another_batch_size(self, x: Tensor) -> None:
        net = nn.Sequential(nn.Linear(6, 3), LIF())
        stream = Stream(net)
        stream(x)
        with pytest.raises(
            ValueError,
            match=r"layer '1' got input \[T, 2, 3\] but its state belongs to \[T, 4, 3\]; call "
            r"stream.reset\(\)",
        ):
            stream(x[:, :2])
        assert stream(x).shape == (12, 4, 3)

    def test_a_compiled_network(self, x: Tensor) -> None:
        with pytest.raises(TypeError, match=r"the network is compiled by torch\.compile"):
            Stream(torch.compile(LIF(), backend="eager"))(x)
        net = nn.Sequential(nn.Linear(6, 6), LIF())
        net[1].compile(backend="eager")
        with pytest.raises(TypeError, match=r"1 is compiled by torch\.compile"):
            Stream(net)(x)

    def test_hooks_of_others_see_spikes(self, x: Tensor) -> None:
        """A monitor on a layer gets what it gets without a stream."""
        seen: list[Tensor] = []
        layer = LIF()
        layer.register_forward_hook(lambda module, args, output: seen.append(output))
        out = Stream(layer)(x)
        assert torch.equal(seen[0], out)
