"""`spikeloom doctor`: on this machine as it is, and on broken machines made up here."""

import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest

from spikeloom import doctor
from spikeloom.doctor import Finding
from spikeloom.kernels.cpu import build

ROOT = Path(__file__).resolve().parents[2]


def fake_torch(*, gpu: bool, cuda: str | None = "13.0") -> ModuleType:
    """As much of torch as the checks look at."""
    properties = SimpleNamespace(name="Imaginary", major=9, minor=0, total_memory=80 * 2**30)
    device = SimpleNamespace(
        is_available=lambda: gpu, device_count=lambda: 1, get_device_properties=lambda index: properties
    )
    return cast(ModuleType, SimpleNamespace(cuda=device, version=SimpleNamespace(cuda=cuda)))


def have(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Pretend that just these distributions are installed (underscores stand for dashes)."""
    monkeypatch.setattr(doctor, "installed", lambda name: versions.get(name.replace("-", "_")))


def test_report_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.doctor([]) == 0
    text = capsys.readouterr().out
    for word in ("Python", "torch", "reference", "cpu", "cuda", "cache", "matplotlib"):
        assert word in text


def test_json_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.doctor(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["backends"].keys() == set(doctor.BACKENDS)
    assert report["backends"]["reference"] is True
    assert {"topic", "name", "state", "detail", "fix"} == set(report["findings"][0])


def test_no_backend_is_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    broken = [Finding("backends", "reference", "broken", "torch is not installed", "pip install torch")]
    monkeypatch.setattr(doctor, "examine", lambda: broken)
    assert doctor.doctor([]) == 1
    text = capsys.readouterr().out
    assert "torch is not installed" in text
    assert "pip install torch" in text


def test_cupy_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch)
    (finding,) = doctor.check_cupy(fake_torch(gpu=True, cuda="12.8"))
    assert finding.state == "broken"
    assert finding.fix == "pip install cupy-cuda12x"


def test_cupy_for_another_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, cupy_cuda12x="14.2.0")
    (finding,) = doctor.check_cupy(fake_torch(gpu=True))
    assert finding.state == "broken"
    assert finding.detail == "cupy-cuda12x 14.2.0; torch uses CUDA 13"
    assert finding.fix == "pip uninstall -y cupy-cuda12x && pip install cupy-cuda13x"


def test_two_cupys(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, cupy_cuda12x="14.2.0", cupy_cuda13x="14.2.0")
    (finding,) = doctor.check_cupy(fake_torch(gpu=True))
    assert "more than one" in finding.detail
    assert finding.fix == "pip uninstall -y cupy-cuda12x cupy-cuda13x && pip install cupy-cuda13x"


def test_cupy_is_not_asked_for_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch)
    (finding,) = doctor.check_cupy(fake_torch(gpu=False))
    assert (finding.state, finding.fix) == ("absent", "")


@pytest.mark.parametrize(
    ("written", "state", "words"),
    [(42.0, "ok", "13.0"), (0.0, "broken", "0.0 instead of 42"), (None, "broken", "no nvrtc")],
)
def test_nvrtc(written: float | None, state: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a CuPy made up here; the real one is in the next test."""

    def launch(grid: tuple[int], block: tuple[int], arguments: tuple[list[float]]) -> None:
        if written is None:
            raise RuntimeError("no nvrtc")
        arguments[0][0] = written

    cupy = SimpleNamespace(
        zeros=lambda size, dtype: [0.0] * size,
        RawModule=lambda code: SimpleNamespace(get_function=lambda name: launch),
        cuda=SimpleNamespace(nvrtc=SimpleNamespace(getVersion=lambda: (13, 0))),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)  # type: ignore[arg-type]
    finding = doctor.check_nvrtc("cupy-cuda13x")
    assert finding.state == state
    assert words in finding.detail


@pytest.mark.gpu
def test_nvrtc_launches() -> None:
    pytest.importorskip("cupy")
    finding = doctor.check_nvrtc("cupy-cuda13x")
    assert finding.state == "ok", finding.detail


@pytest.mark.parametrize(
    ("driver", "gpu", "cuda", "state", "words"),
    [
        (True, True, "13.0", "ok", "Imaginary, capability 9.0, 80 GiB, driver 580.1"),
        (True, False, None, "broken", "torch was built without CUDA"),
        (True, False, "13.0", "broken", "torch cannot use it"),
        (False, False, "13.0", "absent", "no NVIDIA GPU"),
    ],
)
def test_gpu(
    driver: bool, gpu: bool, cuda: str | None, state: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "output_of", lambda *command: (driver, "580.1" if driver else "not found"))
    (finding,) = doctor.check_gpus(fake_torch(gpu=gpu, cuda=cuda))
    assert finding.state == state
    assert words in finding.detail


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "compiler", lambda: None)
    (finding,) = doctor.check_compiler()
    assert finding.state == "broken"
    assert finding.fix


def test_compiler_without_openmp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    script = '[ "$1" = --version ] && echo imaginary 1.0 && exit\necho no -fopenmp here >&2\nexit 1\n'
    compiler.write_text("#!/bin/sh\n" + script)
    compiler.chmod(0o755)
    monkeypatch.setattr(build, "compiler", lambda: str(compiler))
    found, openmp = doctor.check_compiler()
    assert found.state == "ok"
    assert "imaginary 1.0" in found.detail
    assert (openmp.state, openmp.detail) == ("broken", "no -fopenmp here")


def test_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPIKELOOM_CACHE", str(tmp_path / "file" / "folder"))
    finding = doctor.check_cache()
    assert finding.state == "broken"
    assert "SPIKELOOM_CACHE" in finding.fix


def test_a_machine_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "spikeloom.kernels.backends", None)
    have(monkeypatch)
    findings = doctor.examine()
    assert "pip install 'torch>=2.6'" in {f.fix for f in findings}
    assert not any(doctor.works(findings, name) for name in doctor.BACKENDS)


def test_missing_optional_package_names_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, h5py="3.16.0")
    findings = {f.name: f for f in doctor.check_optional()}
    assert findings["h5py"].state == "ok"
    assert findings["tonic"].fix == "pip install 'tonic>=1.6'"


def test_optional_packages_are_those_of_the_extras() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    declared = {r for name in ("tonic", "data", "interop", "report", "log") for r in extras[name]}
    assert set(doctor.OPTIONAL) == declared
