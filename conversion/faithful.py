"""Before anything is calibrated: do the operations, with batch normalisations folded in, compute what the ANN computes?

Every operation gets what the ANN's own calls were given, so that a difference has one place and does not grow from
layer to layer (a rounding error at the edge of a level of QCFS would). Then the whole, each sample by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from spikeloom.conversion.build import Built
from spikeloom.conversion.graph import INPUT, OUTPUT, Graph, Node, substitute
from spikeloom.conversion.qcfs import QCFS
from spikeloom.conversion.quantised import QuantisedReLU
from spikeloom.conversion.trace import NotConvertibleError, evaluating

_SHARE = 8192
"""Difference that passes for rounding, in machine epsilons of the largest value: 0.001 in float32."""
_JUMPS = 0.1
"""The same of whole networks with levels, where rounding moves single activations by a level."""


def tolerance(like: Tensor) -> float:
    """The relative difference that passes for rounding."""
    if like.is_cuda and like.dtype == torch.float32:
        return 0.01  # TF32
    return min(0.1, max(1e-9, _SHARE * torch.finfo(like.dtype).eps))


def check_parameters(graph: Graph) -> None:
    """Raise if a layer's parameters are not finite.

    Raises:
        ValueError: the layers and parameters, by name.
    """
    held = [
        (node, name, value.isfinite().all())
        for node in graph.nodes
        if node.name in graph.modules
        for name, value in graph.modules[node.name].state_dict().items()
        if value.is_floating_point()
    ]
    fine = torch.stack([flag.cpu() for *_, flag in held]).tolist() if held else []
    bad = [f"{node.name}.{name} ({node.where})" for (node, name, _), ok in zip(held, fine, strict=True) if not ok]
    if bad:
        raise ValueError(
            f"the ANN has parameters that are NaN or infinite, after batch normalisations are folded in: "
            f"{', '.join(bad[:6])}{f' and {len(bad) - 6} more' if len(bad) > 6 else ''}. Its training diverged, or the "
            "checkpoint is damaged."
        )


@torch.no_grad()
def check_faithful(ann: nn.Module, built: Built, images: Tensor) -> None:
    """Compare the operations and the model on images `[B, ...]`, a few.

    Raises:
        NotConvertibleError: they differ by more than rounding (the first operation that does is named), or do not give
            logits `[B, K]`.
        ValueError: an operation of the ANN gives NaN or infinity.
    """
    with evaluating(ann):
        expected = ann(images)
        values = _Recorder(ann, built.trace).of(images)
    for node in built.graph.nodes:
        if node.kind not in (INPUT, OUTPUT):
            _check_node(ann, built, node, values)
    found = built.graph.run(torch.cat([images, images]))
    logits = isinstance(found, Tensor) and isinstance(expected, Tensor) and found.ndim == 2
    if not logits or len(expected) != len(images) or len(found) != 2 * len(images):
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise NotConvertibleError(f"the model returns {shape} for {2 * len(images)} images; expected logits [B, K].")
    apart, scale = _apart(found, torch.cat([expected, expected]))
    levels = any(isinstance(module, (QCFS, QuantisedReLU)) for module in built.graph.modules.values())
    if not apart <= (_JUMPS if levels else tolerance(images)) * scale + 1e-12:
        raise NotConvertibleError(
            f"the traced operations do not compute what {type(ann).__name__} computes: logits of size {scale:.3g} "
            f"differ by {apart:.3g}, though each operation agrees. An operation over the batch axis or a branch on the "
            "batch's size do this."
        )


def _check_node(ann: nn.Module, built: Built, node: Node, values: dict[str, Any]) -> None:
    """One operation on the values that the ANN's calls were given."""
    expected = values[built.calls[node.name]]
    if not isinstance(expected, Tensor) or not expected.is_floating_point():
        return
    norm = built.folded.get(node.name)
    place = f"{node.name} ({node.where}){f' with batch normalisation {norm} folded in' if norm else ''}"
    if not bool(expected.isfinite().all()):
        raise ValueError(
            f"the ANN gives NaN or infinity on calibration images: {place} is the first operation that does. Neurons "
            "would make silence of it. Look at its parameters and at the range of the images."
        )
    args, kwargs = substitute([list(node.args), dict(node.kwargs)], lambda ref: values[built.calls[ref.name]])
    apart, scale = _apart(built.graph.apply(node, args, kwargs), expected)
    if not apart <= tolerance(expected) * scale + 1e-12:
        raise NotConvertibleError(
            f"the traced operations do not compute what {type(ann).__name__} computes: {place} is the first that "
            f"differs, by {apart:.3g} in values of size {scale:.3g}. An in-place ReLU whose input is read again (write "
            "inplace=False) does this."
        )


def _apart(found: Any, expected: Tensor) -> tuple[float, float]:
    """The largest difference, and the largest value."""
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return float("inf"), 0.0
    if not expected.numel():
        return 0.0, 0.0
    return (found - expected).abs().max().item(), expected.abs().max().item()


class _Recorder(fx.Interpreter):
    """Runs the calls that were traced, and copies what each gives before a later one changes it in place."""

    def __init__(self, ann: nn.Module, trace: fx.Graph) -> None:
        super().__init__(fx.GraphModule(ann, trace))
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """One call."""
        result = super().run_node(n)
        self.values[n.name] = result.clone() if isinstance(result, Tensor) else result
        return result

    def of(self, images: Tensor) -> dict[str, Any]:
        """Name of the call -> its value."""
        self.run(images)
        return self.values
