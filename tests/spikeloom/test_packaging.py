"""The hand-written lists of pyproject.toml agree with the folders."""

import importlib.util
import tomllib
from pathlib import Path

import pytest

import spikeloom

ROOT = Path(__file__).resolve().parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]
ROOT_PACKAGES = sorted(folder for folder in FOLDERS.values() if folder != "spikeloom")


def package_folders() -> dict[str, Path]:
    """Every package on disk: import name -> folder."""
    found = {}
    for name, folder in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            nested = init.parent.relative_to(ROOT / folder).parts
            found[".".join([name, *nested])] = init.parent
    return found


def test_packages_are_the_folders_with_an_init() -> None:
    assert sorted(SETUPTOOLS["packages"]) == sorted(package_folders())


def test_root_folders_are_in_the_package_dir_table() -> None:
    assert sorted(FOLDERS.values()) == sorted(init.parent.name for init in ROOT.glob("*/__init__.py"))
    assert set(ROOT_PACKAGES) == spikeloom._FOLDERS


def test_every_file_of_a_package_is_in_the_wheel() -> None:
    packed: set[Path] = set()
    for name, folder in package_folders().items():
        patterns = ["*.py", *SETUPTOOLS["package-data"]["*"], *SETUPTOOLS["package-data"].get(name, [])]
        for pattern in patterns:
            packed.update(folder.glob(pattern))
    present = {
        file
        for folder in FOLDERS.values()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert present - packed == set()


@pytest.mark.parametrize("folder", ROOT_PACKAGES)
def test_root_package_refuses_its_short_name(folder: str) -> None:
    """`import datasets` in another library must not find our folder when the repository is on sys.path."""
    spec = importlib.util.spec_from_file_location(folder, ROOT / folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ModuleNotFoundError, match=f"spikeloom.{folder}"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_no_init_in_tests() -> None:
    """It would put the repository on sys.path."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize(("file", "line"), [("CITATION.cff", "version: {}"), ("CHANGELOG.md", "## [{}]")])
def test_version_is_the_same_everywhere(file: str, line: str) -> None:
    assert line.format(spikeloom.__version__) in (ROOT / file).read_text()


def test_public_names_load_at_first_use() -> None:
    from spikeloom.neurons.stream import Stream

    assert spikeloom.Stream is Stream
    assert set(spikeloom.__all__) <= set(dir(spikeloom))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        spikeloom.nonsense  # noqa: B018
