"""The published sizes of SpikeGPT, and the authors' checkpoints: `from_official("spikegpt", {}, state_dict)`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from spikeloom.models.config import configure
from spikeloom.models.official import Family, register_family
from spikeloom.models.registry import UNREAD, Published, register_variant
from spikeloom.models.spikegpt import SpikeGPT, SpikeGPTClassifier, SpikeGPTClassifierConfig, SpikeGPTConfig

PAPER = "Zhu et al. 2023, SpikeGPT, arXiv:2302.13939"
BITS, PERPLEXITY = "bits per character", "perplexity"

_46M = SpikeGPTConfig(vocab_size=6064, embed_dim=512, depth=12)
_216M = SpikeGPTConfig()

register_variant(
    "spikegpt_46m", SpikeGPT, _46M, "12 blocks of width 512; 6,064 characters, those of enwik8.", paper=PAPER,
    published=[
        Published("enwik8", 1.283, f"context 1024; {UNREAD}", BITS),
        Published("enwik8", 1.262, f"context 3072; {UNREAD}", BITS),
    ],
)  # fmt: skip
register_variant(
    "spikegpt_216m", SpikeGPT, _216M, "18 blocks of width 768; the 50,277 tokens of GPT-NeoX-20B.", paper=PAPER,
    published=[
        Published("WikiText-2", 18.01, f"fine-tuned; {UNREAD}", PERPLEXITY),
        Published("WikiText-103", 39.75, f"fine-tuned; {UNREAD}", PERPLEXITY),
    ],
)  # fmt: skip
register_variant(
    "spikegpt_bookcorpus", SpikeGPT, replace(_216M, vocab_size=77, depth=24),
    "24 blocks of width 768; 77 characters, as the published weights.", paper=PAPER,
)  # fmt: skip


def _register_classifier(name: str, says: str, base: SpikeGPTConfig, note: str, *accuracies: float) -> None:
    config = SpikeGPTClassifierConfig(**{**vars(base), "vocab_size": 50277})
    published = [
        Published(data, accuracy, f"{note}; {UNREAD}")
        for data, accuracy in zip(("SST-2", "SST-5", "MR", "Subj"), accuracies, strict=True)
    ]
    register_variant(name, SpikeGPTClassifier, config, says, paper=PAPER, published=published)


_register_classifier(
    "spikegpt_classifier_46m", "12 blocks of width 512, 50,277 tokens; classifies texts by a read-out of ours.",
    _46M, "from scratch", 80.39, 37.69, 69.23, 88.45,
)  # fmt: skip
_register_classifier(
    "spikegpt_classifier_216m", "18 blocks of width 768, 50,277 tokens; classifies texts by a read-out of ours.",
    _216M, "pre-trained", 88.76, 51.27, 85.63, 95.30,
)  # fmt: skip


def _build(config: dict[str, Any], state: Mapping[str, Tensor], **options: Any) -> SpikeGPT:
    """All sizes are read off the state dict; arguments that say otherwise are an error.

    Raises:
        ValueError: no `emb.weight` or no block, or an argument that disagrees.
    """
    layers = {int(match[1]) for key in state if (match := re.match(r"blocks\.(\d+)\.", key))}
    if "emb.weight" not in state or state["emb.weight"].ndim != 2 or not layers:
        raise ValueError(
            "The spikegpt state dict has no matrix emb.weight or no blocks.0...; expected that of the authors' GPT."
        )
    vocabulary, features = state["emb.weight"].shape
    pre = any(key.startswith("blocks.0.ffnPre.") for key in state)
    found = {"vocab_size": vocabulary, "n_embd": features, "n_layer": max(layers) + 1}
    kind = config.get("model_type")
    wrong = [f"{name}={config[name]!r}" for name, value in found.items() if config.get(name, value) != value]
    wrong += [f"model_type={kind!r}"] if kind is not None and (kind == "RWKV-ffnPre") != pre else []
    if wrong:
        shown = ", ".join(f"{name}={value}" for name, value in found.items())
        raise ValueError(
            f"The spikegpt configuration has {', '.join(wrong)}, but the state dict is that of {shown}, "
            f"model_type={'RWKV-ffnPre' if pre else 'RWKV'!r}. Leave out what the weights show."
        )
    ours = {"vocab_size": vocabulary, "embed_dim": features, "depth": max(layers) + 1, "ffn_pre": pre}
    return SpikeGPT(configure(SpikeGPTConfig(), {**ours, **options}))


def _rename(key: str) -> str:
    key = key.replace("blocks.0.ffnPre.", "blocks.0.att.")
    key = re.sub(r"\.(time_mix_[kvr])$", r".mix.\1", key)
    return re.sub(r"\.(time_decay|time_first)$", r".wkv.\1", key)


register_family(
    "spikegpt",
    Family(_build, _rename, (), "spikegpt_[!c]*", ("vocab_size", "ctx_len", "n_layer", "n_embd", "model_type")),
)
