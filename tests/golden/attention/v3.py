"""Spike-driven Transformer V3: the integer neuron, its layers, and whole base models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from spikeloom_tests.golden.attention.rebuilt import File, Rebuilt, loaded, owner
from spikeloom_tests.golden.attention.whole import whole
from torch import Tensor, nn

from spikeloom.models.official import translate
from spikeloom.spiking_attention import ESDSA, ConvBlock, ESDSALarge, SDSARepConv, SepConv
from spikeloom.spiking_attention.integer import integer_neuron

SEP = {"spike1": "neuron", "spike2": "pw1.fire", "spike3": "dw.fire"}
OTHERS = {
    "spike": "neuron",
    "spike1": "neuron",
    "spike2": "conv1.fire",
    "fc1_spike": "neuron",
    "fc2_spike": "fc1.fire",
    "head": "neuron",
    "attn": "attn_neuron",
    "q": "q.fire",
    "k": "k.fire",
    "v": "v.fire",
}
PARTS = {
    "conv1.0": "wide.synapse",
    "conv1.1": "wide.norm",
    "conv2.0": "narrow.synapse",
    "conv2.1": "narrow.norm",
    "body.0": "rep.inner",
    "body.1.bn": "rep.pad",
    "body.2.0": "rep.depthwise",
    "body.2.1": "rep.outer",
    "body.2.2": "rep.norm",
}


def neurons(module: nn.Module) -> Callable[[str], str]:
    """`Rebuilt.neuron`: inside a separable convolution by SEP, elsewhere by OTHERS."""
    own = set(module.state_dict())

    def neuron(name: str) -> str:
        *path, last = name.split(".")
        if not name:
            return ""
        if last == "encode_spike":
            return translate("sdt_v3", f"{path[0]}.encode_conv.weight", own).replace("synapse.weight", "neuron")
        separable = isinstance(module, SepConv) or path[-1:] in (["Conv"], ["conv"])
        probe = translate("sdt_v3", ".".join([*path, "x"]), own).removesuffix("x")
        attention = last.removesuffix("_lif").removesuffix("_spike")
        return probe + (SEP[last] if separable else OTHERS[last if last in OTHERS else attention])

    return neuron


def step(module: nn.Module, x: Tensor) -> Tensor:
    """The module on one step `[B, ...]`."""
    out: Tensor = module(x.unsqueeze(0))
    return out.squeeze(0)


def plain(key: str) -> str:
    """Names in the two attentions that no model uses, so that the family does not know them."""
    for theirs, name in PARTS.items():
        key = key.replace(f"_conv.0.{theirs}.", f".{name}.")
    return key


def layer(file: File, module: nn.Module) -> Rebuilt:
    """A layer with the file's parameters; all files but the large attention's have no time axis."""
    loaded(module, replace(file, state={plain(key): value for key, value in file.state.items()}), "sdt_v3")
    own = owner(module, "sdt_v3")
    timed = isinstance(module, ESDSALarge)

    neuron = neurons(module)

    def spikes(name: str, kept: Tensor) -> Tensor:
        # behind a normalisation channels lie in front of tokens or of a map; plain neurons on tokens have them last
        return kept if kept.ndim == 5 or neuron(name).endswith("fire") else kept.transpose(2, 3)

    call = (lambda module, x: module(x)) if timed else step
    return Rebuilt(module, lambda key: own(plain(key)), neuron, call, spikes)


def multispike(file: File) -> Rebuilt:
    """The neuron alone."""
    large = "large" in file.name
    norm = file.config["norm" if large else "Norm"]
    module = integer_neuron(file.config.get("max_value", 4), norm=norm, rounding="half_up" if large else "half_even")
    return Rebuilt(module, lambda key: key, neurons(module), step)


def e_sdsa(file: File) -> Rebuilt:
    """Attention of the base models."""
    config = file.config
    return layer(file, ESDSA(config["dim"], config["num_heads"], ratio=config["lamda_ratio"]))


def e_sdsa_large(file: File) -> Rebuilt:
    """Attention of the large models."""
    return layer(file, ESDSALarge(file.config["dim"], file.config["num_heads"]))


def repconv(file: File) -> Rebuilt:
    """Attention with re-parameterisable convolutions."""
    return layer(file, SDSARepConv(file.config["dim"], file.config["num_heads"]))


def sepconv(file: File) -> Rebuilt:
    """Separable convolution."""
    config = file.config
    return layer(file, SepConv(config["dim"], ratio=config["expansion_ratio"], kernel=config["kernel_size"]))


def conv_block(file: File) -> Rebuilt:
    """Convolutional block."""
    return layer(file, ConvBlock(file.config["dim"], ratio=file.config["mlp_ratio"]))


def sdt_v3(file: File) -> Rebuilt:
    """A whole base model."""
    rebuilt = whole(file, "sdt_v3")
    return Rebuilt(rebuilt.module, rebuilt.own, neurons(rebuilt.module), rebuilt.call)


CASES = {
    "multispike_base": multispike,
    "multispike_large": multispike,
    "e_sdsa_base": e_sdsa,
    "sdsa_repconv": repconv,
    "e_sdsa_large": e_sdsa_large,
    "sepconv_spike": sepconv,
    "convblock_base": conv_block,
    "sdt_v3_base": sdt_v3,
}
