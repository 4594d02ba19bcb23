"""Networks and single modules of the Max-Former files, with the files' parameters, and where their neurons are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from spikeloom_tests.golden.attention.rebuilt import File, read
from torch import Tensor, nn

from spikeloom.models import MaxFormerConfig, from_official
from spikeloom.models.maxformer import Block
from spikeloom.models.maxformer_embed import Embed
from spikeloom.models.official import load_official, translate
from spikeloom.neurons import LIF

EMBEDS = {
    ("Embed_Orig", "cifar"): "orig",
    ("Embed_Orig_ImageNet", "imagenet"): "orig_imagenet",
    ("Embed_Max", "cifar"): "max",
    ("Embed_Max_plus", "event"): "max_plus",
    ("Embed_Orig_later", "cifar"): "orig_later",
    ("Embed_1Max", "cifar"): "one_max",
    ("Embed_1Max", "imagenet"): "one_max_first",
    ("PatchEmbedInit", "imagenet"): "qk_init",
    ("PatchEmbeddingStage", "imagenet"): "qk_stage",
}


@dataclass(frozen=True)
class Built:
    """Ours, the prefix that turns the file's names into those of a whole network, and the family of its names."""

    module: nn.Module
    prefix: str
    family: str
    file: File

    def own(self, key: str) -> str:
        """Our name of an official entry, "#i" for a third of its rows."""
        return translate(self.family, self.prefix + key, self.module.state_dict())

    def call(self, x: Tensor) -> Tensor:
        """Our output in the axes of the file's: of a network the mean of logits over time, of a module all steps."""
        if self.prefix:
            out: Tensor = self.module(x)
            return out
        return self.module(x.transpose(0, 1) if x.ndim == 5 else x).mean(0)  # type: ignore[no-any-return]

    def neuron(self, name: str) -> str:
        """Where an official neuron's spikes are: our module, "<" for its input, "#i" for a third of its channels."""
        *path, last = (self.prefix + name).split(".")
        if last == "head_lif":
            return last
        if self.family == "max_resnet":
            convs = {"spike1": "conv1", "spike2": "conv2"}
            if last == "spike":
                blocks = [key for key, _ in self.module.named_modules() if re.fullmatch(r"stages\.\d\.\d", key)]
                return f"{max(blocks)}.conv2"
            return f"stages.{int(path[0][-1]) - 1}.{path[1]}.{convs[last]}<"
        if path[0].startswith("patch_embed"):
            link = {"proj_lif1": "proj1", "proj_lif2": "proj2", "init_lif": "proj3", "proj3_lif": "proj4"}
            return f"embeds.{int(path[0][-1]) - 1}.convs.{link.get(last) or path[-1]}<"
        block = f"stages.{int(path[0][-1]) - 1}.{path[1]}"
        part = last.removesuffix("_lif")
        if path[-1] == "mlp":
            return f"{block}.mlp.{part}<"
        if last in ("x_lif", "proj_lif", "conv_neuron", "conv5_neuron"):
            return f"{block}.mixer<"
        if last in ("attn_lif", "dwc_neuron"):
            return f"{block}.mixer.attn_lif" if last == "attn_lif" else f"{block}.mixer.dwc<"
        separate = f"{block}.mixer.{part}"
        return separate if separate in dict(self.module.named_modules()) else f"{block}.mixer.qkv#{'qkv'.index(part)}"

    def map(self, name: str) -> str:
        """Our module whose stream is an official module's output."""
        kind, number, block = re.fullmatch(r"([a-z_]+)(\d+)\.?(\d*)", name).groups()  # type: ignore[union-attr]
        place = int(number) - 1
        if kind == "patch_embed":
            return f"embeds.{place}"
        if kind == "layer":
            stage = self.module.get_submodule(f"stages.{place}")
            return f"stages.{place}.{len(list(stage.children())) - 1}"
        return f"stages.{place}.{block}"


class Alone(nn.Module):
    """A module on its own: the neuron in front of it, the module, no neuron behind; the stream in, the stream out."""

    def __init__(self, part: Embed | Block) -> None:
        super().__init__()
        self.lif = LIF()
        if isinstance(part, Embed):
            self.embeds = nn.ModuleList([part])
        else:
            self.stages = nn.ModuleList([nn.ModuleList([part])])
        self.parts = [part]

    def forward(self, u: Tensor) -> Tensor:
        out: Tensor = self.parts[0](self.lif(u), u)[1]
        return out


def build(path: Path) -> Built:
    """What a file is of, in evaluation and float64, with its parameters."""
    file = read(path)
    config: dict[str, Any] = file.config
    if config["family"] == "module":
        return single(file)
    given = ("embed_dims", "mlp_ratios", "in_channels", "num_classes", "T")
    arguments = {name: config[name] for name in given if name in config}
    if config["family"] == "resnet":
        family, options = "max_resnet", {}
    else:
        family = {"Max_Former": "maxformer", "MS_QKformer": "ms_qkformer"}[config["model"]]
        options = {"num_heads": config.get("stage3_heads") or config["stage2_heads"]}
    model = from_official(family, arguments, file.state, **options)
    return Built(model.double().eval(), "", family, file)


def single(file: File) -> Built:
    """One module; the MLP is the block without a mixer."""
    name, args = file.config["model"], file.config["args"]
    part: Embed | Block
    if "embed_dims" in args:
        embed: Any = EMBEDS[name, file.config["module_file"]]
        part, prefix = Embed(embed, args["in_channels"], args["embed_dims"], last=True), "patch_embed1."
    else:
        width = args.get("dim") or args["in_features"]
        ratio = args.get("mlp_ratio") or args["hidden_features"] / width
        mixer: Any = name.removeprefix("Block_").lower() if name.startswith("Block_") else "identity"
        config = MaxFormerConfig(num_heads=args.get("num_heads", 1), mlp_ratio=ratio, embed_dim=4 * width)
        part = Block(mixer, width, config, last=True)
        prefix = "stage1.0." if name.startswith("Block_") else "stage1.0.mlp."
    module = Alone(part)
    load_official(module, {prefix + key: value for key, value in file.state.items()}, "maxformer")
    return Built(module.to(torch.float64).eval(), prefix, "maxformer", file)
