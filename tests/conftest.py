"""What every test shares."""

import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _name_this_folder(name: str) -> None:
    """Make helpers under tests/ importable as `<name>.golden.energy.graph`: pytest imports test files by path alone."""
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(HERE)]
    sys.modules[name] = importlib.util.module_from_spec(spec)


_name_this_folder("spikeloom_tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options must be declared by the conftest that is loaded for `pytest tests` too, so this one."""
    parser.addoption(
        "--golden",
        default=str(HERE / "golden" / "data"),  # a string: pytest-xdist sends options to its workers as plain values
        metavar="DIR",
        help="golden files to compare with: the folder of one family, or a folder of such folders",
    )


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For small networks, whose threads would wait for each other most of the time where cores have other work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
