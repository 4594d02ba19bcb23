"""Several processes: forked and spawned workers, data parallel training, statistics shared between processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from spikeloom.kernels import detach, spike, step, where


@step(state={"v": 0.0})
def leaky(x: Any, v: Any, *, tau: Any = 2.0) -> Any:
    h = v + (x - v) / tau
    s = spike(h - 0.5, "triangle", 0.5)
    return s, where(detach(s), 0.0, h)


FORK = """
import faulthandler, os, traceback, warnings
import torch
from spikeloom.neurons import LIF

faulthandler.enable()
faulthandler.dump_traceback_later(60, exit=True)
warnings.filterwarnings("ignore", ".*use of fork.* may lead to deadlocks", DeprecationWarning)
torch.set_num_threads(2)
x = 2 * torch.rand((40, 5000), generator=torch.Generator().manual_seed(0))
leaf, neuron = x.clone().requires_grad_(), LIF(backend="cpu")

def work():
    y = neuron(leaf)
    (slope,) = torch.autograd.grad(y, leaf, x)
    return y.detach().numpy().tobytes() + slope.numpy().tobytes()

expected = work()
child = os.fork()  # as DataLoader makes its workers
if child == 0:
    try:
        os._exit(0 if work() == expected else 3)
    except BaseException:
        traceback.print_exc()
        os._exit(4)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert work() == expected, "the parent still works"
print("equal")
"""


def test_a_forked_child_runs_kernels_although_the_parent_ran_them_on_threads() -> None:
    """In a process of its own, whose threads are those of the kernels alone."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("equal\n", 0), done.stderr


def test_kernels_run_in_threads(generator: torch.Generator) -> None:
    from concurrent.futures import ThreadPoolExecutor

    given = [2.0 * torch.rand((40, n), generator=generator) for n in range(1, 200, 10)]

    def work(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.clone().requires_grad_()
        y, _ = leaky(leaf, backend="cpu")
        y.backward(x)
        return y, leaf.grad

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, given))
    for x, (y, slope) in zip(given, together, strict=True):
        alone = work(x)
        assert torch.equal(y, alone[0])
        assert torch.equal(slope, alone[1])


SPAWN = """
import sys
import torch
import torch.multiprocessing as mp
from spikeloom.neurons import LIF

def work(queue, neuron, x):
    queue.put(neuron(x).sum().item())

if __name__ == "__main__":
    torch.manual_seed(0)
    neuron, x = LIF(), 3 * torch.rand(20, 300)
    expected = neuron(x).sum().item()
    context = mp.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=work, args=(queue, neuron, x))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join()
    assert child.exitcode == 0
    print("equal")
"""


def test_a_spawned_worker_gets_a_module_and_runs_it(tmp_path: Path) -> None:
    script = tmp_path / "spawn.py"
    script.write_text(SPAWN)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.stdout == "equal\n", done.stderr


PAIR = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from spikeloom.kernels.norm import Running, norm_weave
from spikeloom.kernels.norm.programs import fused
from spikeloom.neurons import LIF, PLIF

rank, device, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if device == "cuda":
    device = f"cuda:{rank}"
    torch.cuda.set_device(device)
network = "gloo" if device == "cpu" else "nccl"
dist.init_process_group(network, init_method=f"file://{folder}/meet", rank=rank, world_size=2)
group = dist.group.WORLD
torch.manual_seed(0)

def data_parallel():
    net = nn.Sequential(nn.Linear(7, 5), PLIF(), nn.Linear(5, 4), LIF()).to(device)
    x = 3 * torch.rand(20, 6, 7, device=device)
    alone = [g.clone() for g in torch.autograd.grad(net(x).sum(), list(net.parameters()))]
    parallel = DistributedDataParallel(net)
    half = x[:, 3 * rank : 3 * rank + 3]
    (2 * parallel(half).sum()).backward()   # gradients are averaged over the two
    for p, g in zip(net.parameters(), alone, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-5, atol=1e-5)
        assert g.any()

def leaves(*tensors):
    return [t.to(device).requires_grad_() for t in tensors]

def shared_statistics(dtype, steps, shares, residual):
    "Each process has its share of the batch: as one process with the whole batch."
    neuron = PLIF().to(device)
    program = fused(neuron.program, residual, True)
    generator = torch.Generator().manual_seed(1)
    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    y, r = (3 + 2 * draw(steps, 6, 4, 5)).to(dtype), draw(steps, 6, 4, 5).to(dtype)
    weight, bias, cotangent = draw(4) + 1, draw(4), draw(steps, 6, 4, 5).to(dtype)

    def run(rows, group):
        inputs = leaves(*([y[:, rows], r[:, rows]] if residual else [y[:, rows]]))
        w, b = leaves(weight.to(torch.float32 if dtype != torch.float64 else dtype), bias.to(dtype))
        buffers = (t.to(device) for t in (torch.zeros(4), torch.ones(4), torch.tensor(0)))
        running = Running(*buffers, 0.1)
        neuron.zero_grad()
        (s, u), _, stats = norm_weave(program, inputs, neuron.runtime(), w, b, eps=1e-5, group=group, running=running)
        g = cotangent[:, rows].to(device)
        torch.autograd.backward([s, u], [g, g])
        shared = [w.grad, b.grad, neuron.w.grad.clone()]
        for t in shared:
            if group is not None:
                dist.all_reduce(t)
        kept = [running.mean, running.var]
        return [s.detach(), u.detach(), *[t.grad for t in inputs]], shared, stats, kept

    first, second = shares
    mine = slice(0, first) if rank == 0 else slice(first, first + second)
    whole = run(slice(0, first + second), None)
    part = run(mine, group)
    rtol = 1e-9 if dtype == torch.float64 else 1e-4
    def close(a, b):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item())
    for a, b in zip(part[0], whole[0], strict=True):
        close(a, b[:, mine])
    for a, b in zip(part[1], whole[1], strict=True):
        close(a, b)
    close(part[2], whole[2])
    for a, b in zip(part[3], whole[3], strict=True):
        torch.testing.assert_close(a, b)

data_parallel()
for dtype, steps, shares, residual in (
    (torch.float64, 4, (3, 3), False), (torch.float64, 20, (1, 5), True), (torch.float32, 4, (2, 4), True)
):
    shared_statistics(dtype, steps, shares, residual)
dist.barrier()
dist.destroy_process_group()
print("agreed")
"""


def test_two_processes_train_as_one(tmp_path: Path, device: str) -> None:
    """DistributedDataParallel around neurons; statistics shared as SyncBatchNorm does, also by unequal parts."""
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PAIR]
    both = [
        subprocess.Popen(
            [*command, str(rank), device, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        for process in both:
            out, errors = process.communicate(timeout=120)
            assert out == "agreed\n", errors
    finally:
        for process in both:
            process.kill()
