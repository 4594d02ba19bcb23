"""Recurrent layers of torch: run once as they are for the result, and once step by step to be counted.

`torch.lstm`, `gru`, `rnn_tanh` and `rnn_relu` are one fused call for all layers and steps. Their plain form, which
torch runs where cuDNN and oneDNN are switched off, is linear operations that the counter knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spikeloom.energy.meter import FUNCTIONS
from spikeloom.energy.scopes import ROLES, Role

if TYPE_CHECKING:
    from spikeloom.energy.run import Run


def _samples(module: nn.Module, x: Tensor) -> int | None:
    if x.dim() != 3:
        return None
    return x.shape[0] if getattr(module, "batch_first", False) else x.shape[1]


@contextmanager
def _plain() -> Iterator[None]:
    """Without cuDNN and oneDNN. Their own `flags` contexts touch other settings too, and warn about them."""
    cudnn, mkldnn = torch._C._get_cudnn_enabled(), torch._C._get_mkldnn_enabled()
    torch._C._set_cudnn_enabled(False)
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_cudnn_enabled(cudnn)
        torch._C._set_mkldnn_enabled(mkldnn)


def recurrent_rule(run: Run, func: Any, args: Any, kwargs: Any) -> Any:
    """Run the fused layer, then its steps again under the counter."""
    with run.paused():
        result = func(*args, **kwargs)
    scope = run.scopes.now
    before, scope.quiet = scope.quiet, True  # gates are the layer's own arithmetic
    devices = [args[0].device] if args[0].is_cuda else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), _plain():
            func(*args, **kwargs)
    finally:
        scope.quiet = before
    run.mark_outputs(result)
    return result


for _function in (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu):
    FUNCTIONS[_function] = recurrent_rule
for _layer in (nn.LSTM, nn.GRU, nn.RNN):
    ROLES[_layer] = Role(inner=_samples)
for _cell in (nn.LSTMCell, nn.GRUCell, nn.RNNCell):
    ROLES[_cell] = Role(quiet=True)
