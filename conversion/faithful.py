"""Before anything is calibrated: do the operations, with batch normalisations folded in, compute what the ANN computes?

Every operation gets what the ANN's own calls were given, so that a difference has one place and does not grow from
layer to layer (a rounding error at the edge of a level of QCFS would). Then the whole, each sample by itself.
"""

from __future__ import annotations

import copy
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
    """Compare the operations and the model on images `[B, ...]`, a few, which are left as they are.

    Raises:
        NotConvertibleError: they differ by more than rounding (the first operation that does is named), depend on the
            other images of a batch, or do not give logits `[B, K]`.
        ValueError: the ANN does not take such images; an operation of it gives NaN or infinity.
    """
    with evaluating(ann):
        expected = _logits(ann, images)
        _Checked(ann, built).run(images.clone())
    graph, given = built.graph, images
    if any(isinstance(module, (QCFS, QuantisedReLU)) for module in graph.modules.values()):
        graph, given = _wide(graph), images.double()
        expected = graph.run(given)
    for batch, among in ((torch.cat([given, torch.zeros_like(given[:1])]), "among others"), (given[:1], "alone")):
        found = graph.run(batch)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(batch):
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise NotConvertibleError(
                f"the model returns {shape} for {_counted(batch)}; expected logits [B, K] for every size of batch."
            )
        same = min(len(images), len(batch))
        apart, scale = _apart(found[:same], expected[:same])
        if not apart <= tolerance(given) * scale + 1e-12:
            raise NotConvertibleError(
                f"the traced operations do not compute what {type(ann).__name__} computes: logits of size {scale:.3g} "
                f"differ by {apart:.3g} where an image is {among} instead of in a batch of {len(images)}, though each "
                "operation agrees. An operation over the batch axis or a branch on the batch's size do this."
            )


def _wide(graph: Graph) -> Graph:
    """A copy in double precision.

    Where activations have levels, rounding puts some on another level, and behind many layers the logits are others, of
    the ANN too. Hardly anything lies so close to an edge that double precision is too coarse.
    """
    needed = {node.name for node in graph.nodes}
    return Graph(graph.nodes, {k: copy.deepcopy(m).double() for k, m in graph.modules.items() if k in needed})


def _logits(ann: nn.Module, images: Tensor) -> Tensor:
    """What the ANN gives; it may change its images in place."""
    try:
        logits = ann(images.clone())
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"the ANN does not take {_counted(images)} of the calibration set, {images.dtype} {list(images.shape)}: "
            f"{error}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise NotConvertibleError(f"the model returns {shape} for {_counted(images)}; expected logits [B, K].")
    return logits


def _counted(images: Tensor) -> str:
    return f"{len(images)} image{'' if len(images) == 1 else 's'}"


class _Checked(fx.Interpreter):
    """Runs the calls that were traced, and compares each operation once the ANN's value of it is there.

    Values are copied before a later call changes them in place, and kept while an operation has yet to read them.
    """

    def __init__(self, ann: nn.Module, built: Built) -> None:
        super().__init__(fx.GraphModule(ann, built.trace))
        self.ann, self.built = ann, built
        self.values: dict[str, Any] = {}
        self.due: dict[str, list[Node]] = {}
        place = {node.name: index for index, node in enumerate(built.trace.nodes)}
        last: dict[str, str] = {}
        for node in built.graph.nodes:
            call = built.calls[node.name]
            self.due.setdefault(call, []).append(node)
            for name in (built.calls[read] for read in node.reads()):
                last[name] = max(call, last.get(name, call), key=place.__getitem__)
        self.dies: dict[str, list[str]] = {}
        for name, reader in last.items():
            self.dies.setdefault(reader, []).append(name)

    def run_node(self, n: fx.Node) -> Any:
        """One call."""
        result = super().run_node(n)
        if n.name in self.due:
            self.values[n.name] = result.clone() if isinstance(result, Tensor) else result
        for node in self.due.get(n.name, []):
            if node.kind not in (INPUT, OUTPUT):
                self._check(node)
        for name in self.dies.get(n.name, []):
            del self.values[name]
        return result

    def _check(self, node: Node) -> None:
        """One operation on the values that the ANN's calls were given."""
        built = self.built
        expected = self.values[built.calls[node.name]]
        if not isinstance(expected, Tensor) or not expected.is_floating_point():
            return
        norm = built.folded.get(node.name)
        place = f"{node.name} ({node.where}){f' with batch normalisation {norm} folded in' if norm else ''}"
        if not bool(expected.isfinite().all()):
            raise ValueError(
                f"the ANN gives NaN or infinity on calibration images: {place} is the first operation that does. "
                "Neurons would make silence of it. Look at its parameters and at the range of the images."
            )
        args, kwargs = substitute([list(node.args), dict(node.kwargs)], lambda ref: self.values[built.calls[ref.name]])
        apart, scale = _apart(built.graph.apply(node, args, kwargs), expected)
        if not apart <= tolerance(expected) * scale + 1e-12:
            raise NotConvertibleError(
                f"the traced operations do not compute what {type(self.ann).__name__} computes: {place} is the first "
                f"that differs, by {apart:.3g} in values of size {scale:.3g}. An in-place ReLU whose input is read "
                "again (write inplace=False) or a hook that changes values does this."
            )


def _apart(found: Any, expected: Tensor) -> tuple[float, float]:
    """The largest difference, and the largest value."""
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return float("inf"), 0.0
    if not expected.numel():
        return 0.0, 0.0
    return (found - expected).abs().max().item(), expected.abs().max().item()
