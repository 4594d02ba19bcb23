"""A neuron of your own in ten lines: forward and backward kernels, learnable parameters and streaming come with it.

    python examples/custom_neuron.py

Here a LIF that is refractory: after a spike a counter must run down before it can fire again.
"""

import torch
from torch import Tensor, nn

import spikeloom
from spikeloom.kernels import detach, maximum, spike, where
from spikeloom.neurons import AT_LEAST_ONE, LI, Neuron, neuron


@neuron(state={"v": 0.0, "wait": 0.0}, limits={"tau": AT_LEAST_ONE})
def refractory(x, v, wait, *, tau=2.0, v_threshold=1.0, pause=2.0, alpha=2.0):
    """h = v + (x - v) / tau; fires where h >= v_threshold and the counter is at 0; then waits `pause` steps."""
    h = where(wait > 0.0, v, v + (x - v) / tau)
    s = where(wait > 0.0, 0.0, spike(h - v_threshold, "atan", alpha))
    v = where(detach(s), 0.0, h)
    wait = where(detach(s), pause, maximum(wait - 1.0, 0.0))
    return s, v, wait


def gradients_agree() -> None:
    """The derived kernel and plain PyTorch with autograd: same spikes, same gradients."""
    layer = Neuron(refractory, tau=nn.Parameter(torch.full((8,), 3.0)))
    x = 3 * torch.rand(50, 4, 8)
    found = []
    for backend in ("auto", "reference"):
        layer.backend = backend
        layer.zero_grad()
        spikes = layer(x)
        spikes.square().sum().backward()
        found.append((spikes, layer.tau.grad.clone()))
    (kernel, kernel_grad), (plain, plain_grad) = found
    assert torch.equal(kernel, plain)
    torch.testing.assert_close(kernel_grad, plain_grad)
    print(f"kernel = reference: {int(kernel.sum())} equal spikes; d/dtau {kernel_grad[:3].tolist()} ...")


def learn(steps: int = 40) -> tuple[float, float]:
    """Tell rising from falling input with two layers; returns the first and the last loss."""
    torch.manual_seed(0)
    T, B = 30, 64
    label = torch.arange(B) % 2
    ramp = torch.linspace(0, 2, T)[:, None]
    x = (torch.where(label == 0, ramp, ramp.flip(0)) + 0.3 * torch.randn(T, B))[..., None]  # [T, B, 1]
    net = nn.Sequential(
        nn.Linear(1, 32), Neuron(refractory, tau=nn.Parameter(torch.full((32,), 4.0))), nn.Linear(32, 2), LI(5.0)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x)[-1], label)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    correct = (net(x)[-1].argmax(-1) == label).float().mean().item()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, {correct:.0%} of the training ramps right")
    streams(net, x)
    return losses[0], losses[-1]


def streams(net: nn.Module, x: Tensor) -> None:
    """Chunk by chunk is the same as all at once."""
    stream = spikeloom.Stream(net)
    with torch.no_grad():
        chunks = torch.cat([stream(chunk) for chunk in x.split(7)])
        assert torch.equal(chunks, net(x))
    print(f"in chunks of 7 steps: the same output; {stream}")


if __name__ == "__main__":
    gradients_agree()
    learn()
