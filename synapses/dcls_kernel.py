"""DCLS: convolution kernels built from few elements at learned, real positions.

Each element (o, i, c) has a weight W, a position P measured from the kernel's centre, and in two versions a width SIG.
With p = P + K // 2 it is spread over the taps k = 0 ... K - 1 by a profile X, and the kernel is Kern[o, i, k] =
sum_c X[k, o, i, c] W[o, i, c]:

    v0      X[k] = (1 - r) [k = f] + r [k = f + 1],   f = floor(p), r = p - f        (not normalised)
    v1      Y[k] = relu(1 - |k - p|)
    max     Y[k] = relu(s - |k - p|),                 s = |SIG| + 1
    gauss   Y[k] = exp(-((k - p) / s)^2 / 2),         s = |SIG| + 0.27
    X[k] = Y[k] / (sum_k Y[k] + 1e-7)                 (v1, max, gauss)

Derivatives are those of the formulas, with 0 for that of |x| and of relu at 0, and 0 for that of floor. In two and in
three dimensions a profile is the product of one per axis, normalised over all.

Papers: Khalfaoui-Hassani, Pellegrini, Masquelier 2023, "Dilated Convolution with Learnable Spacings" (v0, v1),
arXiv:2112.03740; Khalfaoui-Hassani, Pellegrini, Masquelier 2023, "Dilated Convolution with Learnable Spacings: beyond
bilinear interpolation" (max, gauss), arXiv:2306.00817.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from spikeloom.kernels import dcls
from spikeloom.kernels.dcls import reference

Version = Literal["v0", "v1", "max", "gauss"]
AxisOrder = Literal["official", "row_col"]
VERSIONS: tuple[str, ...] = get_args(Version)
WIDTHS: dict[str, float] = reference.WIDTHS
"""The versions with a learned width, and what is added to |SIG|."""
EPSILON = reference.EPSILON
"""Added to the sum by which a profile is divided, in the working type."""


def construct_1d(weight: Tensor, P: Tensor, SIG: Tensor | None, size: int, version: str) -> Tensor:
    """The dense kernel `[O, I, K]` of elements: weight `[O, I, c]`, P and SIG `[1, O, I, c]`.

    Args:
        size: K, in taps.
        SIG: None where the version has no width.

    Raises:
        ValueError: an unknown version, shapes that do not belong together, or SIG given or lacking against the version.
    """
    return construct_taps(weight, P, SIG, size, version).transpose(1, 2)


def construct_taps(
    weight: Tensor, P: Tensor, SIG: Tensor | None, size: int, version: str, dtype: torch.dtype | None = None
) -> Tensor:
    """The kernel of `construct_1d` as `[O, K, I]`, which the channels-last convolution reads.

    In float32 the operator `spikeloom::dcls_construct` makes it (`kernels.dcls`), which keeps no profile for backward;
    else, and while operators are watched, the formulas in plain PyTorch.

    Args:
        dtype: of the kernel, rounded once; None: that of weight.
    """
    check_elements(weight, P, SIG, 1, version)
    if dcls.serves(weight, P, SIG):
        return dcls.construct(weight, P, SIG, size, version, weight.dtype if dtype is None else dtype)
    kernel = reference.construct(weight, P, SIG, size, version)
    return kernel if dtype is None else kernel.to(dtype)


def construct_2d(
    weight: Tensor,
    P: Tensor,
    SIG: Tensor | None,
    size: tuple[int, int],
    version: str,
    axis_order: AxisOrder = "official",
) -> Tensor:
    """The dense kernel `[O, I, K_h, K_w]` of elements: weight `[O, I, c]`, P and SIG `[2, O, I, c]`.

    Args:
        size: (K_h, K_w) in taps.
        axis_order: `official` compares P[0] with columns and P[1] with rows in v1, max and gauss, as the published
            library does (in v0 it is the other way), though the offset K_h // 2 belongs to P[0] all the same: in a
            kernel that is not square these versions are off the centre. `row_col` has P[0] for rows everywhere.

    Raises:
        ValueError: as `construct_1d`.
    """
    check_elements(weight, P, SIG, 2, version)
    first, second = P[0] + size[0] // 2, P[1] + size[1] // 2
    rows = torch.arange(size[0], device=weight.device, dtype=weight.dtype).view(-1, 1, 1, 1, 1)
    columns = torch.arange(size[1], device=weight.device, dtype=weight.dtype).view(1, -1, 1, 1, 1)
    widths = (None, None) if SIG is None else (SIG[0], SIG[1])
    if version == "v0":
        X = reference.linear(rows, first) * reference.linear(columns, second)
    else:
        turned = axis_order == "official"
        along, across = (columns, rows) if turned else (rows, columns)  # the axes of P[0] and of P[1]
        Y = reference.profile(along, first, widths[0], version) * reference.profile(across, second, widths[1], version)
        X = Y / (Y.sum((0, 1)) + EPSILON)
    return (X * weight).sum(-1).permute(2, 3, 0, 1)


def construct_3d(weight: Tensor, P: Tensor, SIG: Tensor | None, size: tuple[int, int, int], version: str) -> Tensor:
    """The dense kernel `[O, I, K_t, K_h, K_w]` of elements: weight `[O, I, c]`, P and SIG `[3, O, I, c]`.

    P[0] is time, P[1] rows, P[2] columns, in every version. Plain PyTorch: what backward keeps is a few times
    K_t K_h K_w values per element.

    Args:
        size: (K_t, K_h, K_w) in taps.

    Raises:
        ValueError: as `construct_1d`.
    """
    check_elements(weight, P, SIG, 3, version)
    X = weight.new_ones(())
    for axis, taps in enumerate(size):
        along = [taps if other == axis else 1 for other in range(3)]
        k = torch.arange(taps, device=weight.device, dtype=weight.dtype).view(*along, 1, 1, 1)
        p, sigma = P[axis] + taps // 2, None if SIG is None else SIG[axis]
        X = X * (reference.linear(k, p) if version == "v0" else reference.profile(k, p, sigma, version))
    if version != "v0":
        X = X / (X.sum((0, 1, 2)) + EPSILON)
    return (X * weight).sum(-1).permute(3, 4, 0, 1, 2)


def check_elements(weight: Tensor, P: Tensor, SIG: Tensor | None, axes: int, version: str) -> None:
    """Raise unless weight, positions and widths belong together."""
    check_version(version)
    if P.shape != (axes, *weight.shape) or (SIG is not None and SIG.shape != P.shape):
        widths = "none" if SIG is None else str(list(SIG.shape))
        raise ValueError(
            f"DCLS elements: weight is {list(weight.shape)}, P {list(P.shape)}, SIG {widths}; expected P and SIG of "
            f"{[axes, *weight.shape]}."
        )
    if (SIG is None) == (version in WIDTHS):
        raise ValueError(
            f"DCLS version {version!r} {'needs SIG, the widths' if SIG is None else 'has no SIG'}; versions with "
            f"widths are {' and '.join(WIDTHS)}."
        )


def check_version(version: str) -> None:
    """Raise unless it is one of `VERSIONS`."""
    if version not in VERSIONS:
        raise ValueError(f"DCLS version is {version!r}; expected one of {', '.join(VERSIONS)}.")
