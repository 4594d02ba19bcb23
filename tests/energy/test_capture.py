"""What a run is: unknown operations, precision, batches, names, training, errors."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import spikeloom_tests.golden.families.energy  # noqa: F401  registers the delay layer of the golden networks
import torch
from spikeloom_tests.energy.small import B, Call, Folded, T, counted, golden, in_batches, same_counts, sparse
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks

from spikeloom.energy import Totals, UncountedError, count
from spikeloom.energy.pricing import price
from spikeloom.kernels.watch import WATCHERS
from spikeloom.neurons import LIF
from spikeloom.neurons.functional import lif


@torch.library.custom_op("spikeloom_tests::mystery", mutates_args=())
def mystery(x: Tensor, weight: Tensor) -> Tensor:
    """A linear operation nobody can look into."""
    return x @ weight.t()


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("name", ["mystery", "fft"])
def test_unknown_operation_is_listed_and_strict_raises(name: str, inference: bool) -> None:
    layer = nn.Linear(6, 6).double()
    unknown = {"mystery": lambda x: mystery(x, layer.weight), "fft": lambda x: torch.fft.rfft(x).abs()}[name]
    net = Call(lambda x: unknown(layer(x)))
    net.layer = layer
    x = sparse((6,))
    mode = torch.inference_mode() if inference else torch.no_grad()
    with mode, count(net) as run:
        net(x)
        net(x)
    (entry,) = run.counts().uncounted
    assert name in entry.op
    assert entry.calls == 2
    assert [y.name for y in run.counts().layers] == ["layer"]
    with pytest.raises(UncountedError, match=name), count(net, strict=True):
        net(x)


@pytest.mark.parametrize("warm", [False, True])
def test_compiled_counts_as_eager(warm: bool) -> None:
    net = Folded(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 1))).double()
    x = sparse((2, 4, 4))
    wanted = counted(net, x)
    compiled: Any = torch.compile(net, backend="eager")
    with torch.no_grad():
        if warm:
            compiled(x)
        with count(compiled, strict=True) as run:
            compiled(x)
    same_counts(run.counts(), wanted)
    net.compile(backend="eager")
    with torch.no_grad():
        if warm:
            net(x)
    same_counts(counted(net, x), wanted)


WIDE_NNZ = 64 * 4288
WIDE_SOP = WIDE_NNZ * 4001


@pytest.fixture(scope="module")
def wide() -> nn.Module:
    layer = nn.Linear(5003, 4001)
    nn.init.constant_(layer.weight, 0.01)  # a uniform draw of this size holds a few zeros
    return Call(layer)


def wide_input(steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[steps, 64, 5003] ones, every seventh column zero."""
    x = torch.ones(steps, 64, 5003, dtype=dtype)
    x[..., ::7] = 0
    return x


def autocast(dtype: torch.dtype) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grad", [False, True])
def test_autocast_around_the_counter(wide: nn.Module, dtype: torch.dtype, grad: bool) -> None:
    """The cast of the weight, made and cached before counting began, is no activation."""
    x = wide_input(1)
    with torch.set_grad_enabled(grad), autocast(dtype):
        wide(x)
        with count(wide, strict=True) as run:
            wide(x)
    (layer,) = run.counts().layers
    assert (layer.operands, layer.kind, int(layer.sop.sum())) == ("param", "binary", WIDE_SOP)


def test_autocast_inside_the_counter_beyond_32_bits(wide: nn.Module) -> None:
    with torch.no_grad(), count(wide, strict=True) as run, autocast(torch.bfloat16):
        wide(wide_input(4))
    (layer,) = run.counts().layers
    assert layer.sop.tolist() == [[4288 * 4001] * 64] * 4
    assert int(layer.sop.sum()) == 4_392_009_728 > 2**31
    assert layer.sop_unit.tolist() == layer.sop.tolist() == layer.sop_nonzero_weight.tolist()
    assert Totals(run.counts()).ac.sum() == 4_392_009_728
    assert price(run.counts()).per_sample.tolist() == pytest.approx([0.9 * 4288 * 4001 * 4] * 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_in_half_precision(dtype: torch.dtype) -> None:
    """Counts are not summed in the type of the activations, which could not hold them."""
    net = Call(nn.Linear(5003, 3, bias=False).to(dtype))
    net.function.weight.data.fill_(0.01)
    (layer,) = counted(net, wide_input(2, dtype)).layers
    assert layer.sop.tolist() == [[4288 * 3] * 64] * 2


@pytest.mark.parametrize("name", ["conv_bn_lif", "sticky_kind", "pooling", "graded", "recurrent", "delays"])
def test_counts_do_not_depend_on_the_batch_size(name: str) -> None:
    net, x = golden(name)
    x = torch.cat([x, x.flip(1), x], 1)[:, :5]
    whole = in_batches(net, x, [5])
    for sizes in ([1] * 5, [2, 2, 1], [4, 1]):
        found = in_batches(net, x, sizes)
        same_counts(found, whole, names=True)
        assert price(found).per_sample.tolist() == price(whole).per_sample.tolist()


def test_training_counts_the_forward_pass_alone() -> None:
    """Backward, recomputed activations and the optimiser's step add nothing."""
    torch.manual_seed(0)
    net = Folded(
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3))
    ).double()
    x = sparse((2, 5, 5))
    with count(net.train(), strict=True) as run:
        net(x)
    wanted = run.counts()
    optimiser = torch.optim.SGD(net.parameters(), 0.0)
    with count(net, strict=True) as run:
        net(x).square().sum().backward()
        optimiser.step()
    same_counts(run.counts(), wanted, names=True)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=False)

    outer = Checkpointed()
    with count(outer, strict=True) as run:
        outer(x.clone().requires_grad_()).square().sum().backward()
    same_counts(run.counts(), wanted)


def test_shared_module_is_summed_and_its_calls_are_counted() -> None:
    layer = nn.Linear(4, 4, bias=False).double()
    net = Call(lambda x: layer(layer(x).relu()))
    net.layer = layer
    x = sparse((4,))
    (found,) = counted(net, x).layers
    hidden = layer(x).relu()
    wanted = ((x != 0).sum(-1) + (hidden != 0).sum(-1)) * 4
    assert (found.name, found.calls, found.kind) == ("layer", 2, "float")
    assert found.sop.tolist() == wanted.tolist()
    assert (found.dense_exact, found.in_numel, found.out_numel) == (32, 8, 8)


def test_functional_code_without_any_module() -> None:
    a, b = sparse((3, 4), seed=1), sparse((4, 5), seed=2)
    with torch.no_grad(), count(strict=True) as run:
        for _ in range(2):
            with run.batch(T=T, B=B):
                torch.matmul(a, b)
    found = run.counts()
    assert (found.T, found.samples) == (T, 2 * B)
    single = counted(Call(torch.matmul), a, b).layers[0]
    assert found.layers[0].sop.tolist() == np.concatenate([single.sop] * 2, 1).tolist()


def test_what_runs_between_batches_is_not_counted() -> None:
    net, other, x = Call(nn.Linear(4, 2).double()), nn.Linear(4, 4).double(), sparse((4,))
    with torch.no_grad(), count(net, strict=True) as run:
        other(x)
        net(other(x) * 0 + x)
        x @ torch.randn(4, 4).double()
    assert len(run.counts().layers) == 1


def test_named_after_modules_and_operations() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qk, self.proj = Call(lambda a: (a @ a.transpose(-1, -2)) @ a), nn.Linear(4, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.proj(self.qk(x))

    net = nn.Sequential(Block(), Block())
    names = [layer.name for layer in counted(net, sparse((3, 4))).layers]
    assert names == ["0.qk.matmul", "0.qk.matmul_1", "0.proj", "1.qk.matmul", "1.qk.matmul_1", "1.proj"]


def test_run_without_a_forward_says_so() -> None:
    with count(Call(nn.Identity())) as run:
        for _ in []:
            pass
    with pytest.raises(RuntimeError, match="nothing was counted"):
        run.counts()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverged_network_is_refused_by_the_layer_s_name(value: float) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].bias[0] = value
    with pytest.raises(ValueError, match=r"1 .*NaN or an infinity"), torch.no_grad(), count(net):
        net(torch.ones(T, B, 4))


def test_batches_of_other_lengths_or_sizes_are_refused() -> None:
    net, frames = Call(nn.Linear(4, 2)), Folded(nn.Conv2d(1, 2, 3))
    with torch.no_grad(), count(net):
        net(torch.ones(T, B, 4))
        with pytest.raises(ValueError, match="time steps"):
            net(torch.ones(T + 1, B, 4))
    with torch.no_grad(), count(frames):
        frames(torch.ones(T, B, 1, 5, 5))
        with pytest.raises(ValueError, match="one size"):
            frames(torch.ones(T, B, 1, 6, 6))


def test_wrong_overrides_are_refused() -> None:
    net = Call(nn.Linear(4, 2))
    with pytest.raises(ValueError, match="expected one of"):
        count(net, kinds={"function": "spiky"})
    with torch.no_grad(), count(net, kinds={"conv9": "binary"}) as run:
        net(torch.ones(T, B, 4))
    with pytest.raises(KeyError, match="conv9"):
        run.counts()


def test_nothing_stays_behind() -> None:
    """Hooks and settings go with the block, also if it fails, and the next run works."""

    def held() -> Any:
        hooks = (module_hooks._global_forward_hooks, module_hooks._global_forward_pre_hooks)
        return [dict(h) for h in hooks], torch.backends.mha.get_fastpath_enabled(), len(WATCHERS)

    def fail(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    net, x = Call(nn.Linear(4, 2)), torch.ones(T, B, 4)
    before, broken = held(), Call(fail)
    with pytest.raises(ZeroDivisionError), count(broken):
        broken(x)
    assert held() == before
    assert len(counted(net, x).layers) == 1
    assert held() == before


def test_failed_forward_leaves_earlier_batches_whole() -> None:
    layer = nn.Linear(4, 2)
    net = Call(layer)
    with torch.no_grad(), count(net) as run:
        net(torch.ones(T, B, 4))
        with pytest.raises(RuntimeError):
            net(torch.ones(T, B, 5))
        net(torch.ones(T, 1, 4))
    assert run.counts().layers[0].sop.tolist() == [[8] * (B + 1)] * T


def test_neurons_are_counted_between_layers() -> None:
    """A functional LIF too, and its own arithmetic is in no list."""
    x = sparse((4,), "float", 0.8)
    by_module = counted(nn.Sequential(nn.Linear(4, 3).double(), LIF()), x)
    (neuron,) = by_module.aux
    assert (neuron.name, neuron.model, neuron.updates, neuron.states) == ("1", "lif", 3, 1)
    by_function = counted(Call(lambda x: lif(x, tau=2.0)[0]), x)
    (entry,) = by_function.aux
    assert (entry.model, entry.updates) == ("lif", 4)
    assert entry.touched.tolist() == (x != 0).sum(-1).tolist()
    assert entry.spikes.tolist() == (lif(x, tau=2.0)[0] != 0).sum(-1).tolist()
