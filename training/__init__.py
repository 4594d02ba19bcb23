"""Recipes, the training loop, checkpoints and logs."""

if "." not in __name__:
    raise ModuleNotFoundError("import this package as spikeloom.training", name=__name__)
