"""Delay networks to time: ours, and the published one from its parts; a layer's convolution in several forms.

The published network is put together as its authors do, from `Dcls1d` of the package dcls and SpikingJelly's LIF, with
the modules in one list `model`, so that it takes our checkpoint under the published names. Both train with the same
loss and two Adams, of the same kind.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from _steps import Step
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.models import DelaySNN, create_model, parameter_groups
from spikeloom.models.delay_readout import delay_loss
from spikeloom.synapses.frequency_conv import frequency_conv
from spikeloom.synapses.time_conv import Method

PEERS = {"dcls": "DCLS", "spikingjelly": "spikingjelly"}
"""Packages of the published network, by the name to install them by."""
TINY: dict[str, Any] = {"hidden": 16, "max_delay": 7}
"""Sizes that are to show whether it runs."""


def missing() -> str:
    """What to install for the published network; empty if all is there."""
    lacking = [name for name, module in PEERS.items() if importlib.util.find_spec(module) is None]
    return f"not installed: {', '.join(lacking)}; pip install {' '.join(lacking)}" if lacking else ""


def ours(name: str, device: torch.device, method: Method = "auto", **sizes: Any) -> DelaySNN:
    """Our network, the weights it begins with."""
    torch.manual_seed(0)
    net = create_model(name, **sizes)
    assert isinstance(net, DelaySNN)
    for layer in net.delayed():
        layer.method = method
    return net.to(device).train()


class Published(nn.Module):
    """The published network: `[T, B, N]` -> membranes of the output neurons `[T', B, K]`."""

    def __init__(self, like: DelaySNN) -> None:
        super().__init__()
        from DCLS.construct.modules import Dcls1d
        from spikingjelly.activation_based import layer, neuron, surrogate

        config = like.config
        self.taps = config.max_delay

        def synapse(inputs: int, outputs: int) -> nn.Module:
            made = Dcls1d(
                inputs, outputs, config.kernel_count, dilated_kernel_size=self.taps, bias=False, version="gauss"
            )
            made.SIG.requires_grad_(False)
            return made

        def lif(threshold: float, keep: bool) -> nn.Module:
            arctangent = surrogate.ATan(alpha=config.alpha)
            options = {"decay_input": False, "detach_reset": True, "step_mode": "m", "store_v_seq": keep}
            return neuron.LIFNode(config.tau, v_threshold=threshold, surrogate_function=arctangent, **options)

        modules: list[nn.Module] = []
        widths = [config.in_features, *[config.hidden] * config.depth]
        for inputs, outputs in pairwise(widths):
            modules += [synapse(inputs, outputs), nn.BatchNorm1d(outputs), lif(config.v_threshold, False)]
            modules.append(layer.Dropout(config.dropout, step_mode="m"))
        modules += [synapse(config.hidden, config.num_classes), lif(1e9, True)]
        self.model = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.model:
            if hasattr(module, "clamp_parameters"):
                lines = F.pad(x.permute(1, 2, 0), (self.taps - 1, (self.taps - 1) // 2))
                x = module(lines).permute(2, 0, 1)
            elif isinstance(module, nn.BatchNorm1d):
                x = module(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            else:
                x = module(x)
        membranes: Tensor = self.model[-1].v_seq
        return membranes

    def groups(self) -> list[dict[str, Any]]:
        """Groups as `parameter_groups` makes them of ours."""
        named = [(key, p) for key, p in self.named_parameters() if p.requires_grad]
        positions = [p for key, p in named if key.endswith(".P")]
        weights = [p for key, p in named if p.ndim == 3]
        rest = [p for _, p in named if p.ndim == 1]
        return [
            {"name": "weights", "params": weights, "lr": 1e-3, "weight_decay": 1e-5},
            {"name": "norms and biases", "params": rest, "lr": 1e-3, "weight_decay": 0.0},
            {"name": "positions", "params": positions, "lr": 1e-1, "weight_decay": 0.0},
        ]

    def settle_(self) -> None:
        """Reset the neurons, then clamp positions, as after every published step."""
        from spikingjelly.activation_based import functional

        functional.reset_net(self)
        for module in self.model:
            if hasattr(module, "clamp_parameters"):
                module.clamp_parameters()


def published(like: DelaySNN) -> Published:
    """The published network with the parameters and statistics of ours."""
    from spikeloom.models.delay_official import official_state

    device = next(like.parameters()).device
    net = Published(like).to(device)
    net.load_state_dict(official_state(like))
    return net.train()


def batch(T: int, B: int, features: int, classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Counts of spikes `[T, B, N]`, a tenth of them not 0, and labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.poisson(torch.full((T, B, features), 0.11), generator=generator)
    return x.to(device), torch.randint(classes, (B,), generator=generator).to(device)


def train_step(net: DelaySNN | Published, given: tuple[Tensor, Tensor], dtype: torch.dtype) -> Step:
    """Forward, loss, backward, two Adams, clamp. Autocast to dtype, unless it is float32."""
    x, labels = given
    device = x.device
    gpu = device.type == "cuda"
    groups = net.groups() if isinstance(net, Published) else parameter_groups(net)
    kinds = [g for g in groups if g["name"] != "positions"], [g for g in groups if g["name"] == "positions"]
    optimizers = [torch.optim.Adam(kind, fused=gpu, capturable=gpu) for kind in kinds]

    def call() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            outputs = net(x)
        delay_loss(outputs.float(), labels).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        net.settle_()

    return Step(call, keep=(net, optimizers))


@torch.no_grad()
def difference(name: str, x: Tensor, **sizes: Any) -> dict[str, float]:
    """How far the published network's outputs are from ours with the same parameters, in training mode without dropout:
    the largest error over the largest output, and the share of outputs that are off by more than 1e-3 of it (spikes at
    the threshold may fall either way, and all that follows differs). TF32 off."""
    net = ours(name, x.device, **sizes, dropout=0.0)
    for layer in net.delayed():
        layer.set_sigma_(0.23)
    peer = published(net)
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        one, other = net(x), peer(x)
    error = (one - other).abs() / other.abs().max()
    return {"largest": float(error.max()), "share": float((error > 1e-3).float().mean())}


Form = Callable[[Tensor, Tensor, int], Tensor]
"""x `[T, B, I]`, kernel `[O, K, I]`, tail -> `[T + tail, B, O]`, with K - 1 steps of zeros in front."""


def _lines(x: Tensor, kernel: Tensor, tail: int) -> Tensor:
    lines = F.pad(x.permute(1, 2, 0), (kernel.shape[1] - 1, tail))
    return F.conv1d(lines, kernel.transpose(1, 2)).permute(2, 0, 1)


def _image(x: Tensor, kernel: Tensor, padding: int) -> Tensor:
    image, flat = x.unsqueeze(0).permute(0, 3, 1, 2), kernel.unsqueeze(2).permute(0, 3, 1, 2)
    return F.conv2d(image, flat, padding=(padding, 0)).permute(0, 2, 3, 1).squeeze(0)


def _image_zeros(x: Tensor, kernel: Tensor, tail: int) -> Tensor:
    K = kernel.shape[1]
    return _image(F.pad(x, (0, 0, 0, 0, K - 1, tail)), kernel, 0)


def _image_half(x: Tensor, kernel: Tensor, tail: int) -> Tensor:
    return _image(F.pad(x, (0, 0, 0, 0, kernel.shape[1] - 1 - tail, 0)), kernel, tail)


def _image_more(x: Tensor, kernel: Tensor, tail: int) -> Tensor:
    return _image(x, kernel, kernel.shape[1] - 1)[: x.shape[0] + tail]


def _taps(x: Tensor, kernel: Tensor, tail: int) -> Tensor:
    """A matrix product per tap."""
    K = kernel.shape[1]
    lines = F.pad(x, (0, 0, 0, 0, K - 1, tail)).flatten(0, 1)
    T, B = x.shape[0] + tail, x.shape[1]
    y = lines[: T * B] @ kernel[:, 0].t()
    for k in range(1, K):
        y = torch.addmm(y, lines[k * B : (k + T) * B], kernel[:, k].t())
    return y.unflatten(0, (T, B))


def _fourier(x: Tensor, kernel: Tensor, tail: int) -> Tensor:
    """As `frequencies`, with cuFFT and complex numbers."""
    T, K = x.shape[0], kernel.shape[1]
    n = next(n for n in range(T + K - 1, 2 * (T + K)) if n % 2 == 0 and _smooth(n))
    of_x = torch.fft.rfft(x.float(), n, 0)  # [F, B, I]
    of_kernel = torch.fft.rfft(kernel.float().flip(1), n, 1).permute(1, 2, 0)  # [F, I, O]
    return torch.fft.irfft(of_x @ of_kernel, n, 0)[: T + tail]


def _frequencies(x: Tensor, kernel: Tensor, tail: int) -> Tensor:
    return frequency_conv(x, kernel, kernel.shape[1] - 1, x.shape[0] + tail)


def _smooth(n: int) -> bool:
    for factor in (2, 3, 5, 7):
        while n % factor == 0:
            n //= factor
    return n == 1


FORMS: dict[str, Form] = {
    "lines": _lines,
    "image zeros copied": _image_zeros,
    "image half the zeros copied": _image_half,
    "image more rows": _image_more,
    "a product per tap": _taps,
    "fourier": _fourier,
    "frequencies": _frequencies,
}
FULL_PRECISION_ONLY = ("fourier", "frequencies")
"""Forms that have no half types."""


def form_makers(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Callable[[], Step]]]:
    """Forward and backward of the convolution of a layer (T, B, I, O, K) in every form, kernel given."""
    for name, form in FORMS.items():
        if dtype == torch.float32 or name not in FULL_PRECISION_ONLY:
            yield name, lambda form=form: _form_step(form, shape, dtype, device)  # type: ignore[misc]


def operands(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, kernel and gradient of the result."""
    T, B, I, O, K = shape  # noqa: E741
    generator = torch.Generator(device).manual_seed(0)
    x = (torch.rand(T, B, I, generator=generator, device=device) < 0.2).to(dtype)
    kernel = torch.randn(O, K, I, generator=generator, device=device).to(dtype) * (I * K) ** -0.5
    grad = torch.randn(T + (K - 1) // 2, B, O, generator=generator, device=device).to(dtype)
    return x.requires_grad_(), kernel.requires_grad_(), grad


def _form_step(form: Form, shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device) -> Step:
    x, kernel, grad = operands(shape, dtype, device)

    def prepare() -> None:
        x.grad = kernel.grad = None

    def call() -> None:
        form(x, kernel, (shape[4] - 1) // 2).backward(grad)

    return Step(call, prepare, keep=(x, kernel, grad))


def form_errors(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device
) -> dict[str, dict[str, float]]:
    """By form: errors of y and of both gradients, norm over norm, from `lines` in double precision (few samples)."""
    few = (shape[0], min(2, shape[1]), *shape[2:])
    x, kernel, grad = operands(few, dtype, device)
    tail = (shape[4] - 1) // 2

    def results(form: Form, *given: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in given[:2]]
        y = form(leaves[0], leaves[1], tail)
        return [t.double() for t in (y.detach(), *torch.autograd.grad(y, leaves, given[2]))]

    wanted = results(_lines, x.double(), kernel.double(), grad.double())
    found = {}
    for name, form in FORMS.items():
        if dtype == torch.float32 or name not in FULL_PRECISION_ONLY:
            errors = zip(results(form, x, kernel, grad), wanted, strict=True)
            named = zip(("y", "grad x", "grad kernel"), errors, strict=True)
            found[name] = {key: float((a - b).norm() / b.norm()) for key, (a, b) in named}
    return found
