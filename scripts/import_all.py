"""Import every module of the installed spikeloom; fail if it is a source checkout or if one module does not import.

Run it in an environment that holds the wheel and its core dependencies only, outside the repository: it then shows that
no package is missing from the wheel and that no optional dependency is imported too early.
"""

import importlib
import pkgutil
import sys
from importlib import metadata
from pathlib import Path

import spikeloom


def main() -> int:
    """Import all modules; return the exit code."""
    folder = Path(spikeloom.__file__).parent
    if (folder.parent / "pyproject.toml").exists():
        print(f"error: {folder} is a source checkout; install the wheel and run this outside the repository")
        return 1
    names = ["spikeloom", *(m.name for m in pkgutil.walk_packages(spikeloom.__path__, "spikeloom."))]
    for name in names:
        importlib.import_module(name)
    if metadata.version("spikeloom") != spikeloom.__version__:
        print(f"error: the wheel is {metadata.version('spikeloom')}, the code says {spikeloom.__version__}")
        return 1
    print(f"imported {len(names)} modules of spikeloom {spikeloom.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
