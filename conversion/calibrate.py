"""One pass of the calibration set through the ANN: thresholds, and whether the data is what the model expects."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.conversion.activations import ceiling
from spikeloom.conversion.choices import Settings
from spikeloom.conversion.graph import LAYER, SITE, Graph, Node
from spikeloom.conversion.operations import NORMS, WEIGHTED
from spikeloom.conversion.scaling import Affine
from spikeloom.conversion.thresholds import KnownRule, rule_for
from spikeloom.conversion.trace import NotConvertibleError

FEWEST = 16
"""Calibration batches below which local threshold balancing has not settled."""
FEWEST_IMAGES = 16
"""Calibration images below which any threshold is coarse."""
_FAR, _WIDE = 1.0, 2.0


def images_of(loader: Iterable[Any], like: Tensor) -> Iterator[Tensor]:
    """The images `[B, ...]` of a loader's batches, which are tensors or start with one, on a parameter's device.

    Raises:
        ValueError: a batch of another form.
    """
    if isinstance(loader, Tensor):
        raise ValueError(
            f"the calibration set is a tensor {list(loader.shape)}; expected batches: pass images.split(32), or a "
            "DataLoader."
        )
    for batch in loader:
        images = batch[0] if isinstance(batch, (list, tuple)) else batch
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(
                f"a calibration batch is {got}; expected floating-point images [B, ...], or a tuple that starts with "
                "them, prepared as for the ANN."
            )
        if not bool(torch.isfinite(images).all()):
            raise ValueError(
                f"a calibration batch {list(images.shape)} holds NaN or infinity, which would become thresholds; look "
                "at how the images are prepared (a division by a deviation of 0?)."
            )
        if images.numel():
            yield images.to(like.device, like.dtype)


def channel_axis(graph: Graph, site: Node) -> int:
    """Where a site's channels are: last behind a linear layer, else on axis 1 of `[B, C, ...]`."""
    names = list(site.reads())
    while names:
        node = graph.node(names.pop(0))
        module = graph.modules.get(node.name)
        if isinstance(module, WEIGHTED):
            return -1 if isinstance(module, nn.Linear) else 1
        if isinstance(module, (*NORMS, Affine)):
            return 1
        names += node.reads()
    return 1


class Calibration:
    """The rules of a network's sites, and what they have seen."""

    def __init__(self, graph: Graph, choices: Settings) -> None:
        self.graph, self.choices = graph, choices
        self.axes = {node.name: channel_axis(graph, node) for node in graph.sites()}
        self.rules = {
            node.name: rule_for(graph.modules[node.name], self.axes[node.name], choices)
            for node in self._checked(graph)
        }
        self.batches = self.images = 0
        self.ndims: dict[str, int] = {}
        self.seen = dict.fromkeys(self.rules, 0)  # activations behind every threshold
        self.normed = next((n for n in graph.nodes if _expected(graph, n) is not None), None)
        self.moments: list[Tensor] = []

    def _checked(self, graph: Graph) -> list[Node]:
        free = [n for n in graph.sites() if self.choices.rule == "known" and ceiling(graph.modules[n.name]) is None]
        if free:
            listed = ", ".join(f"{n.known_as} ({n.where})" for n in free[:4])
            raise NotConvertibleError(
                f"method {self.choices.method!r} takes thresholds from the activations, and {len(free)} of "
                f"{len(graph.sites())} have none: {listed}. Train the network with QCFS in their place "
                "(spikeloom.conversion.with_qcfs), or use method 'ltb'."
            )
        return graph.sites()

    @torch.no_grad()
    def add(self, images: Tensor) -> None:
        """Run one batch.

        Raises:
            ValueError: an operation gives NaN or infinity.
        """
        self.graph.run(images, self._apply)
        self.batches += 1
        self.images += len(images)

    def _apply(self, node: Node, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
        if node.kind == SITE:
            x = args[0]
            self.ndims[node.name] = x.ndim
            self.seen[node.name] += x.numel() // (x.shape[self.axes[node.name]] if self.choices.channel_wise else 1)
            return self.rules[node.name].observe(x)
        result = self.graph.apply(node, args, kwargs)
        if isinstance(result, Tensor) and result.is_floating_point() and not bool(result.isfinite().all()):
            raise ValueError(
                f"the ANN gives NaN or infinity on calibration images: {node.known_as} ({node.where}) is the first "
                f"operation that does, in batch {self.batches + 1}. Neurons would make silence of it. Look at its "
                "parameters and at the range of the images."
            )
        if self.normed is not None and node.name == self.normed.name:
            self.moments.append(_moments(result))
        return result

    def thresholds(self) -> dict[str, Tensor]:
        """The threshold of every site, `[]` or `[C]`."""
        return {name: rule.value().clone() for name, rule in self.rules.items()}

    def shaped(self, name: str, theta: Tensor) -> Tensor:
        """A site's threshold as it broadcasts against `[B, ...]`: `[C]` on axis 1 of `[B, C, H, W]` is `[C, 1, 1]`."""
        behind = self.ndims[name] - 2 if theta.ndim and self.axes[name] == 1 else 0
        return theta.view(-1, *[1] * behind) if behind else theta

    def check(self) -> None:
        """Raise if nothing was seen; warn of too few batches and of data in another range.

        Raises:
            ValueError: no batch.
        """
        learns = self.learns()
        if not self.batches and (learns or self.choices.correct != "none"):
            raise ValueError(
                "the calibration set is empty; pass a loader with a few hundred images, such as "
                "DataLoader(train_set, 32) or images.split(32)."
            )
        if self.choices.rule.endswith("ltb") and learns and self.batches < FEWEST:
            warnings.warn(
                f"local threshold balancing saw {self.batches} calibration batches; thresholds creep up from 0 and "
                f"are too small below {FEWEST}. Pass smaller or more batches, such as {FEWEST} of 32 images.",
                UserWarning,
                stacklevel=3,
            )
        if learns and 0 < self.images < FEWEST_IMAGES:
            warnings.warn(
                f"the thresholds are from {self._counted()}; another few images would give others. {self._coarse()}"
                "Pass a few hundred of the training set.",
                UserWarning,
                stacklevel=3,
            )
        self._check_range()

    def learns(self) -> bool:
        """Whether any threshold is from the calibration set."""
        return any(not isinstance(rule, KnownRule) for rule in self.rules.values())

    def notes(self) -> tuple[str, ...]:
        """What the report says of the calibration set."""
        if not self.learns():
            return ("thresholds are those of the trained activations",)
        few = f"; fewer than {FEWEST_IMAGES}, coarse" if self.images < FEWEST_IMAGES else ""
        coarse = self._coarse().strip()
        return (f"thresholds are from {self._counted()}{few}", *([coarse] if coarse else []))

    def _counted(self) -> str:
        plural = ("" if self.images == 1 else "s", "" if self.batches == 1 else "es")
        return f"{self.images} calibration image{plural[0]} in {self.batches} batch{plural[1]}"

    def _coarse(self) -> str:
        """Figures on the percentile with the fewest values, if it leaves out fewer than one."""
        if self.choices.rule != "percentile":
            return ""
        name, fewest = min(self.seen.items(), key=lambda item: item[1])
        left_out = fewest * (1 - self.choices.percentile / 100)
        if left_out >= 1:
            return ""
        return (
            f"{self.choices.percentile:g} % of {fewest} values, as at {self.graph.node(name).known_as}, leaves out "
            f"{left_out:.2g} of them: there the percentile is about the maximum. "
        )

    def _check_range(self) -> None:
        if self.normed is None or not self.moments:
            return
        expected = _expected(self.graph, self.normed)
        assert expected is not None
        mean, deviation = torch.stack(self.moments).mean(0)
        away = ((mean - expected[0]).abs() / expected[1]).tolist()
        wide = (deviation / expected[1]).tolist()
        far, ratio = statistics.median(away), statistics.median(wide)
        if far > _FAR or not 1 / _WIDE < ratio < _WIDE:
            warnings.warn(
                "the calibration data is not in the range that the model was trained on: behind "
                f"{self.normed.known_as} the batch normalisation expects a deviation of 1 around 0, and gets "
                f"{ratio:.3g}, {far:.3g} away (medians over the channels). Prepare the images as for training (0 to 1 "
                "or 0 to 255, mean, deviation).",
                UserWarning,
                stacklevel=4,
            )


def _expected(graph: Graph, node: Node) -> tuple[Tensor, Tensor] | None:
    found = getattr(graph.modules.get(node.name), "spikeloom_norm", None) if node.kind == LAYER else None
    return found


def _moments(x: Tensor) -> Tensor:
    """Mean and deviation of every channel, `[2, C]`; those of a batch normalisation are on axis 1."""
    rows = x.movedim(1, 0).flatten(1)
    return torch.stack([rows.mean(1), rows.std(1, correction=0)])
