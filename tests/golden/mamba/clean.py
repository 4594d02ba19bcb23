"""Golden SpikMamba: the network of the paper's figure."""

from __future__ import annotations

from pathlib import Path

from spikeloom_tests.golden.mamba.networks import compare, variants_of_networks
from spikeloom_tests.golden.stored import read

from spikeloom.models import SpikMamba, SpikMambaConfig
from spikeloom.models.config import configure

SAME = (
    *("T", "patch_size", "in_channels", "num_heads", "depth", "num_classes", "window", "mlp_ratio"),
    *("d_state", "d_conv", "expand", "bidirectional"),
)


def variants(path: Path) -> list[str]:
    """As of every network."""
    return variants_of_networks()


def check(path: Path, variant: str) -> None:
    """Compare a file in one way."""
    file = read(path)
    given = {name: file.config[name] for name in SAME}
    given |= {"input_size": file.config["img_size"], "embed_dim": file.config["embed_dims"]}
    model = SpikMamba(configure(SpikMambaConfig(), given)).double()
    missing, extra = model.load_state_dict(file.part("state."), strict=False)
    assert not extra
    assert all(name.endswith("num_batches_tracked") for name in missing)
    compare(
        file,
        model,
        lambda x: model(x).mean(0),
        place=lambda name: name,
        neuron=lambda name: name.replace("_lif", "_bn"),  # normalisation and neuron are one module
        variant=variant,
    )
