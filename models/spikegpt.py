"""SpikeGPT: a language model whose time axis is the text. Every token is one step of its LIF neurons.

    x = spike(E[id]);  x = ln0(x)                      embedding of zeros and ones
    x = x + LIF(TimeMix(ln1(x)))                       `depth` times
    x = x + LIF(ChannelMix(ln2(x)));  x = dropout(x)
    logits = W ln_out(x)

Paper: Zhu, Zhao, Li, Eshraghian 2023, "SpikeGPT: Generative Pre-trained Language Model with Spiking Neural Networks",
arXiv:2302.13939, with the details of the authors' code (ridgerchu/SpikeGPT, commit 029f86f). Token ids are [T, B], time
first, x is [T, B, C]. A whole text in one call and a text in a `Stream`, token by token or in pieces, are one code path
and give the same logits. What the authors' generation script does otherwise is in `embedding` and `rescale_every`.
On a GPU sums, normalisations and token shifts of a whole text are fused (`spikegpt_fused`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spikeloom.kernels import spike
from spikeloom.models.classifier import fresh_head
from spikeloom.models.read_out import ReadOut
from spikeloom.models.spikegpt_fused import fused_blocks, fuses
from spikeloom.models.spikegpt_init import Init, initialise, initialise_head
from spikeloom.neurons import LIF, Neuron, neuron
from spikeloom.spiking_attention import ChannelMix, TimeMix


@dataclass(frozen=True)
class SpikeGPTConfig:
    """Sizes and switches.

    ffn_pre: the first block has a second channel-mix in the place of its time-mix ("RWKV-ffnPre"). embedding: "binary"
    for 1 where an entry is >= 0, "raw" for the entry as it is. rescale_every: n > 0 halves x behind every n-th block
    and divides what goes into the neurons of block l by 2^floor(l / n). The authors' generation script has "raw" (save
    for vocab_size = 77) and 6, their training neither, so with these a trained model answers otherwise than it learned.
    v_threshold, detach_reset: of every LIF. dropout: rate on x behind every block. init: see `spikegpt_init`.
    """

    vocab_size: int = 50277
    embed_dim: int = 768
    depth: int = 18
    ffn_pre: bool = False
    embedding: Literal["binary", "raw"] = "binary"
    rescale_every: int = 0
    v_threshold: float = 1.0
    detach_reset: bool = False
    dropout: float = 0.03
    init: Init = "default"

    def __post_init__(self) -> None:
        name = type(self).__name__
        if min(self.vocab_size, self.depth) < 1 or self.embed_dim < 2 or self.rescale_every < 0:
            raise ValueError(
                f"{name}: vocab_size={self.vocab_size} and depth={self.depth} must be >= 1, embed_dim={self.embed_dim} "
                f">= 2, rescale_every={self.rescale_every} >= 0 (0: never)."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"{name}.dropout is {self.dropout}; expected a rate in [0, 1).")
        for field, known in (("embedding", ("binary", "raw")), ("init", ("default", "orthogonal", "rwkv"))):
            if getattr(self, field) not in known:
                raise ValueError(f"{name}.{field} is {getattr(self, field)!r}; expected one of {', '.join(known)}.")


@dataclass(frozen=True)
class SpikeGPTClassifierConfig(SpikeGPTConfig):
    """The same with a number of classes (0: no classifier) and how tokens are pooled: their mean, or the last one."""

    num_classes: int = 2
    pool: Literal["mean", "last"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes < 0 or self.pool not in ("mean", "last"):
            raise ValueError(
                f"SpikeGPTClassifierConfig: num_classes={self.num_classes} must be >= 0 (0: no classifier) and pool "
                f"'mean' or 'last', got {self.pool!r}."
            )


@neuron()
def binary(x: Any, *, alpha: Any = 2.0) -> Any:
    """A spike where x >= 0, without membrane; surrogate arctangent."""
    return spike(x, "atan", alpha)


class Block(nn.Module):
    """x + LIF(TimeMix(LN(x))), then x + LIF(ChannelMix(LN(x))), on [T, B, C]."""

    def __init__(self, config: SpikeGPTConfig, layer: int) -> None:
        super().__init__()
        C, every = config.embed_dim, config.rescale_every
        self.ln0 = nn.LayerNorm(C) if layer == 0 else nn.Identity()
        self.ln1, self.ln2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.att: nn.Module = ChannelMix(C) if config.ffn_pre and layer == 0 else TimeMix(C)
        self.ffn = ChannelMix(C)
        self.lif1, self.lif2 = _lif(config), _lif(config)
        self.dropout = nn.Dropout(config.dropout)
        self.divisor = 2 ** (layer // every) if every else 1
        self.halves = bool(every) and (layer + 1) % every == 0

    def forward(self, x: Tensor) -> Tensor:
        """All tokens."""
        x = self.ln0(x)
        x = x + self.lif1(self.scaled(self.att(self.ln1(x))))
        x = x + self.lif2(self.scaled(self.ffn(self.ln2(x))))
        x = self.dropout(x)
        return x / 2 if self.halves else x

    def scaled(self, current: Tensor) -> Tensor:
        """A neuron's input; a power of two divides exactly, so this is the division of the last matrix."""
        return current / self.divisor if self.divisor > 1 else current


def _lif(config: SpikeGPTConfig) -> LIF:
    return LIF(2.0, config.v_threshold, detach_reset=config.detach_reset, surrogate="atan", alpha=2.0)


class _Backbone(nn.Module):
    """Token ids [T, B] -> features [T, B, C]."""

    def __init__(self, config: SpikeGPTConfig) -> None:
        super().__init__()
        self.config: Any = config
        self.num_features = config.embed_dim
        self.emb = nn.Embedding(config.vocab_size, config.embed_dim)
        self.binary = Neuron(binary) if config.embedding == "binary" else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.ln_out = nn.LayerNorm(config.embed_dim)
        initialise(self.emb, self.blocks, config.init)

    def forward_features(self, ids: Tensor) -> Tensor:
        """What the read-out reads: [T, B] -> [T, B, C].

        Raises:
            ValueError: no ids [T, B], or on a CPU an id outside of the vocabulary (a GPU is not asked, which would make
                every call wait for it; torch stops there by an assertion of the device).
        """
        check_ids(ids, self.config.vocab_size, type(self).__name__)
        x: Tensor = self.binary(self.emb(ids))
        if all(type(block) is Block for block in self.blocks) and fuses(x, self.blocks, self.ln_out):
            return fused_blocks(self.blocks[0].get_submodule("ln0")(x), self.blocks, self.ln_out)
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.ln_out(x)
        return features


class SpikeGPT(_Backbone):
    """Token ids [T, B] -> logits [T, B, vocab_size] of the token after each."""

    def __init__(self, config: SpikeGPTConfig) -> None:
        super().__init__(config)
        self.head = ReadOut(config.embed_dim, config.vocab_size)
        initialise_head(self.head.weight, config.init)

    def forward_head(self, features: Tensor) -> Tensor:
        """Features [T, B, C] -> logits [T, B, vocab_size]."""
        logits: Tensor = self.head(features)
        return logits

    def forward(self, ids: Tensor, *, last: bool = False) -> Tensor:
        """All tokens; `last` gives the logits behind the last one alone, [1, B, vocab_size], to save their memory."""
        features = self.forward_features(ids)
        return self.forward_head(features[-1:] if last else features)


class SpikeGPTClassifier(_Backbone):
    """Token ids [T, B] -> logits [B, num_classes] of whole texts, by a linear map of their pooled features.

    The authors' classifier is not published; this one is ours. Texts are padded at their end: the network is causal, so
    what stands there changes no real token.
    """

    def __init__(self, config: SpikeGPTClassifierConfig) -> None:
        super().__init__(config)
        self.head: nn.Module
        self.reset_classifier(config.num_classes)

    @classmethod
    def of(cls, model: SpikeGPT, num_classes: int, pool: Literal["mean", "last"] = "mean") -> SpikeGPTClassifier:
        """A classifier with a copy of a language model's body and a fresh read-out, of its type and device."""
        like = model.emb.weight
        classifier = cls(SpikeGPTClassifierConfig(**vars(model.config), num_classes=num_classes, pool=pool))
        for part in ("emb", "blocks", "ln_out"):
            classifier.get_submodule(part).load_state_dict(model.get_submodule(part).state_dict())
        return classifier.to(like.device, like.dtype).train(model.training)

    @property
    def num_classes(self) -> int:
        """The number of classes; 0: no classifier."""
        return int(self.config.num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh classifier in the place of the old one, of the model's type and device; 0 takes it away.

        Raises:
            ValueError: `num_classes` is no whole number >= 0.
        """
        self.head = fresh_head(self, self.num_features, num_classes)
        self.config = replace(self.config, num_classes=num_classes)

    def pooled(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Features [T, B, C] -> [B, C]: over each text's first `lengths` tokens [B] their mean, or the last of them."""
        T, B = features.shape[:2]
        if lengths is None:
            return features.mean(0) if self.config.pool == "mean" else features[-1]
        if lengths.shape != (B,) or lengths.is_floating_point() or bool(((lengths < 1) | (lengths > T)).any()):
            raise ValueError(
                f"SpikeGPTClassifier got lengths {lengths.tolist()} for token ids [T, B] = [{T}, {B}]; expected {B} "
                f"whole numbers, the real tokens of each text, from 1 to {T}."
            )
        if self.config.pool == "last":
            return features[lengths - 1, torch.arange(B, device=features.device)]
        real = torch.arange(T, device=features.device).unsqueeze(1) < lengths  # [T, B]
        exact = torch.promote_types(features.dtype, torch.float32)  # half precision has no lengths like 1001
        total = features.masked_fill(~real.unsqueeze(2), 0.0).sum(0, dtype=exact)
        return (total / lengths.unsqueeze(1).to(exact)).to(features.dtype)

    def forward_head(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Features [T, B, C] -> logits [B, num_classes]."""
        logits: Tensor = self.head(self.pooled(features, lengths).unsqueeze(0)).squeeze(0)
        return logits

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Token ids [T, B] and the number of real tokens of each text [B] (None: all) -> logits [B, num_classes]."""
        return self.forward_head(self.forward_features(ids), lengths)


def check_ids(ids: Tensor, vocab_size: int, name: str) -> None:
    """Raise unless these are token ids [T, B] of the vocabulary (their values are looked at on a CPU only)."""
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32) or ids.ndim != 2 or 0 in ids.shape:
        got = f"{list(ids.shape)} of {ids.dtype}" if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
        raise ValueError(
            f"{name} got {got}; expected token ids [T, B] of torch.int64, tokens along the first axis and none of the "
            "axes empty. One text is ids.unsqueeze(1); a batch of texts [B, T] is ids.transpose(0, 1)."
        )
    if ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    low, high = (int(value) for value in ids.aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"{name} got the token id {low if low < 0 else high}; expected ids from 0 to {vocab_size - 1} "
            f"(vocab_size={vocab_size}). Encode the text with the vocabulary that the model was built for."
        )
