"""Models, one file per paper, and their registry."""

if "." not in __name__:
    # with the repository's root on sys.path another library's `import models` would get this folder
    raise ModuleNotFoundError("import this package as spikeloom.models", name=__name__)

from spikeloom.models import maxformer_official  # noqa: F401  (makes its families known)
from spikeloom.models.conv_snn import ConvSNN, ConvSNNConfig
from spikeloom.models.files import load_model, save_model
from spikeloom.models.masked import MaskedAutoencoder, MaskedConfig
from spikeloom.models.max_resnet import MaxResNet, MaxResNetConfig
from spikeloom.models.maxformer import MaxFormer, MaxFormerConfig
from spikeloom.models.official import from_official, list_families
from spikeloom.models.qkformer import QKFormer, QKFormerConfig
from spikeloom.models.registry import Published, create_model, describe, is_model, list_models, model_config, register
from spikeloom.models.sdt import SDTConfig, SpikeDrivenTransformer
from spikeloom.models.sdt_v3 import SDTV3, SDTV3Config
from spikeloom.models.spikformer import Spikformer, SpikformerConfig
from spikeloom.models.spikformer_v2 import SpikformerV2, SpikformerV2Config

__all__ = [
    "SDTV3",
    "ConvSNN",
    "ConvSNNConfig",
    "MaskedAutoencoder",
    "MaskedConfig",
    "MaxFormer",
    "MaxFormerConfig",
    "MaxResNet",
    "MaxResNetConfig",
    "Published",
    "QKFormer",
    "QKFormerConfig",
    "SDTConfig",
    "SDTV3Config",
    "SpikeDrivenTransformer",
    "Spikformer",
    "SpikformerConfig",
    "SpikformerV2",
    "SpikformerV2Config",
    "create_model",
    "describe",
    "from_official",
    "is_model",
    "list_families",
    "list_models",
    "load_model",
    "model_config",
    "register",
    "save_model",
]
