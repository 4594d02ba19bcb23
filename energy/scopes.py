"""`Scopes`: which module is running, and what that says about names, rows and things not to count.

Global hooks follow every module's forward. A module's role is looked up by its class in `ROLES`; other packages'
neurons and layers are added there by `register_neuron`, `register_delays` and the bridges.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from spikeloom.energy.bridges import connect
from spikeloom.energy.rows import lead_of

if TYPE_CHECKING:
    from spikeloom.energy.run import Run

Finish = Callable[["Run", nn.Module, tuple[Any, ...], Any], None]


@dataclass(frozen=True)
class Role:
    """What a class of modules is to the counter.

    Attributes:
        silent: nothing inside is counted; `finish` counts from the module's inputs and output.
        opaque: the same for operations; layers of neurons that report themselves are counted.
        quiet: linear operations inside are counted, additions, products and maps are not: they are a neuron's own.
        inner: the samples of an input whose module works on [L, samples, ...] inside, whatever the input's own layout.
        begin: called before forward as `begin(module, args)`; what it returns is the scope's `kept` until the end.
        finish: called after forward as `finish(run, module, args, output)`.
        order: how the module folds T and B for an input, if not as the surrounding does.
        states: names of buffers that hold the module's state, and are no weights.
    """

    silent: bool = False
    opaque: bool = False
    quiet: bool = False
    inner: Callable[[nn.Module, Tensor], int | None] | None = None
    begin: Callable[[nn.Module, tuple[Any, ...]], Any] | None = None
    finish: Finish | None = None
    order: Callable[[Tensor], str] | None = None
    states: tuple[str, ...] = ()


ROLES: dict[type, Role] = {}


def role_of(module: nn.Module) -> Role:
    """The role of the nearest class in the module's method resolution order."""
    kinds = type(module).__mro__
    for kind in kinds:
        if kind in ROLES:
            return ROLES[kind]
    return role_of(module) if connect(kinds) else Role()


@dataclass
class Scope:
    """A running module, and what holds inside of it."""

    module: nn.Module | None
    name: str
    role: Role
    lead: str | None = None
    order: str = "TB"
    inner: int | None = None
    silent: bool = False
    opaque: bool = False
    quiet: bool = False
    kept: Any = None
    calls: Counter[str] = field(default_factory=Counter)


class Scopes:
    """The stack of running modules."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._names: dict[int, str] = {}
        self._unnamed: Counter[str] = Counter()
        self._kept: list[nn.Module] = []
        self._handles: list[Any] = []
        self.stack: list[Scope] = [Scope(None, "", Role())]

    @property
    def now(self) -> Scope:
        """The innermost scope."""
        return self.stack[-1]

    def enter(self, model: nn.Module | None) -> None:
        """Follow modules from here on."""
        if model is not None:
            for name, module in model.named_modules():
                self._adopt(module, name.replace("_orig_mod.", "").removesuffix("_orig_mod"))
        self._handles = [
            hooks.register_module_forward_pre_hook(self._before),
            hooks.register_module_forward_hook(self._after, always_call=True),
        ]

    def leave(self) -> None:
        """Stop following."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.stack = self.stack[:1]

    def restart(self) -> None:
        """Begin a pass: operations are numbered from 0 again."""
        self.stack[0].calls.clear()
        self.stack[0].lead = None
        self.stack[0].order = self._run.current.order if self._run.current else "TB"

    def _adopt(self, module: nn.Module, name: str) -> None:
        self._names[id(module)] = name
        self._kept.append(module)
        prefix = f"{name}." if name else ""
        parts = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        states = role_of(module).states
        self._run.marks.weights((prefix + key, tensor) for key, tensor in parts if key not in states)

    def name_of(self, module: nn.Module) -> str:
        """The module's path in the model; modules outside of it are named by class and order of appearance."""
        if id(module) not in self._names:
            kind = type(module).__name__.lower()
            above = self.now.name
            self._unnamed[kind] += 1
            name = f"{kind}_{self._unnamed[kind] - 1}"
            self._adopt(module, f"{above}.{name}" if above else name)
        return self._names[id(module)]

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() == self._run.thread:
            with torch._C.DisableTorchFunction():
                self._begin(module, args)
        elif module is self._run.model:
            raise RuntimeError(
                "the model was called in another thread than the one that entered count(); torch shows its operations "
                "to one thread alone, so enter count() in the thread that runs the model"
            )

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        run = self._run
        run.module_begins(module, args)
        if run.current is None:
            return
        above, role = self.now, role_of(module)
        scope = Scope(module, self.name_of(module), role, above.lead, above.order)
        scope.silent = above.silent or role.silent
        scope.opaque = above.opaque or role.opaque
        scope.quiet = above.quiet or role.quiet
        x = next((a for a in args if isinstance(a, Tensor)), None)
        if x is not None:
            if (found := lead_of(x.shape, run.current)) is not None:
                scope.lead, scope.order, scope.inner = found.lead, found.order or above.order, found.inner
            if role.order is not None and scope.lead == "multi":
                scope.order = role.order(x)
            if role.inner is not None and run.current.order_of(x.shape) is None:
                scope.inner = role.inner(module, x)
        if role.begin is not None:
            scope.kept = role.begin(module, args)
        self.stack.append(scope)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        run = self._run
        if run.current is None or threading.get_ident() != run.thread:
            return
        while len(self.stack) > 1 and self.now.module is not module:  # left by an exception
            self.stack.pop()
        scope, above = self.now, self.stack[max(len(self.stack) - 2, 0)]
        failed = sys.exc_info()[0] is not None
        try:
            if scope.role.finish is not None and not above.silent and not failed and run.counts_now:
                with run.paused():
                    scope.role.finish(run, module, args, output)
        finally:
            if len(self.stack) > 1:
                self.stack.pop()
        run.module_ends(module, failed)
