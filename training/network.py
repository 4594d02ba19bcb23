"""The module that a recipe trains: its network, or, to pre-train without labels, an autoencoder around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from spikeloom.models import MaskedAutoencoder, SpikeGPT, SpikformerV2, create_model, describe
from spikeloom.models.classifier import Classifier
from spikeloom.models.registry import default_config
from spikeloom.training.losses import READOUTS
from spikeloom.training.recipe import Recipe
from spikeloom.training.sources import source

_ENCODER, _HEAD = "encoder.", "head."


def build(recipe: Recipe, num_classes: int) -> nn.Module:
    """A fresh module for a recipe's task; num_classes is the size of the vocabulary where it is language.

    Raises:
        ValueError: no such model, or one that the task or `recompute` is not for.
    """
    _check_kind(recipe)
    if recipe.task == "classify":
        shape = {"num_classes": num_classes, **_steps(recipe), **_channels(recipe)}
        module = create_model(recipe.model, **{**shape, **recipe.model_args})
    elif recipe.task == "language":
        module = create_model(recipe.model, **{"vocab_size": num_classes, **recipe.model_args})
    else:
        module = rebuild(recipe, {**recipe.model_args, "num_classes": 0, "T": 1})
    _check_size(network_of(module), recipe)
    if recipe.early_epochs:
        _check_early(module, recipe)
    if recipe.recompute:
        _recompute(network_of(module), recipe.model)
    return module


def _check_size(network: nn.Module, recipe: Recipe) -> None:
    """Refuse images whose size the network cannot divide into tokens, by the name of the setting.

    Raises:
        ValueError: they are decoded to a size of the recipe's choice, and it is no multiple.
    """
    stride, size = getattr(network, "stride", 1), recipe.data.image_size
    if source(recipe.data).streamed and size % stride:
        raise ValueError(
            f"Data.image_size is {size}, and {recipe.model} makes one token of {stride} x {stride} pixels; expected "
            f"a multiple. Pass --data.image-size {max(size // stride, 1) * stride}."
        )


def rebuild(recipe: Recipe, config: Mapping[str, Any]) -> nn.Module:
    """The module of a checkpoint, given the configuration of its network."""
    network = create_model(recipe.model, **config)
    if recipe.task != "reconstruct":
        return network
    return MaskedAutoencoder(cast(SpikformerV2, network), recipe.mask)


def network_of(module: nn.Module) -> nn.Module:
    """The registered network in what is trained."""
    return module.encoder if isinstance(module, MaskedAutoencoder) else module


def from_encoder(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str] | None:
    """Weights for a classifier from those of an autoencoder: the encoder's, and the classifier's own fresh head.

    Args:
        weights: of a checkpoint. own: of the classifier.

    Returns:
        The weights, and what was left out and what is fresh, in words; None: these are no autoencoder's weights, or
        `own` is an autoencoder too.
    """
    inner = {name.removeprefix(_ENCODER): value for name, value in weights.items() if name.startswith(_ENCODER)}
    if not inner or any(name.startswith(_ENCODER) for name in own):
        return None
    outer = [name for name in weights if not name.startswith(_ENCODER)]
    head = {name: value for name, value in own.items() if name.startswith(_HEAD)}
    says = (
        f"{len(inner)} entries of the encoder; left out: {len(outer)} entries of "
        f"{', '.join(sorted({name.partition('.')[0] for name in outer}))}; fresh: {', '.join(head) or 'nothing'}"
    )
    return {**inner, **head}, says


def _check_early(module: nn.Module, recipe: Recipe) -> None:
    if not (isinstance(module, Classifier) and source(recipe.data).of_images):
        raise ValueError(
            f"The recipe has early_epochs={recipe.early_epochs}, in which images are shown for fewer steps; expected a "
            f"classifier of images, got a {type(module).__name__} and {recipe.data.name}. Pass --early-epochs 0."
        )


def _recompute(network: nn.Module, name: str) -> None:
    if not (isinstance(network, Classifier) and network.recomputes):
        raise ValueError(
            f"The recipe has recompute=True, but {name} is a {type(network).__name__}, which cannot run its blocks "
            "again in backward; expected one of maxformer_..., max_resnet..., qkformer_... and spikformer_... (not "
            "spikformer_v2_...). Leave --recompute out, or choose another --model."
        )
    network.set_recompute(True)


def _steps(recipe: Recipe) -> dict[str, int]:
    """The recipe's time steps as an override of the model's, where its configuration has them.

    Raises:
        ValueError: the recipe names others, or the model has none and the data are images, which have none either.
    """
    T, given = recipe.data.T, recipe.model_args.get("T")
    if not hasattr(default_config(recipe.model), "T"):
        if source(recipe.data).of_images:
            raise ValueError(
                f"{recipe.model} takes frames, and {recipe.data.name} has images. Choose a --model whose configuration "
                "has T, such as spikformer_small; it shows an image at every step."
            )
        return {}
    if given is not None and given != T:
        raise ValueError(
            f"model_args has T={given!r} and data.T is {T}; expected the same. Leave T out of model_args: it "
            "follows --T."
        )
    return {"T": T}


def _channels(recipe: Recipe) -> dict[str, Any]:
    """Channels of the data and the loss's read-out as overrides of a model for sequences.

    Raises:
        ValueError: sequences for another model, or a model for sequences with other data, another loss or schedule; the
            recipe names other channels or another read-out.
    """
    found, config, loss = source(recipe.data), default_config(recipe.model), recipe.loss.name
    of_delays = hasattr(config, "in_features") and hasattr(config, "readout")
    if of_delays != found.of_sequences:
        fitting = "a network with delays, such as delays_shd_2l_1kc" if found.of_sequences else "another --data.name"
        raise ValueError(
            f"{recipe.model} reads {'sequences [T, B, N]' if of_delays else 'frames or images'}, and "
            f"{recipe.data.name} has {'sequences' if found.of_sequences else found.unit}. Choose {fitting}."
        )
    for name, given, fits in (("loss.name", loss, loss in READOUTS), ("optim.schedule", *_schedule(recipe))):
        if fits != of_delays:
            what = "is for networks with delays" if fits else "is not for networks with delays"
            raise ValueError(
                f"The recipe's {name} {given!r} {what}, and the model is {recipe.model}. Those take the losses "
                f"{', '.join(READOUTS)} and the schedule 'delays', other models the others."
            )
    if not of_delays or found.channels is None:
        return {}
    fields = {"in_features": found.channels(recipe.data), "readout": loss}
    for name, value in fields.items():
        if recipe.model_args.get(name, value) != value:
            raise ValueError(
                f"model_args has {name}={recipe.model_args[name]!r}, and the recipe's data and loss ask for {value!r}. "
                f"Leave {name} out of model_args."
            )
    return fields


def _schedule(recipe: Recipe) -> tuple[str, bool]:
    return recipe.optim.schedule, recipe.optim.schedule == "delays"


def _check_kind(recipe: Recipe) -> None:
    """Refuse a model or a data set that the task is not for.

    Raises:
        ValueError: it is.
    """
    kind, of_text = describe(recipe.model).kind, source(recipe.data).of_text
    if recipe.task != "classify" and recipe.optim.schedule == "delays":
        raise ValueError(
            f"The recipe's optim.schedule is 'delays' and its task {recipe.task!r}; expected 'classify', with a "
            "network with delays."
        )
    if of_text != (recipe.task == "language"):
        fitting = "language" if of_text else "classify"
        raise ValueError(
            f"The recipe's task is {recipe.task!r}, and {recipe.data.name} is {'a text' if of_text else 'no text'}. "
            f"Choose another --data.name, or --task {fitting}."
        )
    if of_text and not issubclass(kind, SpikeGPT):
        raise ValueError(
            f"The task 'language' is for SpikeGPT (spikegpt_46m, spikegpt_216m, ...), but the model {recipe.model!r} "
            f"is a {kind.__name__}. Choose another --model, or --task classify with recordings or images."
        )
    if recipe.task == "reconstruct" and not issubclass(kind, SpikformerV2):
        raise ValueError(
            f"The task 'reconstruct' is for SpikformerV2 (spikformer_v2_...), but the model {recipe.model!r} is a "
            f"{kind.__name__}. Choose another --model, or --task classify."
        )
