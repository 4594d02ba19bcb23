"""The module that a recipe trains: its network, or, to pre-train without labels, an autoencoder around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from spikeloom.models import MaskedAutoencoder, SpikformerV2, create_model, describe
from spikeloom.models.registry import default_config
from spikeloom.training.recipe import Recipe
from spikeloom.training.sources import source

_ENCODER, _HEAD = "encoder.", "head."


def build(recipe: Recipe, num_classes: int) -> nn.Module:
    """A fresh module for a recipe's task.

    Raises:
        ValueError: no such model, or one that the task is not for.
    """
    if recipe.task == "classify":
        return create_model(recipe.model, **{"num_classes": num_classes, **_steps(recipe), **recipe.model_args})
    _check_kind(recipe)
    return rebuild(recipe, {**recipe.model_args, "num_classes": 0, "T": 1})


def rebuild(recipe: Recipe, config: Mapping[str, Any]) -> nn.Module:
    """The module of a checkpoint, given the configuration of its network."""
    network = create_model(recipe.model, **config)
    if recipe.task == "classify":
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


def _check_kind(recipe: Recipe) -> None:
    kind = describe(recipe.model).kind
    if not issubclass(kind, SpikformerV2):
        raise ValueError(
            f"The task 'reconstruct' is for SpikformerV2 (spikformer_v2_...), but the model {recipe.model!r} is a "
            f"{kind.__name__}. Choose another --model, or --task classify."
        )
