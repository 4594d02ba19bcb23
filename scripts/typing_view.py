"""Rebuild .typing/spikeloom: links that show static tools the installed layout.

`neurons/` is imported as `spikeloom.neurons`, which mypy and editors cannot see in a checkout. The links are made from
the package-dir table of pyproject.toml.
"""

import tomllib
from pathlib import Path


def main() -> None:
    """Replace every link in .typing/spikeloom."""
    root = Path(__file__).resolve().parent.parent
    table = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    view = root / ".typing" / "spikeloom"
    view.mkdir(parents=True, exist_ok=True)
    for link in view.iterdir():
        link.unlink()
    for item in (root / "spikeloom").iterdir():
        if item.suffix in {".py", ".typed"}:
            (view / item.name).symlink_to(item)
    for name, folder in table.items():
        if "." in name:
            (view / name.split(".", 1)[1]).symlink_to(root / folder, target_is_directory=True)


if __name__ == "__main__":
    main()
