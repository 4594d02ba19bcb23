"""A converted network against its ANN on images of your choice: decisions, errors and accuracy at several steps.

print(compare(ann, net, test_loader))
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikeloom.conversion.calibrate import images_of
from spikeloom.conversion.network import ConvertedNet
from spikeloom.conversion.trace import evaluating


@dataclass(frozen=True)
class Comparison:
    """Of `images` images, and after each of `steps` time steps.

    agreement: share of images for which both take the same decision. error: mean difference of the mean logits, over
    the mean size of the ANN's. accuracy, ann_accuracy: shares, NaN without labels. ahead: steps that the layers look
    ahead besides (COS, SRP).
    """

    images: int
    steps: tuple[int, ...]
    agreement: tuple[float, ...]
    error: tuple[float, ...]
    accuracy: tuple[float, ...]
    ann_accuracy: float
    ahead: int = 0

    def __str__(self) -> str:
        labelled = not math.isnan(self.ann_accuracy)
        lines = [f"{'T':>5}{'same decision':>16}{'error of logits':>18}{'accuracy' if labelled else '':>12}"]
        for T, same, error, right in zip(self.steps, self.agreement, self.error, self.accuracy, strict=True):
            last = f"{100 * right:>11.2f}%" if labelled else ""
            lines.append(f"{T:>5}{100 * same:>15.2f}%{100 * error:>17.1f}%{last}")
        lines.append(f"{self.images} images{f'; the ANN has {100 * self.ann_accuracy:.2f} %' if labelled else ''}")
        if self.ahead:
            lines.append(f"each needs {self.ahead} steps more, in which the layers look ahead")
        return "\n".join(line.rstrip() for line in lines)


@torch.no_grad()
def compare(ann: nn.Module, net: ConvertedNet, loader: Iterable[Any], steps: Iterable[int] | None = None) -> Comparison:
    """Run both on the images of a loader, once.

    Args:
        loader: batches of images, or tuples (images, labels, ...); all with labels `[B]`, or none.
        steps: after how many time steps to look; None: powers of two up to net.T, and net.T (that alone where
            thresholds were made for one T).

    Raises:
        ValueError: no images; labels for a part of them, or of another form; steps beyond net.T; logits that are NaN
            or infinite.
    """
    chosen = _steps(net, steps)
    there = next(net.parameters(), next(net.buffers(), torch.zeros(())))
    like = next(ann.parameters(), there)
    sums = torch.zeros(3, len(chosen), dtype=torch.float64)  # decisions, errors, right ones
    count, labelled, right, size = 0, 0, 0, 0.0
    with evaluating(ann), evaluating(net):
        for images, labels in _pairs(loader, like):
            expected = ann(images.clone()).double().cpu()  # an ANN may change its images in place
            found = net(images.to(there.device, there.dtype)).double().cpu().cumsum(0)[[T - 1 for T in chosen]]
            found /= torch.tensor(chosen, dtype=torch.float64).view(-1, 1, 1)
            _check_finite(expected, found)
            decision = found.argmax(2)
            sums[0] += (decision == expected.argmax(1)).sum(1)
            sums[1] += (found - expected).abs().mean(2).sum(1)
            size += expected.abs().mean(1).sum().item()
            count += len(images)
            if labels is not None:
                labelled += len(labels)
                sums[2] += (decision == labels).sum(1)
                right += int((expected.argmax(1) == labels).sum())
    if not count or labelled not in (0, count):
        given = "no images" if not count else f"{count} images and {labelled} labels"
        raise ValueError(f"the loader gave {given}; expected batches of images, all with labels [B] or none.")
    same, error = (sums[0] / count).tolist(), (sums[1] / max(size, 1e-12)).tolist()
    accuracy = (sums[2] / count).tolist() if labelled else [math.nan] * len(chosen)
    ahead = net.latency - net.T
    return Comparison(count, chosen, (*same,), (*error,), (*accuracy,), right / count if labelled else math.nan, ahead)


def _steps(net: ConvertedNet, steps: Iterable[int] | None) -> tuple[int, ...]:
    if steps is None:
        powers = [] if net.config.fixed_steps else [2**i for i in range(net.T.bit_length())]
        return tuple(sorted({*powers, net.T}))
    chosen = tuple(steps)
    if not chosen or min(chosen) < 1 or max(chosen) > net.T:
        raise ValueError(f"steps are {list(chosen)}; expected numbers from 1 to net.T = {net.T}. Set net.T higher.")
    return chosen


def _pairs(loader: Iterable[Any], like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images on a parameter's device, and labels where there are some."""
    if isinstance(loader, Tensor):
        raise ValueError(f"the loader is a tensor {list(loader.shape)}; pass batches, such as images.split(32).")
    for batch in loader:
        for images in images_of([batch], like):  # none if it is empty
            second = batch[1] if isinstance(batch, (list, tuple)) and len(batch) > 1 else None
            yield images, _labels(second, len(images))


def _labels(given: Any, count: int) -> Tensor | None:
    """Class numbers `[B]`; None if what stands behind the images is no numbers."""
    if isinstance(given, np.ndarray) or (isinstance(given, (list, tuple)) and all(isinstance(y, int) for y in given)):
        given = torch.as_tensor(given)
    if not isinstance(given, Tensor):
        return None
    if given.shape != (count,):
        raise ValueError(
            f"labels are {given.dtype} {list(given.shape)} for {count} images; expected class numbers [{count}]. Pass "
            "batches of images alone, or of (images, labels)."
        )
    return given.cpu()


def _check_finite(expected: Tensor, found: Tensor) -> None:
    for name, logits in (("ANN", expected), ("converted network", found)):
        if not bool(logits.isfinite().all()):
            raise ValueError(
                f"logits of the {name} are NaN or infinite. Look at its parameters, and at how the images are prepared."
            )
