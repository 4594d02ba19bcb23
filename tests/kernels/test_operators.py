"""The torch operators: opcheck, torch.compile, autocast, checkpointing, copies, transforms; CUDA graphs and streams."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from spikeloom.kernels import detach, spike, step, where
from spikeloom.kernels.norm import norm_weave
from spikeloom.kernels.norm.programs import fused
from spikeloom.neurons import LIF, PLIF, Neuron, functional


@step(state={"v": 0.0})
def leaky(x: Any, v: Any, *, tau: Any = 2.0, gain: Any = 1.0) -> Any:
    h = v + (gain * x - v) / tau
    s = spike(h - 0.5, "triangle", 0.5)
    return s, where(detach(s), 0.0, h)


PROGRAM = leaky.program({})
FUSED = fused(PROGRAM, True, True)


def tensor(device: str, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape))).to(device)


def leaves(device: str, *shapes: tuple[int, ...]) -> list[Tensor]:
    return [tensor(device, *shape).requires_grad_() for shape in shapes]


opcheck_reads_gradients = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)
"""opcheck itself looks at `.grad` of the operator's results."""


@opcheck_reads_gradients
@pytest.mark.parametrize("steps", [3, 20])
def test_opcheck_weave(device: str, steps: int) -> None:
    x, v, tau = leaves(device, (steps, 2, 3), (2, 3), (3,))
    every = 16 if steps > 16 else 0
    opcheck(torch.ops.spikeloom.weave.default, ([x], [v], [tau], [1.5], f"{PROGRAM.key}|ts", every, True))
    channels_last = x.detach().mT.contiguous().mT
    opcheck(torch.ops.spikeloom.weave.default, ([channels_last], [], [], [2.0, 1.5], f"{PROGRAM.key}|ss", 0, False))


@pytest.mark.parametrize("steps", [3, 20])
def test_opcheck_weave_backward(device: str, steps: int) -> None:
    x, y, v, tau = (t.detach() for t in leaves(device, (steps, 2, 3), (steps, 2, 3), (2, 3), (3,)))
    kept = tensor(device, 1, (steps - 1) // 16, 6)
    kept, every = ([kept], 16) if steps > 16 else ([], 0)
    program = f"{PROGRAM.key}|ts"
    backward = torch.ops.spikeloom.weave_backward.default
    opcheck(backward, ([y, v], [x], [v], [tau], kept, [1.5], program, every, "11:111"))
    opcheck(backward, ([v], [x], [], [tau], kept, [1.5], program, every, "01:001"))


@opcheck_reads_gradients
def test_opcheck_norm_weave(device: str) -> None:
    y, residual, v, tau, weight, bias = leaves(device, (3, 2, 4, 5), (3, 2, 4, 5), (2, 4, 5), (4, 1), (4,), (4,))
    arguments = ([y, residual], [v], [tau], [1.5], weight, bias, f"{FUSED.key}|ttts", "", 1e-5, 0, True)
    opcheck(torch.ops.spikeloom.norm_weave.default, arguments)


def test_opcheck_norm_weave_backward(device: str) -> None:
    y, g, v, tau, stats = (t.detach() for t in leaves(device, (3, 2, 4, 5), (3, 2, 4, 5), (2, 4, 5), (4, 1), (6, 4)))
    backward = torch.ops.spikeloom.norm_weave_backward.default
    for mask in ("111:1111", "101:1000", "010:0101"):
        grads = [t for t, flag in zip((g, g, v), mask, strict=False) if flag == "1"]
        opcheck(backward, (grads, [y, y], [v], [tau], [], [1.5], stats, f"{FUSED.key}|ttts", "", 1e-5, 0, mask))


class Layer(nn.Module):
    """A step called directly, with a learned parameter and the state given back."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(7, 5)
        self.tau = nn.Parameter(torch.full((5,), 2.5))

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        y, (v,) = leaky(self.linear(x), state=(v,), tau=self.tau, gain=3.0)
        return y, v


def same_values_and_gradients(
    one: Callable[..., Any], other: Callable[..., Any], net: nn.Module, *given: Tensor
) -> None:
    """Equal outputs, bit for bit, and gradients equal up to the order of torch's own sums."""
    found = []
    for call in (one, other):
        on = [t.detach().clone().requires_grad_() for t in given]
        net.zero_grad()
        results = call(*on)
        results = results if isinstance(results, tuple) else (results,)
        sum((r * r + r).sum() for r in results).backward()
        found.append((results, [t.grad for t in (*on, *net.parameters())]))
    (expected, slopes), (got, got_slopes) = found
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
    for a, b in zip(slopes, got_slopes, strict=True):
        torch.testing.assert_close(a, b)
    assert all(g.any() for g in slopes), "no gradient arrives, so this tests nothing"


def network(device: str) -> nn.Module:
    """Two layers; the first one fires, so that gradients reach all weights."""
    net = nn.Sequential(nn.Linear(7, 5), PLIF(), nn.Linear(5, 4), LIF(v_reset=None))
    nn.init.constant_(net[0].bias, 1.0)
    return net.to(device)


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # inductor's advice on GPUs that have them
@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_in_one_graph(device: str, backend: str) -> None:
    torch._dynamo.reset()
    net = Layer().to(device)
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    for steps in (4, 20):
        same_values_and_gradients(net, compiled, net, tensor(device, steps, 3, 7), tensor(device, 3, 5))


def test_a_new_structure_inside_a_graph_is_recorded_on_the_spot(device: str) -> None:
    torch._dynamo.reset()

    @step(state={"v": 0.0})
    def fresh(x: Any, v: Any, *, soft: Any = True, tau: Any = 2.0) -> Any:
        return (x + v) / tau, 0.5 * v + x if soft else x

    compiled = torch.compile(lambda x, soft: fresh(x, soft=soft, tau=3.0)[0], fullgraph=True, backend="eager")
    x = tensor(device, 3, 4)
    for soft in (True, False, True):
        assert torch.equal(compiled(x, soft), fresh(x, soft=soft, tau=3.0)[0])
    neuron = torch.compile(
        lambda x: functional.lif(x, alpha=1.25, surrogate="gaussian"), fullgraph=True, backend="eager"
    )
    assert torch.equal(neuron(x)[0], functional.lif(x, alpha=1.25, surrogate="gaussian")[0])


def test_compiled_with_dynamic_shapes_once_for_all_batches(device: str) -> None:
    """One compilation for up to 16 steps, and one beyond, where states are kept; none per shape."""
    torch._dynamo.reset()
    net = network(device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, backend=counter, dynamic=True)
    counts = []
    for steps, batch in ((4, 3), (4, 5), (9, 2), (40, 6), (33, 3), (100, 2)):
        same_values_and_gradients(net, compiled, net, 2.0 * tensor(device, steps, batch, 7))
        counts.append(counter.frame_count)
    assert counts[:3] == [counts[0]] * 3
    assert counts[3:] == [counts[0] + 1] * 3


def test_normalised_neuron_compiled_in_one_graph(device: str) -> None:
    torch._dynamo.reset()

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.rand(4) + 0.5), nn.Parameter(torch.rand(4))

        def forward(self, y: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            values = {"tau": 2.0, "gain": 1.0}
            (s, u), (v,), _ = norm_weave(FUSED, [y, residual], values, self.weight, self.bias, eps=1e-5)
            return s, u, v

    net = Normalised().to(device)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    same_values_and_gradients(net, compiled, net, tensor(device, 3, 6, 4, 5), tensor(device, 3, 6, 4, 5))


def test_the_reference_is_compiled_too(device: str) -> None:
    torch._dynamo.reset()
    net, x = LIF(backend="reference").to(device), 3.0 * tensor(device, 4, 3)
    assert torch.equal(torch.compile(net, fullgraph=True, backend="aot_eager")(x), net(x))


def test_exported(device: str) -> None:
    net = Layer().to(device).eval()
    given = (tensor(device, 4, 3, 7), tensor(device, 3, 5))
    program = torch.export.export(net, given)
    for one, other in zip(program.module()(*given), net(*given), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_feeds_the_neuron_half_numbers(device: str, dtype: torch.dtype) -> None:
    linear, neuron = nn.Linear(7, 5).to(device), LIF()
    x = tensor(device, 4, 3, 7)
    with torch.autocast(device, dtype=dtype):
        current = linear(x)
        spikes, (v,) = neuron(current, return_state=True)
    assert current.dtype == spikes.dtype == dtype
    assert v.dtype == torch.float32
    assert torch.equal(spikes, neuron(current.detach()))
    spikes.float().sum().backward()
    assert linear.weight.grad.dtype == torch.float32
    assert linear.weight.grad.any()


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(device: str, reentrant: bool) -> None:
    net = network(device)
    x = 3.0 * tensor(device, 20, 3, 7)
    same_values_and_gradients(net, lambda x: checkpoint(net, x, use_reentrant=reentrant), net, x)


def test_inference_mode(device: str) -> None:
    neuron, x = LIF(), 3.0 * tensor(device, 20, 3, 7)
    with torch.inference_mode():
        y = neuron(x)
    assert y.is_inference()
    assert torch.equal(y, neuron(x))
    assert torch.equal(neuron(y), neuron(y.clone())), "an inference tensor is an input like any other"


def test_copies_of_a_step_and_of_modules(device: str) -> None:
    assert copy.deepcopy(leaky) is leaky
    x = 3.0 * tensor(device, 4, 3, 5)
    for net in (LIF(tau=3.0), PLIF(init_tau=torch.full((5,), 3.0)), Neuron(leaky, tau=nn.Parameter(torch.tensor(3.0)))):
        net.to(device)
        twin = copy.deepcopy(net)
        assert torch.equal(twin(x), net(x))
        assert all(a is not b for a, b in zip(twin.parameters(), net.parameters(), strict=True))


def test_pickled_neurons_come_back(device: str) -> None:
    x = 3.0 * tensor(device, 4, 3, 5)
    for net in (LIF(tau=3.0, v_reset=None), PLIF(init_tau=torch.full((5,), 3.0))):
        assert torch.equal(pickle.loads(pickle.dumps(net))(x.cpu()), net(x.cpu()))
    assert pickle.loads(pickle.dumps(LIF().step)) is LIF().step


def test_a_step_made_inside_a_function_says_that_it_cannot_be_pickled() -> None:
    @step()
    def local(x: Any) -> Any:
        return x

    with pytest.raises(pickle.PicklingError, match="local was defined inside a function"):
        pickle.dumps(local)


def test_a_second_derivative_is_refused(device: str) -> None:
    """It would be zero without a word: the kernels' gradients are numbers, not functions of the input."""
    x = tensor(device, 4, 3).requires_grad_()
    y, _ = leaky(x, backend=device)
    with pytest.raises(RuntimeError, match=r"create_graph=True.*backend='reference'"):
        torch.autograd.grad(y.sum(), x, create_graph=True)
    y, _ = leaky(x, backend="reference")
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert torch.autograd.grad(slope.sum(), x)[0].any()


def test_a_second_derivative_of_a_normalised_neuron_is_refused(device: str) -> None:
    y = tensor(device, 4, 3, 2).requires_grad_()
    weight, bias = torch.ones(2, device=device), torch.zeros(2, device=device)
    values = {"tau": 2.0, "gain": 1.0}
    (s,), _, _ = norm_weave(fused(PROGRAM, False, False), [y], values, weight, bias, eps=1e-5)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(s.sum(), y, create_graph=True)


def test_vmap_and_functional_gradients_say_that_they_do_not_work(device: str) -> None:
    x = tensor(device, 2, 4, 3)
    with pytest.raises(RuntimeError, match=r"[Bb]atching rule not implemented for spikeloom::weave"):
        torch.vmap(LIF())(x)
    with pytest.raises(RuntimeError, match=r"functorch|setup_context"):
        torch.func.grad(lambda x: LIF()(x).sum())(x)


def test_forward_mode_derivatives_are_refused(device: str) -> None:
    """They would be zero without a word."""
    x = tensor(device, 4, 3)
    with pytest.raises(NotImplementedError, match=r"no forward-mode derivatives .*backend='reference'"):
        torch.func.jvp(lambda x: leaky(x, backend=device)[0], (x,), (x,))


def test_tensor_subclasses_go_through_the_dispatcher(device: str) -> None:
    class Marked(Tensor):
        pass

    x = 3.0 * tensor(device, 4, 3)
    y, _ = leaky(x.as_subclass(Marked), backend=device)
    assert isinstance(y, Marked)
    assert torch.equal(y.as_subclass(Tensor), leaky(x, backend=device)[0])


def test_dispatch_modes_see_the_operators(device: str) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    x = tensor(device, 4, 3).requires_grad_()
    with Watch():
        leaky(x, backend=device)[0].sum().backward()
    assert "spikeloom.weave.default" in seen
    assert "spikeloom.weave_backward.default" in seen


def test_an_operator_called_for_a_step_that_was_not_recorded_says_so(device: str) -> None:
    x = tensor(device, 4, 3)
    with pytest.raises(KeyError, match="no step function with key 'nothing' was recorded"):
        torch.ops.spikeloom.weave([x], [], [], [], "nothing|", 0, False)


@pytest.mark.parametrize(("steps", "every"), [(20, 0), (20, 8), (40, 32)])
def test_checkpoints_at_another_distance_than_the_kernels_are_refused(device: str, steps: int, every: int) -> None:
    """Backward would read beyond its buffers: it holds the states of 16 steps."""
    x = tensor(device, steps, 3)
    kept = [x.new_zeros(1, (steps - 1) // every, 3)] if every else []
    arguments = ([x], [x], [], [], kept, [2.0, 1.5], f"{PROGRAM.key}|ss", every, "10:10")
    with pytest.raises(ValueError, match=rf"T = {steps} steps needs the state kept every 16 steps"):
        torch.ops.spikeloom.weave_backward(*arguments)


@pytest.mark.gpu
def test_captured_in_a_cuda_graph() -> None:
    net = network("cuda")
    given = [3.0 * torch.rand(20, 3, 7, device="cuda") for _ in range(2)]
    expected = []
    for x in given:
        net.zero_grad()
        y = net(x)
        y.sum().backward()
        expected.append((y.detach().clone(), [p.grad.clone() for p in net.parameters()]))
        del y  # its graph would tie the parameters' gradients to this stream
    x = given[0].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            net.zero_grad()
            net(x).sum().backward()
    torch.cuda.current_stream().wait_stream(stream)
    net.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = net(x)
        y.sum().backward()
    for new, (spikes, slopes) in zip(given, expected, strict=True):
        x.copy_(new)
        for p in net.parameters():
            p.grad.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(y, spikes)
        for p, slope in zip(net.parameters(), slopes, strict=True):
            torch.testing.assert_close(p.grad, slope)


@pytest.mark.gpu
def test_runs_on_the_stream_that_is_current() -> None:
    """The input is written on a side stream behind a long wait; a kernel on another stream would read zeros."""
    stream = torch.cuda.Stream()
    x, ready = torch.zeros(4, 1000, device="cuda", requires_grad=True), torch.full((4, 1000), 3.0, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.detach().copy_(ready)
        y, _ = leaky(x, backend="cuda")
        total = y.sum()
        total.backward()
    stream.synchronize()
    assert total.item() == 4000.0
    assert x.grad.eq(leaky_slope(ready)).all()


def leaky_slope(x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    leaky(x, backend="cuda")[0].sum().backward()
    return x.grad


@pytest.mark.gpu
def test_runs_on_the_device_of_its_input() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    x = 3.0 * torch.rand(20, 3, 7)
    expected = leaky(x, backend="reference")[0]
    for device in ("cuda:1", "cuda:0"):
        on = x.to(device).requires_grad_()
        y, (v,) = leaky(on, backend="cuda")
        assert y.device == v.device == torch.device(device)
        y.sum().backward()
        assert torch.equal(y.cpu(), expected)
        assert on.grad.device == torch.device(device)
    with pytest.raises(ValueError, match="is on cuda:1"):
        leaky(x.to("cuda:0"), state=(torch.zeros(3, 7, device="cuda:1"),))
