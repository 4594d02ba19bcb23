"""Token mixers that take and give spikes, one per file, and the channel mixers of their blocks."""

if "." not in __name__:
    raise ModuleNotFoundError("import this package as spikeloom.spiking_attention", name=__name__)

from spikeloom.spiking_attention.channel_mix import ChannelMix
from spikeloom.spiking_attention.conv_block import ConvBlock
from spikeloom.spiking_attention.e_sdsa import ESDSA
from spikeloom.spiking_attention.e_sdsa_large import ESDSALarge
from spikeloom.spiking_attention.integer_mlp import IntegerMLP
from spikeloom.spiking_attention.mamba import MambaMixer, SelectiveSSM
from spikeloom.spiking_attention.membrane_conv import MembraneConv, membrane_depthwise
from spikeloom.spiking_attention.membrane_mlp import MembraneMLP
from spikeloom.spiking_attention.membrane_qk import MembraneQKToken
from spikeloom.spiking_attention.membrane_ssa import MembraneSSA, MembraneSSAConv
from spikeloom.spiking_attention.mlp import SpikingMLP
from spikeloom.spiking_attention.pool_mixer import PoolMixer
from spikeloom.spiking_attention.pooled_conv import PooledConv
from spikeloom.spiking_attention.qk import QKChannelAttention, QKTokenAttention, fires_if_any
from spikeloom.spiking_attention.sdsa import SDSA
from spikeloom.spiking_attention.sdsa_repconv import SDSARepConv
from spikeloom.spiking_attention.sepconv import SepConv
from spikeloom.spiking_attention.spike_mamba import SpikeMamba
from spikeloom.spiking_attention.spiking_linear import SpikingLinearAttention
from spikeloom.spiking_attention.ssa import SSA
from spikeloom.spiking_attention.time_mix import TimeMix
from spikeloom.spiking_attention.windowed_linear import WindowedLinearAttention
from spikeloom.spiking_attention.wkv import WKV

__all__ = [
    "ESDSA",
    "SDSA",
    "SSA",
    "WKV",
    "ChannelMix",
    "ConvBlock",
    "ESDSALarge",
    "IntegerMLP",
    "MambaMixer",
    "MembraneConv",
    "MembraneMLP",
    "MembraneQKToken",
    "MembraneSSA",
    "MembraneSSAConv",
    "PoolMixer",
    "PooledConv",
    "QKChannelAttention",
    "QKTokenAttention",
    "SDSARepConv",
    "SelectiveSSM",
    "SepConv",
    "SpikeMamba",
    "SpikingLinearAttention",
    "SpikingMLP",
    "TimeMix",
    "WindowedLinearAttention",
    "fires_if_any",
    "membrane_depthwise",
]
