"""Whether anybody waits for the calls of a module: then it has to be called as it is, with all that it computes."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as hooks


def hooked(module: nn.Module) -> bool:
    """Whether the module has hooks, forward or backward, its own or of all modules, or another `forward` put on it."""
    own = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(own) or "forward" in module.__dict__ or hooks._has_any_global_hook()
