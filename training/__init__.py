"""Training: recipes, losses, loops, checkpoints."""

if "." not in __name__:
    raise ModuleNotFoundError("import this package as spikeloom.training", name=__name__)

from spikeloom.models.files import CheckpointError
from spikeloom.training.checkpoint import load_model
from spikeloom.training.firing import count_spikes
from spikeloom.training.interrupt import TrainingInterrupted
from spikeloom.training.losses import rate_loss, tet_loss
from spikeloom.training.recipe import Augment, Data, Loss, Optim, Recipe
from spikeloom.training.recipes import get_recipe, list_recipes, recipe
from spikeloom.training.run import Result, fit

# isort: split
from spikeloom.training import (  # noqa: F401  they register recipes
    delay_recipes,
    imagenet_recipes,
    maxformer_recipes,
    qkformer_recipes,
    sdt_recipes,
    small_recipes,
    spikegpt_recipes,
    spikformer_recipes,
    spikformer_v2_recipes,
    spikmamba_recipes,
)

__all__ = [
    "Augment",
    "CheckpointError",
    "Data",
    "Loss",
    "Optim",
    "Recipe",
    "Result",
    "TrainingInterrupted",
    "count_spikes",
    "fit",
    "get_recipe",
    "list_recipes",
    "load_model",
    "rate_loss",
    "recipe",
    "tet_loss",
]
