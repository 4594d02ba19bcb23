"""Training steps that never wait for the device, so that they can be replayed from a graph.

What changes from step to step lies in scalar tensors: the learning rate, the share of the weights in their average,
and the flag `bad`. A loss or gradient that is not finite raises the flag; then the optimizer's kernel changes nothing,
the average takes nothing in, and the model's buffers (statistics of normalisations) are put back. The flag stays up
until the report is read (`Updates.forget`): nothing changes in the steps sent meanwhile either, so whoever reads the
report of the bad step, some steps later, finds weights, buffers, average and optimizer as they were before it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikeloom.training.ema import Ema
from spikeloom.training.engine import Engine, Judge, Piece
from spikeloom.training.graph import WARMUP, Recorder, Replayed
from spikeloom.training.model_hooks import settle_model
from spikeloom.training.optim import in_memory_as, set_rate

Say = Callable[[int, str], None]
"""Is told something by a training: (step, text)."""


def samples_in(targets: Tensor) -> int:
    """Samples that targets stand for: labels `[B]`, shares of classes `[B, K]`, or the tokens of texts `[T, B]`."""
    return len(targets) if targets.is_floating_point() else targets.numel()


class DeviceStep:
    """Forward, loss, backward, clipping, optimizer and average, on tensors that stay where they are.

    Args:
        model, ema: on their device. optimizer: Adam or AdamW, capturable. clip_norm: largest norm of the gradient.
        engine: how the gradient comes about; None: in one pass, in this process alone.
    """

    def __init__(
        self,
        model: nn.Module,
        judge: Judge,
        optimizer: torch.optim.Adam,
        ema: Ema | None,
        clip_norm: float | None,
        engine: Engine | None = None,
    ) -> None:
        self.model, self.optimizer, self.ema = model, optimizer, ema
        self._engine = Engine(model, judge) if engine is None else engine
        self.divided = self._engine.team.size > 1
        self._limit = clip_norm or math.inf  # without a limit, a finite gradient is multiplied by 1
        rate = optimizer.param_groups[0]["lr"]
        self.bad = torch.zeros_like(rate)
        optimizer.found_inf = self.bad  # type: ignore[attr-defined]  # the fused kernel reads it, as from a GradScaler
        self._weight = torch.zeros_like(rate)
        self._result = torch.zeros(3, dtype=torch.float64, device=rate.device)
        self._buffers = Buffers(model)

    def prepare(self, rate: float) -> None:
        """Write the numbers of the coming step; the average counts it."""
        set_rate(self.optimizer, rate)
        if self.ema is not None:
            self._weight.fill_(self.ema.weight)
            self.ema.updates += 1

    def run(self, pieces: Sequence[Piece]) -> None:
        """The step; host work beside it does not depend on the values of tensors, unless the model's or loss's does."""
        self._buffers.keep()
        self.optimizer.zero_grad(set_to_none=True)
        loss, correct = self._engine.gradient(pieces)
        norm = self._engine.norm(self._limit)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        with torch.no_grad():
            self.bad.copy_(torch.maximum(self.bad, (~(loss.isfinite() & norm.isfinite())).to(self.bad.dtype)))
            for p in parameters:
                assert p.grad is not None
                p.grad = in_memory_as(p.grad, p)
            self.optimizer.step()
            settle_model(self.model)
            self._engine.share_buffers()
            self._buffers.restore(self.bad)
            if self.ema is not None:
                self.ema.blend(self._weight * (1 - self.bad))
            right = torch.full_like(self._result[0], math.nan) if correct is None else correct
            self._result.copy_(torch.stack([value.double() for value in (loss, norm, right)]))

    def report(self) -> Report:
        """What the last step came to."""
        return Report(self._result)


class Report:
    """A copy of a result `[3]`, on its way to the host: loss, norm of the gradient, samples classified correctly."""

    def __init__(self, result: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if result.device.type != "cuda":
            self._values = result.clone()
            return
        self._values = torch.empty_like(result, device="cpu", pin_memory=True)
        with torch.cuda.device(result.device):
            self._values.copy_(result, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> tuple[float, float, int | None]:
        """Wait for it; no correct samples: the task has no labels."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, norm, correct = self._values.tolist()
        return loss, norm, None if math.isnan(correct) else int(correct)


@dataclass(frozen=True)
class Sent:
    """A step on its way, its number, learning rate and samples, and its report."""

    step: int
    rate: float
    samples: int
    report: Report


class Updates:
    """Sends steps to the device, from graphs where that is possible.

    Args:
        step: what to send.
        recorder: makes the recorder of graphs; None: no graphs.
        setting: "on": a capture that fails is an error. "auto": steps are sent one operation at a time from then on.
        obstacle: why there are no graphs, to be told at the first step; None: nobody expects any.
        say: is told, once, why there are no graphs.
    """

    def __init__(
        self,
        step: DeviceStep,
        recorder: Callable[[], Recorder] | None,
        setting: str = "auto",
        obstacle: str | None = None,
        say: Say | None = None,
    ) -> None:
        self.sent: deque[Sent] = deque()
        self._step, self._setting, self._obstacle = step, setting, obstacle
        self._say: Say = (lambda step, text: None) if say is None else say
        self._now = 0
        self._recorder = recorder
        self.graphs = None if recorder is None else Replayed(self._maskless, recorder, self._failed)

    def renew(self, warmup: int = WARMUP) -> None:
        """Record anew from here on, because the model does something else now.

        warmup: calls before; 1 where only numbers are others, so that all kernels are there already.
        """
        if self.graphs is not None and self._recorder is not None and not self.graphs.gave_up:
            self._step.optimizer.zero_grad(set_to_none=True)  # gradients of a replay lie in the graphs' memory
            self.graphs = Replayed(self._maskless, self._recorder, self._failed, warmup)

    def send(self, pieces: Sequence[Piece], samples: int, step: int, rate: float) -> None:
        """Send a step on a batch of so many samples, and note that its report is still to be read.

        Raises:
            ValueError: the step was to be captured, and cannot be.
        """
        self._now = step
        if self._obstacle is not None:
            self._tell(self._obstacle)
            self._obstacle = None
        self._step.prepare(rate)
        if self.graphs is None:
            self._step.run(pieces)
        else:
            self.graphs(*(tensor for piece in pieces for tensor in self._inputs(piece)))
        self.sent.append(Sent(step, rate, samples, self._step.report()))

    def forget(self, step: int) -> int:
        """Take back what was sent from a bad step on, which changed nothing; returns how many steps these are.

        The flag goes down behind them, so that steps sent from now on are taken again.
        """
        undone = sum(sent.step >= step for sent in self.sent)
        for _ in range(undone):
            self.sent.pop()
        if self._step.ema is not None:
            self._step.ema.updates -= undone
        self._step.bad.zero_()
        return undone

    def release(self) -> None:
        """Free the memory of the graphs; steps that follow are sent one operation at a time."""
        self.graphs = None
        self._step.optimizer.zero_grad(set_to_none=True)  # gradients of a replay lie in the graphs' memory

    def _inputs(self, piece: Piece) -> tuple[Tensor, ...]:
        """What a graph is given anew; its share only where the batch is divided among processes, by no fixed rule."""
        if not self._step.divided:
            return piece.frames, piece.targets
        share = torch.full((), float(piece.weight), dtype=torch.float64, device=piece.frames.device)
        return piece.frames, piece.targets, share

    def _maskless(self, *inputs: Tensor) -> None:
        """Frames, targets and shares of each piece, by turns, of a task that draws no masks."""
        masks = torch.Generator()
        if self._step.divided:
            parts = zip(inputs[::3], inputs[1::3], inputs[2::3], strict=True)
            self._step.run([Piece(frames, targets, masks, share) for frames, targets, share in parts])
            return
        pairs = list(zip(inputs[::2], inputs[1::2], strict=True))
        total = sum(samples_in(targets) for _, targets in pairs)
        shares = [1.0 if len(pairs) == 1 else samples_in(targets) / total for _, targets in pairs]
        self._step.run([Piece(*pair, masks, share) for pair, share in zip(pairs, shares, strict=True)])

    def _failed(self, reason: str) -> None:
        if self._setting == "on":
            raise ValueError(
                f'The recipe\'s cuda_graph is "on", but a step cannot be captured: {reason}. Train without graphs: '
                "--cuda-graph off, or auto."
            )
        self._tell(reason)

    def _tell(self, reason: str) -> None:
        self._say(self._now, f"steps are not captured in CUDA graphs, and run one operation at a time: {reason}")


class Buffers:
    """Copies of a model's saved buffers, one tensor for each dtype, to put them back; a few launches for all."""

    def __init__(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        groups: dict[torch.dtype, list[Tensor]] = {}
        for name, value in model.state_dict().items():
            if name not in parameters and value.numel():
                groups.setdefault(value.dtype, []).append(value)
        self._groups = [(buffers, *_flat(buffers)) for buffers in groups.values()]

    def keep(self) -> None:
        """Remember the buffers as they are."""
        with torch.no_grad():
            for buffers, _, kept in self._groups:
                torch._foreach_copy_(kept, buffers)

    def restore(self, flag: Tensor) -> None:
        """Put the buffers back where the flag is not 0."""
        with torch.no_grad():
            for buffers, flat, kept in self._groups:
                now = torch.cat([buffer.reshape(-1) for buffer in buffers])
                flat.copy_(torch.where(flag != 0, flat, now))
                torch._foreach_copy_(buffers, kept)


def _flat(tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Room for all values of tensors, and the part of it that is each one's, in its shape."""
    flat = torch.empty(sum(tensor.numel() for tensor in tensors), dtype=tensors[0].dtype, device=tensors[0].device)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return flat, [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
