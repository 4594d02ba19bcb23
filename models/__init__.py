"""Models, one file per paper, and their registry."""

if "." not in __name__:
    # with the repository's root on sys.path another library's `import models` would get this folder
    raise ModuleNotFoundError("import this package as spikeloom.models", name=__name__)

from spikeloom.models.conv_snn import ConvSNN, ConvSNNConfig
from spikeloom.models.registry import create_model, is_model, list_models, model_config, register

__all__ = ["ConvSNN", "ConvSNNConfig", "create_model", "is_model", "list_models", "model_config", "register"]
