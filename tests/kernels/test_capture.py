"""What `Guarded` keeps from captures, and captures from."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from spikeloom.kernels.cuda.capture import Guarded

pytestmark = pytest.mark.gpu


def graph_of(x: torch.Tensor) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with Guarded(x.device), torch.cuda.graph(graph):
        x.add_(1)
    return graph


def capture_what_waits(x: torch.Tensor) -> None:
    with Guarded(x.device), torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.rand(4, device="cuda")
        x.sum().item()


def test_the_collector_waits_for_the_end() -> None:
    x = torch.zeros(3, device="cuda")
    dropped: list[Any] = [graph_of(x)]
    dropped.append(dropped)  # a cycle, so that the collector alone frees the graph
    del dropped
    graph, during = torch.cuda.CUDAGraph(), []
    assert gc.isenabled()
    with Guarded(x.device), torch.cuda.graph(graph):
        during.append(gc.isenabled())
        x.mul_(2)
    assert during == [False]
    assert gc.isenabled()
    x.fill_(3)
    graph.replay()
    assert x.tolist() == [6, 6, 6]


def test_a_failed_capture_leaves_the_generator_usable() -> None:
    x = torch.ones(3, device="cuda")
    torch.cuda.manual_seed(5)
    expected = torch.rand(4, device="cuda")
    torch.cuda.manual_seed(5)
    main = torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        capture_what_waits(x)
    assert torch.cuda.current_stream() == main
    assert gc.isenabled()
    assert torch.equal(torch.rand(4, device="cuda"), expected)
    graph_of(x).replay()
    assert x.tolist() == [2, 2, 2]
