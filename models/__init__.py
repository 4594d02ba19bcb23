"""Models, one file per paper, and their registry."""

if "." not in __name__:
    # with the repository's root on sys.path another library's `import models` would get this folder
    raise ModuleNotFoundError("import this package as spikeloom.models", name=__name__)

from spikeloom.models.conv_snn import ConvSNN, ConvSNNConfig
from spikeloom.models.official import from_official, list_families
from spikeloom.models.registry import Published, create_model, describe, is_model, list_models, model_config, register
from spikeloom.models.spikformer import Spikformer, SpikformerConfig

__all__ = [
    "ConvSNN",
    "ConvSNNConfig",
    "Published",
    "Spikformer",
    "SpikformerConfig",
    "create_model",
    "describe",
    "from_official",
    "is_model",
    "list_families",
    "list_models",
    "model_config",
    "register",
]
