"""`count`: the context in which a network's operations are counted, and `Run`, what it hands out."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spikeloom.energy.counts import KINDS, Counts
from spikeloom.energy.finish import finish
from spikeloom.energy.kinds import MAX_LEVELS
from spikeloom.energy.marks import Mark, Marks
from spikeloom.energy.meter import Functions, Meter
from spikeloom.energy.passes import Passes
from spikeloom.energy.pause import Paused
from spikeloom.energy.reading import check_axes, read_batch
from spikeloom.energy.replay import Replay
from spikeloom.energy.rows import Batch
from spikeloom.energy.rules.neurons import count_program
from spikeloom.energy.scopes import Scopes
from spikeloom.energy.sites import Site
from spikeloom.kernels.program import Program
from spikeloom.kernels.watch import watching

if TYPE_CHECKING:
    from spikeloom.energy.report import Report


class UncountedError(RuntimeError):
    """An operation that the counter has no rule for, in strict mode."""


class Run:
    """Counts what runs inside `with count(...) as run:`; several calls of the model are several batches.

    Attributes:
        current: time steps and samples of the pass that is running, None between passes.
        sites: places counted so far, in the order in which they first ran.
    """

    def __init__(
        self,
        model: nn.Module | None,
        *,
        T: int | None,
        axes: str,
        kinds: Mapping[str, str],
        strict: bool,
        max_levels: int,
        weights: Sequence[Tensor],
        cuda_graph: bool,
    ) -> None:
        self.model = model
        self._cuda_graph = cuda_graph
        self.strict = strict
        self.max_levels = max_levels
        self.kinds = dict(kinds)
        self.marks = Marks()
        self.scopes = Scopes(self)
        self.sites: dict[tuple[str, str], Site] = {}
        self.uncounted: dict[tuple[str, str], list[int]] = {}
        self.sizes: list[tuple[int, int]] = []
        self.passes = Passes()
        self.current: Batch | None = None
        self._T, self._axes = T, axes
        self._explicit = False
        self._pending: tuple[int, int | None] | None = None
        self._depth = 0
        self._steps = 0
        self.thread: int | None = None
        self.pauses = 0
        self._stack = ExitStack()
        self.setting: dict[str, Any] = {}
        self.marks.weights((f"weight_{i}", weight) for i, weight in enumerate(weights))

    # --- the context -----------------------------------------------------------------------------------------------

    def __enter__(self) -> Run:
        if self.thread is not None:
            raise RuntimeError(
                "this run is counting already; leave its `with` block first, or use a count() of its own"
            )
        self.thread = threading.get_ident()
        self.marks.renew()  # weights may have been edited since the last block
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # its fused kernels hide the products
        self._stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        self._stack.enter_context(torch.compiler.set_stance("force_eager"))
        self._stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="Using `torch.compile\\(module\\)` when there are global hooks")
        torch.clear_autocast_cache()  # a cast made before is not known to be a weight
        if self._cuda_graph:
            self._stack.enter_context(self._replayed())
        self.scopes.enter(self.model)
        self._stack.callback(self.scopes.leave)
        self._stack.enter_context(watching(self))
        self._stack.enter_context(Functions(self))
        self._stack.enter_context(Meter(self))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._stack.close()
        self.thread = None
        if self.current is not None and kind is None:
            self._close()
        self._drop()

    @contextmanager
    def _replayed(self) -> Iterator[None]:
        """Put `Replay` in the place of the model's forward."""
        model = self.model
        assert model is not None
        own = model.__dict__.get("forward")
        model.forward = Replay(self, model.forward)
        try:
            yield
        finally:
            if own is None:
                del model.forward
            else:
                model.forward = own

    @contextmanager
    def batch(self, T: int, B: int | None = None) -> Iterator[None]:
        """One batch of T steps, whatever calls it takes: for code without a module, and for loops over time outside.

        Args:
            T: time steps. Layers that see one step per call count their k-th call as step k.
            B: samples; None: modules are called with one step, [B, ...]. Give B where they are called with
                [T, B, ...], or with chunks [t, B, ...] of it.

        Raises:
            RuntimeError: inside another batch.
        """
        if self.current is not None or self._pending is not None:
            raise RuntimeError("a batch is being counted already; leave it before the next one begins")
        if T < 1 or (B is not None and B < 1):
            raise ValueError(f"got T={T}, B={B}; a batch has at least one step and one sample")
        self._explicit, self._pending, self._steps = True, (T, B), 0
        if B is not None:
            self._open(Batch(T, B, self._axes, T))
        try:
            yield
            self._check_steps(T)
        except BaseException:
            self._drop()
            raise
        else:
            self._close()
        finally:
            self._explicit, self._pending, self._steps = False, None, 0

    def _check_steps(self, T: int) -> None:
        ran = self._steps or self.uncounted or any(site.open for site in self.sites.values())
        if self.current is None or not ran:
            raise ValueError(f"batch(T={T}): nothing ran in the block")
        if self.model is not None and self._pending == (T, None) and self._steps not in (0, T):
            raise ValueError(
                f"batch(T={T}) saw {self._steps} time steps of the model; open one batch for each batch of samples, "
                "with all its steps inside"
            )

    # --- passes ----------------------------------------------------------------------------------------------------

    def module_begins(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module's forward begins: the outermost one opens a pass."""
        if self.pauses or torch._C._current_graph_task_id() != -1:
            return
        if self.current is None:
            if self.model is not None and module is not self.model and not self._explicit:
                return
            if self.model is None and not self._explicit:
                raise RuntimeError(
                    f"{type(module).__name__} was called under count() without a model: say which, count(model), or "
                    "mark batches with `with run.batch(T=..., B=...):`"
                )
            self._open(read_batch(args, self._T, self._axes, self._pending))
        elif self._explicit and len(self.scopes.stack) == 1:
            self._steps_of(args)
        if self.current is not None and self.current.network:
            check_axes(module, args, self.current)
        if module is self.model:
            self._steps += self.current.steps if self._depth == 0 and self.current is not None else 0
            self._depth += 1

    def module_ends(self, module: nn.Module, failed: bool) -> None:
        """A module's forward ended: with the model's, the pass is complete, or lost if it failed."""
        if module is self.model and self.current is not None:
            self._depth -= 1
            if self._depth == 0 and not self._explicit:
                if failed:
                    self._drop()
                else:
                    self._close()

    def _steps_of(self, args: tuple[Any, ...]) -> None:
        """How many time steps a call inside an explicit batch sees: all, one ([B, ...]), or a chunk ([t, B, ...])."""
        batch = self.current
        x = next((a for a in args if isinstance(a, Tensor)), None)
        if batch is None or x is None:
            return
        axis = batch.order.index("T")
        chunk = (
            self._pending != (batch.T, None)
            and x.dim() >= 2
            and x.shape[1 - axis] == batch.B
            and x.shape[axis] <= batch.T
        )
        single = x.shape[0] == batch.B and not (chunk and x.dim() >= 3)
        self.current = replace(batch, steps=x.shape[axis] if chunk and not single else 1)

    def _open(self, batch: Batch) -> None:
        if self.sizes and self.sizes[0][0] != batch.T:
            self._drop()
            raise ValueError(
                f"a batch of {batch.T} time steps after batches of {self.sizes[0][0]}: one run has one number of "
                "steps; count the others in a run of their own"
            )
        self.current = batch
        self.scopes.restart()

    def _close(self) -> None:
        batch, self.current = self.current, None
        assert batch is not None
        try:
            with self.paused():
                self.passes.close(list(self.sites.values()), len(self.sizes), batch)
            self.sizes.append((batch.T, batch.B))
        finally:
            self._drop()

    def _drop(self) -> None:
        """Forget an unfinished pass; what earlier passes counted stays."""
        self.current, self._depth = None, 0
        self.scopes.stack = self.scopes.stack[:1]
        self.marks.forget()
        for site in self.sites.values():
            site.drop()

    # --- for the rules ---------------------------------------------------------------------------------------------

    @property
    def counting(self) -> bool:
        """Is an operation that runs now to be counted? Not between passes, in backward, or inside a silent module."""
        scope = self.scopes.stack[-1]
        return (
            self.current is not None
            and not self.pauses
            and not scope.silent
            and not scope.opaque
            and torch._C._current_graph_task_id() == -1
        )

    @property
    def counts_now(self) -> bool:
        """The same, but for silence."""
        return self.current is not None and not self.pauses and torch._C._current_graph_task_id() == -1

    def saw_neurons(
        self,
        program: Program,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        affine: tuple[Tensor, Tensor] | None,
    ) -> None:
        """A program of the loom ran."""
        if self.counts_now and not self.scopes.now.silent:
            count_program(self, program, inputs, outputs, affine)

    def paused(self) -> AbstractContextManager[None]:
        """Operations of the counter itself are not counted, and not even shown to its modes."""
        return Paused(self)

    def site(self, name: str, op: str) -> Site:
        """The site of a name and operation, made at its first use."""
        key = (name, op)
        if key not in self.sites:
            self.sites[key] = Site(name, op)
        return self.sites[key]

    def unknown(self, op: str, outputs: Sequence[Tensor]) -> None:
        """Note an operation without a rule.

        Raises:
            UncountedError: in strict mode.
        """
        where = self.scopes.now.name
        if self.strict:
            raise UncountedError(
                f"{op} in {where or 'the model'} has no counting rule, so its cost is unknown. Register one with "
                f"spikeloom.energy.register_op({op!r}, rule), or count with strict=False to have it listed"
            )
        entry = self.uncounted.setdefault((op, where), [0, 0])
        entry[0] += 1
        entry[1] = max(entry[1], sum(t.numel() for t in outputs))

    def mark_outputs(self, output: Any, mark: Mark | None = None) -> None:
        """Mark the tensors of a result, by default as activations that were computed."""
        self.marks.put_all(output, mark or Mark())

    # --- results ---------------------------------------------------------------------------------------------------

    def counts(self) -> Counts:
        """Everything counted so far.

        Raises:
            RuntimeError: nothing ran.
            KeyError: an override in `kinds` names no layer.
        """
        if not self.sizes:
            raise RuntimeError(
                "nothing was counted: the model was not called inside `with count(model) as run:` (an empty loader?)"
            )
        self.passes.gather()
        return finish(self)

    def report(self, **options: Any) -> Report:
        """The counts as a `Report`; options as there."""
        from spikeloom.energy.report import Report

        return Report(self.counts(), **options)


def count(
    model: nn.Module | None = None,
    *,
    T: int | None = None,
    axes: str = "TB",
    kinds: Mapping[str, str] | None = None,
    strict: bool = False,
    max_levels: int = MAX_LEVELS,
    weights: Sequence[Tensor] = (),
    cuda_graph: bool = False,
) -> Run:
    """Count the synaptic operations of everything that a model does inside a `with` block.

        with spikeloom.energy.count(net) as run:
            for frames in loader:        # [T, B, ...]
                net(frames)
        print(run.report())

    Nothing about the model is changed: hooks and dispatch modes watch it and go with the block. Only forward passes are
    counted. Fused attention, compiled code and the like run in their plain form inside the block.

    Args:
        model: its calls are the batches. None: any code, with batches marked by `run.batch(T, B)`.
        T: for a model that is given [B, ...] and loops over time, or repeats its input, itself; None: inputs are
            [T, B, ...].
        axes: "TB", or "BT" for models that take [B, T, ...].
        kinds: overrides, from a layer's name (or "input", all network inputs) to a value kind such as "binary".
        strict: raise on an operation without a counting rule instead of listing it.
        max_levels: integers up to this size are spikes, beyond they are analogue values.
        weights: tensors that are weights though no module owns them.
        cuda_graph: on a GPU, capture the model and the counting with it, and replay; many times faster, for models that
            do the same at every call (`energy/replay.py`).

    Raises:
        TypeError: model is not a module.
        ValueError: unknown axes or kinds; cuda_graph without a model.
    """
    if model is not None and not isinstance(model, nn.Module):
        hint = '; a registered model is made by create_model("NAME")' if isinstance(model, str) else ""
        raise TypeError(
            f"count() takes the nn.Module whose calls are counted, or None, got a {type(model).__name__}{hint}"
        )
    if cuda_graph and model is None:
        raise ValueError("cuda_graph=True captures a model; give one, count(model, cuda_graph=True)")
    if axes not in ("TB", "BT"):
        raise ValueError(f"axes={axes!r}; expected 'TB' (time first) or 'BT'")
    if T is not None and T < 1:
        raise ValueError(f"T={T}; a network runs for at least one time step")
    for name, kind in (kinds or {}).items():
        if kind not in KINDS:
            raise ValueError(f"kinds[{name!r}] = {kind!r}; expected one of {', '.join(KINDS)}")
    return Run(
        model,
        T=T,
        axes=axes,
        kinds=kinds or {},
        strict=strict,
        max_levels=max_levels,
        weights=weights,
        cuda_graph=cuda_graph,
    )
