"""Which backend runs, and what is said where one cannot: no device, no CuPy, a CuPy of another CUDA version."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spikeloom.kernels import backends
from spikeloom.kernels.cuda import build


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[pytest.MonkeyPatch]:
    """Nothing is known about backends, and the kernel cache is empty."""
    monkeypatch.setattr(backends, "_chosen", {})
    monkeypatch.setenv("SPIKELOOM_CACHE", str(tmp_path))
    build.cupy.cache_clear()
    build.function.cache_clear()
    yield monkeypatch
    build.cupy.cache_clear()
    build.function.cache_clear()


@pytest.fixture
def with_device(undecided: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """torch says that it sees a GPU."""
    undecided.setattr(torch.cuda, "is_available", lambda: True)
    undecided.setattr(torch.cuda, "current_device", lambda: 0)
    undecided.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    return undecided


def test_auto_takes_the_kernel_of_the_device(device: str) -> None:
    assert backends.choose("auto", device) == device
    assert backends.choose(device, device) == device
    assert backends.choose("reference", device) == "reference"
    works, detail, _ = backends.probe(device)
    assert works
    assert ("cache" if device == "cpu" else "CuPy") in detail


def test_the_reference_is_always_there() -> None:
    works, detail, _ = backends.probe("reference")
    assert works
    assert torch.__version__ in detail
    with pytest.raises(ValueError, match="unknown backend 'tpu'; known: auto, reference, cpu, cuda"):
        backends.probe("tpu")


def test_a_device_without_kernels_gets_the_reference_and_one_warning(undecided: pytest.MonkeyPatch) -> None:
    with pytest.warns(
        RuntimeWarning, match="plain PyTorch .slow. on xpu: there are no kernels for xpu devices"
    ) as caught:
        assert [backends.choose("auto", "xpu") for _ in range(3)] == ["reference"] * 3
    assert len(caught) == 1


def test_no_device(undecided: pytest.MonkeyPatch) -> None:
    undecided.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(backends.BackendError, match="backend='cuda' cannot run: no CUDA device is visible to torch"):
        backends.choose("cuda", "cuda")


def test_no_cupy_names_the_wheel_to_install(with_device: pytest.MonkeyPatch) -> None:
    import_ = builtins.__import__

    def without_cupy(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "cupy":
            raise ImportError("No module named 'cupy'")
        return import_(name, *arguments, **keywords)

    with_device.delitem(sys.modules, "cupy", raising=False)
    with_device.setattr(builtins, "__import__", without_cupy)
    for version, wheel in (("13.0", "cupy-cuda13x"), ("12.8", "cupy-cuda12x")):
        with_device.setattr(torch.version, "cuda", version)
        with pytest.raises(backends.BackendError) as caught:
            backends.choose("cuda", "cuda")
        for said in ("No module named 'cupy'", f"pip install {wheel}", "pass backend='reference'"):
            assert said in str(caught.value)
    with pytest.warns(RuntimeWarning, match="CuPy cannot be imported.*pip install cupy-cuda12x"):
        assert backends.choose("auto", "cuda") == "reference"


def test_a_cupy_of_another_cuda_version_says_all_three_versions(with_device: pytest.MonkeyPatch) -> None:
    @contextmanager
    def device(index: int) -> Iterator[Any]:
        yield SimpleNamespace(compute_capability="90")

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION")

    cuda = SimpleNamespace(
        Device=device,
        runtime=SimpleNamespace(runtimeGetVersion=lambda: 13000, driverGetVersion=lambda: 12040),
        nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)),
        compiler=SimpleNamespace(compile_using_nvrtc=refuse),
    )
    with_device.setitem(sys.modules, "cupy", SimpleNamespace(__version__="14.0", cuda=cuda, RawModule=refuse))
    with_device.setattr(torch.version, "cuda", "12.4")
    with pytest.raises(backends.BackendError) as caught:
        backends.choose("cuda", "cuda")
    for said in (
        "UNSUPPORTED_PTX",
        "runtime is 13.0",
        "driver supports 12.4",
        "built for 12.4",
        "pip install cupy-cuda12x",
    ):
        assert said in str(caught.value)


def test_cuda_kernels_are_compiled_without_contraction_or_fast_math() -> None:
    assert "--fmad=false" in build.OPTIONS
    assert not any("fast" in option or "ftz" in option for option in build.OPTIONS)
