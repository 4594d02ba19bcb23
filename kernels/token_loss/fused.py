"""Mean cross-entropy of tokens `[T, B, V]` on a GPU, with the penalty on the largest logits (`models.token_loss`).

    loss = sum over tokens with a target of (log sum_j e^x[j] - x[target]) / their number
    gradient at j = (e^(x[j] - log sum) - [j = target]) / their number,  plus penalty / (T B) x[j] at the largest x

Forward reads the logits once, in their own type, for the largest and the sum together; backward reads them once more
and writes the gradient in their type: 6 bytes per logit of bfloat16. Copied to float32 and walked by torch's operators
they are 56: cast (2 + 4), log-softmax (4 + 4), largest (4), gradient of the gathered loss (4), of log-softmax (8 + 4),
of the largest (4), their sum (8 + 4), and that of the cast (4 + 2); at 12 x 1024 tokens and 50,277 classes 34.6 GB.

Arithmetic is float32, of rows one by one, and the gradient is rounded once. Of equal
largest logits the first has the penalty.

Rows may lie further apart than V (`models.read_out`): the gradient lies as the logits do, with zeros between its rows.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels import backends
from spikeloom.kernels.cuda import build
from spikeloom.kernels.cuda.launch import Kernel
from spikeloom.kernels.names import STORAGE
from spikeloom.kernels.op import dispatched, is_plain, once_only

IGNORED = -100
"""The target that does not count, as in torch's cross_entropy."""
_THREADS = 256
_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_LAYOUT = "7Qqif"


def takes(logits: Tensor, targets: Tensor) -> bool:
    """Whether `token_loss` serves logits `[T, B, V]` and targets `[T, B]`.

    On a GPU with a working backend, in float32 or half precision, rows at one distance, nobody watching operators.
    """
    return (
        logits.is_cuda
        and logits.dtype in _TYPES
        and targets.device == logits.device
        and is_plain(logits)
        and is_plain(targets)
        and not dispatched()
        and logits.numel() > 0
        and logits.shape[2] < 2**30
        and _stride(logits) is not None
        and backends.choose("auto", "cuda") == "cuda"
    )


def token_loss(logits: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """The loss, float32 `[]`; differentiable once. `takes` has said yes.

    A target that is neither in the vocabulary nor `IGNORED` makes the loss NaN: the device is not waited for. Without
    any target the loss is NaN, as torch's.

    Args:
        logits: [T, B, V].
        targets: [T, B], whole numbers.
        penalty: what the gradient of each largest logit has more, times that logit, before it is divided by T B.
    """
    targets = targets.long().contiguous()
    if torch.is_grad_enabled() and logits.requires_grad:
        recorded: Tensor = _TokenLoss.apply(logits, targets, penalty)
        return recorded
    return _forward(logits, targets)[0]


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, penalty: float) -> Tensor:
        loss, kept = _forward(logits, targets)
        ctx.save_for_backward(logits, targets, *kept)
        ctx.penalty = penalty
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        once_only("on a CPU torch's operators run, which can be differentiated twice")
        logits, targets, logs, places, count = ctx.saved_tensors
        stride = _rows(logits)
        scale = (grad.float() / count).contiguous()
        room = torch.empty(targets.numel() * stride, dtype=logits.dtype, device=logits.device)
        found = room.as_strided(logits.shape, (logits.shape[1] * stride, stride, 1))
        given = (logits, targets, None, logs, places, scale, room)
        _launch("token_loss_gradient", stride, given, ctx.penalty / targets.numel())
        return found, None, None


def _forward(logits: Tensor, targets: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The loss, and of every row the logarithm of its sum and the place of its largest logit, and how many count."""
    losses, logs = torch.empty((2, targets.numel()), dtype=torch.float32, device=logits.device).unbind(0)
    places = torch.empty(targets.numel(), dtype=torch.int32, device=logits.device)
    _launch("token_loss", _rows(logits), (logits, targets, losses, logs, places, None, None), 0.0)
    count = (targets != IGNORED).sum()
    return losses.sum() / count, (logs, places, count)


def _stride(logits: Tensor) -> int | None:
    """Elements from a row `[V]` to the next; None: rows of different distances, or with gaps inside."""
    T, B, V = logits.shape
    if V > 1 and logits.stride(2) != 1:
        return None
    if B > 1:
        found = logits.stride(1)
        return found if found >= V and (T == 1 or logits.stride(0) == B * found) else None
    found = logits.stride(0) if T > 1 else V
    return found if found >= V else None


def _rows(logits: Tensor) -> int:
    stride = _stride(logits)
    assert stride is not None  # `takes` sees to it
    return stride


def _launch(name: str, stride: int, tensors: tuple[Tensor | None, ...], penalty: float) -> None:
    """A block per row; `tensors` are the first fields of `Arguments`."""
    logits, grad = tensors[0], tensors[-1]
    assert logits is not None
    width = 16 // logits.element_size()
    aligned = all(t is None or t.data_ptr() % 16 == 0 for t in (logits, grad)) and stride % width == 0
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    rows = logits.shape[0] * logits.shape[1]
    kernel = _kernel(name, logits.dtype, width if aligned else 1, logits.device.index, rows)
    kernel((*addresses, stride, logits.shape[2], penalty))


@lru_cache(maxsize=256)
def _kernel(name: str, dtype: torch.dtype, vector: int, device: int, rows: int) -> Kernel:
    return Kernel(source(dtype, vector), name, device, rows, _THREADS, _LAYOUT)


@lru_cache(maxsize=16)
def source(dtype: torch.dtype, vector: int) -> str:
    """CUDA source of both kernels for logits of a dtype, `vector` of them in one access."""
    real, io = STORAGE[str(dtype).removeprefix("torch.")]
    prelude = (Path(build.__file__).parent / "prelude.cuh").read_text()
    values = {"THREADS": _THREADS, "VECTOR": vector, "IGNORED": IGNORED}
    defined = "".join(f"#define {name} {value}\n" for name, value in values.items())
    body = Path(__file__).with_name("token_loss.cu").read_text()
    return f"typedef {real} real; typedef unsigned index_t;\n{prelude}\ntypedef {io} io;\n{defined}{body}"
