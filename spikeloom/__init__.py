"""spikeloom: write one time step of a neuron, get fused kernels over all of them.

Sub-packages (`spikeloom.neurons`, `spikeloom.models`, ...) and the names below are loaded at first use, so that
`import spikeloom` costs nothing.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spikeloom.neurons.stream import Stream

__all__ = ["Stream", "__version__"]

__version__ = "0.1.0"

_NAMES = {"Stream": "spikeloom.neurons.stream"}
_FOLDERS = {
    "conversion",
    "datasets",
    "energy",
    "kernels",
    "models",
    "neurons",
    "spiking_attention",
    "synapses",
    "training",
}

# In a source checkout the sub-packages lie beside this folder, so no installation is needed. False for a wheel.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "neurons").is_dir():
    __path__.append(str(_root))


def __getattr__(name: str) -> Any:
    """Load a public name or a sub-package at first use."""
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    if name in _FOLDERS:
        return import_module(f"spikeloom.{name}")
    raise AttributeError(f"module 'spikeloom' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES, *_FOLDERS})
