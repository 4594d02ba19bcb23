"""Models, one file per paper, and their registry."""

if "." not in __name__:
    # with the repository's root on sys.path another library's `import models` would get this folder
    raise ModuleNotFoundError("import this package as spikeloom.models", name=__name__)

from spikeloom.models import delay_official, maxformer_official, spikegpt_variants  # noqa: F401  (makes their families known)
from spikeloom.models.conv_snn import ConvSNN, ConvSNNConfig
from spikeloom.models.delay_schedule import DelaySchedule, parameter_groups
from spikeloom.models.delay_snn import DelaySNN, DelaySNNConfig
from spikeloom.models.files import load_model, save_model
from spikeloom.models.masked import MaskedAutoencoder, MaskedConfig
from spikeloom.models.max_resnet import MaxResNet, MaxResNetConfig
from spikeloom.models.maxformer import MaxFormer, MaxFormerConfig
from spikeloom.models.official import from_official, list_families
from spikeloom.models.qkformer import QKFormer, QKFormerConfig
from spikeloom.models.registry import Published, create_model, describe, is_model, list_models, model_config, register
from spikeloom.models.sampling import next_token_probabilities
from spikeloom.models.sdt import SDTConfig, SpikeDrivenTransformer
from spikeloom.models.sdt_v3 import SDTV3, SDTV3Config
from spikeloom.models.spikegpt import SpikeGPT, SpikeGPTClassifier, SpikeGPTClassifierConfig, SpikeGPTConfig
from spikeloom.models.spikformer import Spikformer, SpikformerConfig
from spikeloom.models.spikformer_v2 import SpikformerV2, SpikformerV2Config
from spikeloom.models.spikmamba import SpikMamba, SpikMambaConfig
from spikeloom.models.spikmamba_official import SpikMambaOfficial, SpikMambaOfficialConfig
from spikeloom.models.token_loss import language_loss

__all__ = [
    "SDTV3",
    "ConvSNN",
    "ConvSNNConfig",
    "DelaySNN",
    "DelaySNNConfig",
    "DelaySchedule",
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
    "SpikMamba",
    "SpikMambaConfig",
    "SpikMambaOfficial",
    "SpikMambaOfficialConfig",
    "SpikeDrivenTransformer",
    "SpikeGPT",
    "SpikeGPTClassifier",
    "SpikeGPTClassifierConfig",
    "SpikeGPTConfig",
    "Spikformer",
    "SpikformerConfig",
    "SpikformerV2",
    "SpikformerV2Config",
    "create_model",
    "describe",
    "from_official",
    "is_model",
    "language_loss",
    "list_families",
    "list_models",
    "load_model",
    "model_config",
    "next_token_probabilities",
    "parameter_groups",
    "register",
    "save_model",
]
