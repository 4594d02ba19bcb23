"""Counting under a CUDA graph: a model's third call with one input shape is captured, with the counter's kernels, and
later calls are replayed.

In eager mode a GPU waits for Python, and counting is mostly Python. A replay runs the same kernels without it. It needs
what every CUDA graph needs: a model whose forward is the same sequence of kernels at every call (no state between
calls, no branch on values), one CUDA tensor as input, no gradients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from spikeloom.energy.sites import Call, Site
from spikeloom.kernels.cuda.capture import Guarded

if TYPE_CHECKING:
    from spikeloom.energy.run import Run

EAGER_CALLS = 2
"""Calls before the capture: kernels are built, and it is found out which inputs stay the same over time."""


@dataclass
class Left:
    """What a captured forward leaves at a site."""

    site: Site
    calls: list[Call]
    static_flags: list[Tensor]
    origins: list[Any] | None

    def put_back(self) -> None:
        """Leave it again, after a replay."""
        self.site.open = list(self.calls)
        self.site.static_flags = list(self.static_flags) if self.site.static is not False else []
        if self.origins is not None:
            self.site.facts["origins"] = list(self.origins)


@dataclass
class Captured:
    """A graph, its input and output, and what it leaves."""

    graph: torch.cuda.CUDAGraph
    input: Tensor
    output: Any
    left: list[Left]


class Replay:
    """Stands in for the model's `forward` while a run lasts."""

    def __init__(self, run: Run, forward: Callable[..., Any]) -> None:
        self._run = run
        self._forward = forward
        self._seen: Counter[Hashable] = Counter()
        self._captured: dict[Hashable, Captured] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward: eager at first, then replayed.

        Raises:
            ValueError: a call that a graph cannot stand for; the message says what is needed.
        """
        x = args[0] if len(args) == 1 else None
        if kwargs or not isinstance(x, Tensor) or not x.is_cuda or torch.is_grad_enabled():
            raise ValueError(
                "count(model, cuda_graph=True) needs calls model(x) with one CUDA tensor and without gradients "
                "(torch.no_grad() or torch.inference_mode()); count this model without cuda_graph"
            )
        module = self._run.model
        assert module is not None
        key = (x.shape, x.dtype, x.device, module.training, *(p._version for p in module.parameters()))
        self._seen[key] += 1
        if self._seen[key] <= EAGER_CALLS:
            return self._forward(x)
        if key not in self._captured:
            self._captured[key] = self._capture(x)
        held = self._captured[key]
        with self._run.paused():
            held.input.copy_(x)
            held.graph.replay()
            for left in held.left:
                left.put_back()
            return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, held.output)

    def _capture(self, x: Tensor) -> Captured:
        with self._run.paused():
            held = x.clone()
        self._run.marks.of(held)  # an input like x
        graph = torch.cuda.CUDAGraph()
        try:
            with Guarded(x.device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
                output = self._forward(held)
        except RuntimeError as error:
            raise ValueError(
                f"the model cannot be captured in a CUDA graph ({str(error).splitlines()[0]}); "
                "count it without cuda_graph"
            ) from error
        left = [
            Left(site, site.open, site.static_flags, site.facts.get("origins"))
            for site in self._run.sites.values()
            if site.open
        ]
        return Captured(graph, held, output, left)
