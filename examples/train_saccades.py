"""Train a small spiking network on simulated events of digits, by the Python API: `python examples/train_saccades.py`.

Needs no download and no GPU. Two epochs of 4,000 recordings: about 15 s on two CPU cores. `spikeloom train
saccade_small` is the whole training.
"""

import sys
import tempfile
from dataclasses import replace

from spikeloom.training import count_spikes, fit, get_recipe, load_model
from spikeloom.training.data import Batches, load_test
from spikeloom.training.run import pick_device


def main() -> int:
    """Train, then look at what some test recordings do in the trained network."""
    recipe = replace(get_recipe("saccade_small"), epochs=2)
    with tempfile.TemporaryDirectory() as folder:
        result = fit(recipe, f"{folder}/run")
        print(f"test accuracy {result.test.accuracy:.1%} on {result.test.samples} simulated recordings")

        model, _ = load_model(result.checkpoint)
    some = load_test(replace(recipe.data, limit=50))  # five of each digit
    frames, labels = next(Batches(some, recipe.data, 50, pick_device("cpu")).in_order())
    with count_spikes(model) as layers:
        logits = model(frames)  # [T, B, classes]: a logit at every time step
    for t in range(1, recipe.data.T + 1):
        right = int((logits[:t].mean(0).argmax(1) == labels).sum())
        print(f"after {t} of {recipe.data.T} time steps {right} of {len(labels)} are recognised")
    for name, layer in layers.items():
        print(f"{name}: {layer.neurons} neurons, each fires in {layer.rate:.1%} of the steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
