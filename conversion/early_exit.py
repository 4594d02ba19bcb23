"""`EarlyExit`: a spiking classifier that stops each sample at the step at which it is sure enough (Dynamic Confidence).

    exits = EarlyExit(model)                       # any classifier with logits per step [T, B, K], trained or converted
    print(exits.calibrate(held_out, T=16))         # alpha and the threshold, on labelled samples that were held out
    logits, steps = exits.run(images)              # finished samples leave the batch: the work really falls
    print(exits.report(test))                      # accuracy, steps, calibration, oracle, operations, energy

The model runs step by step in a `Stream`. After each step the samples whose confidence is above the threshold are taken
out of the batch, and so is their state; equations in `confidence`, the choice of the threshold in `pareto`.

Paper: C. Li, E. Jones, S. Furber 2023, arXiv:2303.10276. There the threshold is tuned on the test set and batches have
one sample; here it is chosen on held-out samples, and a batch shrinks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.conversion.active import Axes, any_steps, batch_axes, select
from spikeloom.conversion.choices import Settings
from spikeloom.conversion.confidence import (
    calibration_error,
    check_alpha,
    check_rule,
    confidence_of,
    confidences,
    predictions,
)
from spikeloom.conversion.exit_report import SWEPT, ExitReport, measure, thinned
from spikeloom.conversion.held_out import as_frames, batches, check_logits, outputs_of
from spikeloom.conversion.pareto import ExitPoint, all_candidates, choose_threshold, pareto_front, sweep_thresholds
from spikeloom.conversion.smoothing import chosen_alpha
from spikeloom.energy import EnergyModel, Policy
from spikeloom.energy.pricing import DEFAULT_MODEL
from spikeloom.energy.totals import DEFAULT_POLICY
from spikeloom.neurons import Stream

CHECKED = 8
"""Samples on which the run step by step is compared with the run of all steps."""


@dataclass(frozen=True)
class ExitCalibration:
    """What was chosen on the held-out samples.

    T, alpha, point (the threshold, with what it gave), ece: calibration error after T steps; correct_at_end: samples
    that are right after T steps; front: all thresholds worth choosing, from fast to slow.
    """

    T: int
    alpha: float
    point: ExitPoint
    ece: float
    correct_at_end: int
    front: tuple[ExitPoint, ...]

    def __str__(self) -> str:
        chosen, N = self.point, self.point.samples
        lines = [
            f"{N} held-out samples, T = {self.T}, alpha = {self.alpha:.4g} (calibration error {self.ece:.3f})",
            f"threshold {chosen.threshold:.6f}: {chosen.mean_steps:.2f} of {self.T} steps, "
            f"accuracy {chosen.accuracy:.2%} against {self.correct_at_end / N:.2%} after {self.T}",
            "threshold   steps  accuracy",
        ]
        return "\n".join([*lines, *(f"{p.threshold:9.6f}  {p.mean_steps:6.2f}  {p.accuracy:8.2%}" for p in self.front)])


class EarlyExit:
    """Early exit for a classifier that gives logits of every step.

    Args:
        model: images or frames -> `[T, B, K]`, in evaluation mode, causal: what it says after t steps depends on those
            alone. Modules with memory must work in a `Stream`.
        alpha: confidence smoothing, > 0. threshold: of the confidence, in (0, 1). `calibrate` chooses both; given
            together they need no calibration.
        T: most steps; None: all frames that there are (images need a number, here or in `calibrate`).
        rule: "max_softmax" (the paper's), "entropy" or "margin".
        frames: whether inputs have a time axis; None: those with an odd number of axes do.

    Raises:
        ValueError: a value out of its range; a network that cannot exit early (COS, SRP), or whose images have an odd
            number of axes, without `frames`.
    """

    def __init__(
        self,
        model: nn.Module,
        alpha: float | None = None,
        threshold: float | None = None,
        *,
        T: int | None = None,
        rule: str = "max_softmax",
        frames: bool | None = None,
    ) -> None:
        if alpha is not None:
            check_alpha(alpha)
        if threshold is not None and not 0 < threshold < 1:
            raise ValueError(f"threshold={threshold!r}; expected a confidence between 0 and 1, both excluded")
        if T is not None and T < 2:
            raise ValueError(f"T={T!r}; expected >= 2 time steps: a network of one step has no early exit")
        check_rule(rule)
        _check_model(model, frames)
        self.model = model
        self.alpha = alpha
        self.threshold = threshold
        self.T = T
        self.rule = rule
        self.frames = frames
        self.calibration: ExitCalibration | None = None
        self._axes: Axes | None = None

    # --- choosing --------------------------------------------------------------------------------------------------

    def calibrate(
        self,
        loader: Iterable[Any],
        T: int | None = None,
        tolerance: float = 0.0,
        *,
        alpha: str | float = "ece",
        gains: bool = True,
    ) -> ExitCalibration:
        """Choose alpha and the threshold on samples that the model was not trained on, and keep them.

        Args:
            loader: pairs (x, labels), see `held_out`. T: most steps; None: as given before.
            tolerance: part of the samples that may be lost against T steps, 0.002 for 0.2 points.
            alpha: "ece" (least calibration error), "T", or a number.
            gains: whether a sample that early exit alone gets right makes up for one that it loses, as in the paper.
                False is careful: of many thresholds the fastest that happens to lose nothing is partly luck.

        Raises:
            ValueError: no samples, no labels, T = 1, a model in training mode or one that says other things step by
                step than in one run; confidences that are all 1.
        """
        self._check_mode()
        T = self.T if T is None else T
        _check_steps(self.model, T)
        found = outputs_of(self.model, self._checked(batches(loader, T, self.frames, self._device())))
        logits, labels = found.logits, found.labels
        smoothing = chosen_alpha(alpha, logits, labels)
        certain = confidences(logits, smoothing, self.rule)
        right = predictions(logits) == labels
        judged = right if gains else right & right[-1]
        front = [point for point in pareto_front(all_candidates(certain, judged)) if 0 < point.threshold < 1]
        correct = int(right[-1].sum())
        try:
            point = choose_threshold(front, correct, tolerance)
        except (StopIteration, IndexError):
            raise ValueError(
                f"with alpha={smoothing:g} the confidence is 1 to the last digit before the model is right, so no "
                "threshold below 1 keeps the accuracy; give a larger alpha (such as the number of steps)"
            ) from None
        front = sweep_thresholds(certain, right, (p.threshold for p in front))
        point = next(p for p in front if p.threshold == point.threshold)
        ece = calibration_error(confidences(logits, smoothing)[-1], right[-1])
        self.T, self.alpha, self.threshold = len(logits), smoothing, point.threshold
        self.calibration = ExitCalibration(self.T, smoothing, point, ece, correct, tuple(front))
        return self.calibration

    # --- running ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Classify a batch.

        Args:
            x: images `[B, ...]` or frames `[T, B, ...]`.

        Returns:
            The logits summed up to each sample's exit, over alpha, `[B, K]`, whose softmax is its confidence; and the
            steps that it took, int64 `[B]`, from 1.

        Raises:
            ValueError: not calibrated; a model in training mode; logits that are not finite; as `calibrate` for x.
        """
        self._check_mode()
        alpha, threshold = self._chosen()
        frames = as_frames(x, self.T, self.frames).to(self._device())
        T, B = frames.shape[:2]
        steps = torch.full((B,), T, device=frames.device)
        logits = torch.empty(0)
        active = torch.arange(B, device=frames.device)
        with any_steps(self.model):
            if self._axes is None:
                self._axes = batch_axes(self.model, frames[:1])
            stream, summed = Stream(self.model), torch.zeros((), dtype=torch.float64, device=frames.device)
            for t in range(T):
                whole = len(active) == B
                given = frames[t : t + 1] if whole else frames[t : t + 1].index_select(1, active)
                summed = summed + check_logits(stream(given), 1, len(active))[0].double() / alpha
                if t == 0:
                    logits = torch.empty_like(summed)
                done = confidence_of(summed, self.rule) > threshold
                logits[active] = summed
                steps[active[done]] = t + 1
                left = (~done).nonzero().squeeze(1)
                if not len(left):
                    break
                if len(left) < len(active) and t + 1 < T:
                    stream, summed, active = select(stream, self._axes, left), summed[left], active[left]
        if not bool(torch.isfinite(logits).all()):
            raise ValueError("logits hold NaN or infinity; there is no confidence in those. Look at the input")
        return logits, steps

    # --- judging ---------------------------------------------------------------------------------------------------

    def report(
        self,
        loader: Iterable[Any],
        *,
        thresholds: Iterable[float] | None = None,
        energy: bool = True,
        energy_model: str | EnergyModel = DEFAULT_MODEL,
        policy: Policy = DEFAULT_POLICY,
    ) -> ExitReport:
        """What early exit gives on labelled samples, such as test data, against all T steps.

        Every sample is run for T steps once, and what it would have done and cost at its exit is told from that run:
        accuracy, histogram of the steps, calibration error, the oracle, synaptic operations and energy.

        Args:
            thresholds: further ones for the table; None: some of those worth choosing on the held-out samples.
            energy: count operations too (slower). energy_model, policy: as in `spikeloom.energy.price`.

        Raises:
            ValueError: as `run` and `calibrate`; with `energy`, as `spikeloom.energy.prefix_energy`.
        """
        self._check_mode()
        alpha, threshold = self._chosen()
        given = batches(loader, self.T, self.frames, self._device())
        if thresholds is None:
            thresholds = thinned(self.calibration.front) if self.calibration else SWEPT
        priced = (energy_model, policy) if energy else None
        return measure(self.model, given, alpha, threshold, self.rule, thresholds, priced)

    # --- checks ----------------------------------------------------------------------------------------------------

    def _chosen(self) -> tuple[float, float]:
        if self.alpha is None or self.threshold is None:
            raise ValueError(
                "this EarlyExit is not calibrated: it has no "
                f"{'alpha' if self.alpha is None else 'threshold'}. Call calibrate(held_out_loader, T=...), or give "
                "alpha= and threshold=."
            )
        return self.alpha, self.threshold

    def _check_mode(self) -> None:
        if self.model.training:
            raise ValueError("the model is in training mode, where samples of a batch disturb each other: model.eval()")

    def _device(self) -> torch.device:
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return tensors[0].device if tensors else torch.device("cpu")

    def _checked(self, given: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches as they are; on the first one, the run step by step must be that of all steps at once."""
        for number, (x, labels) in enumerate(given):
            if number == 0:
                self._check_causal(x[:, :CHECKED])
            yield x, labels

    @torch.no_grad()
    def _check_causal(self, x: Tensor) -> None:
        """Compare both ways to run in float64, or, where a model does not take that, in its own type."""
        with any_steps(self.model):
            self._axes = batch_axes(self.model, x[:1])
        try:  # in float32 the rounding of other shapes turns spikes, and so all outputs of a deep network
            whole, parts = _both_ways(deepcopy(self.model).double(), x.double())
        except Exception:  # of many types: a copy that cannot be made, a model of one type; as it is, it must run
            whole, parts = _both_ways(self.model, x)
        scale = max(float(whole.abs().max()), math.ulp(1.0))
        same = ((whole - parts).abs().amax((0, 2)) <= 1e-3 * scale).double().mean()
        if not same >= 0.5:
            raise ValueError(
                f"run step by step the model says other things than in one run, for {1 - float(same):.0%} of "
                f"{x.shape[1]} samples. Early exit needs a model whose output at a step depends on earlier steps "
                "alone, and whose modules with memory work in a Stream."
            )


def _both_ways(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `[T, B, K]` of all steps at once, and of one after the other."""
    with any_steps(model):
        whole = check_logits(Stream(model)(x), *x.shape[:2])
        stream = Stream(model)
        return whole, torch.cat([stream(x[t : t + 1]) for t in range(len(x))])


def _check_steps(model: nn.Module, T: int | None) -> None:
    """Warn of more steps than the thresholds of a converted network were made for."""
    config = getattr(model, "config", None)
    if isinstance(config, Settings) and config.fixed_steps and T is not None and T > config.T:
        warnings.warn(
            f"T={T}, but the thresholds and corrections of method {config.method!r} were made for T = {config.T}. "
            f"Convert again with T={T}, or use 'ltb', 'channel_max' or 'qcfs', which hold for every T.",
            UserWarning,
            stacklevel=3,
        )


def _check_model(model: nn.Module, frames: bool | None) -> None:
    """Raise for converted networks that need all steps, or whose images would be taken for frames."""
    offset = getattr(getattr(model, "config", None), "offset", "none")
    if offset != "none":
        raise ValueError(
            f"the network was converted with offset={offset!r}: every layer looks at rho steps before it runs, so "
            "nothing can stop step by step. Convert with another method, such as 'ltb' or 'qcfs'"
        )
    ndim = getattr(model, "input_ndim", 0)
    if frames is None and ndim % 2:
        raise ValueError(
            f"the network's images have {ndim} axes, so the number of axes does not tell images from frames; give "
            "frames=False for images [B, ...], frames=True for frames [T, B, ...]"
        )
