"""Count a small spiking network on simulated events, and price the counts: `python examples/energy_of_a_network.py`.

Untrained, on the CPU, in seconds; no download. docs/energy.md explains the numbers. Writes energy.html.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

import torch

from spikeloom.datasets import frames_by_time, saccade_mnist, to_binary
from spikeloom.energy import Policy, count, curve, price
from spikeloom.models import create_model

T = 8


def main() -> int:
    """Count three batches, then ask the counts several questions; nothing is run twice."""
    torch.manual_seed(0)
    net = create_model("conv_snn_tiny").eval()
    recordings = saccade_mnist("test").select(torch.arange(48) * 20)
    frames = to_binary(frames_by_time(recordings, T, end_us=300_000))  # [T, 48, 2, 34, 34]

    with torch.no_grad(), count(net, strict=True) as run:
        for batch in frames.split(16, dim=1):
            net(batch)
    report = run.report(title="conv_snn_tiny, untrained, simulated events")
    print(report)

    counts = run.counts()
    for model in ("horowitz45_fp32", "memory45", "loihi2018"):
        print(f"{model}: {price(counts, model).mean / 1e3:.1f} nJ per inference")
    more = price(counts, policy=Policy(include_bias=True, include_neurons=True)).mean
    print(f"horowitz45_fp32 with biases and neurons: {more / 1e3:.1f} nJ")
    for steps, pj in enumerate(curve(counts), start=1):
        print(f"stopped after {steps} of {T} steps: {pj / 1e3:.2f} nJ")

    if find_spec("jinja2") is not None:
        print(f"page: {report.to_html('energy.html')}")
    else:
        print("no page: it needs jinja2, pip install 'spikeloom[report]'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
