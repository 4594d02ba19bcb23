"""`spikeloom doctor`: what works on this machine, why the rest does not, and the command that mends it.

Every check is a function that returns findings; a failure of the machine is a finding too.
"""

import dataclasses
import json
import platform
import subprocess
import sys
import tempfile
import warnings
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import spikeloom

BACKENDS = ("reference", "cpu", "cuda")
CUPY_WHEELS = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")
GET_TORCH = "see https://pytorch.org/get-started/locally for the build that fits your driver"
GET_COMPILER = {
    "Linux": "sudo apt install g++   (Fedora: sudo dnf install gcc-c++)",
    "Darwin": "xcode-select --install",
}
# Optional packages: requirement (the same as in pyproject.toml) and what it is good for.
OPTIONAL = {
    "tonic>=1.6": "data sets and transforms of tonic",
    "h5py>=3.10": "HDF5 event files",
    "lz4>=4.3": "AEDAT4 recordings compressed by LZ4",
    "zstandard>=0.22": "AEDAT4 recordings compressed by Zstandard",
    "pillow>=10": "animated pictures of recordings",
    "spikingjelly>=2.0": "import of SpikingJelly networks",
    "norse>=1.1": "import of Norse networks",
    "snntorch>=1.0": "comparison with snnTorch",
    "nir>=1.0.8": "exchange of networks as NIR",
    "nirtorch>=2.6": "exchange of networks as NIR",
    "matplotlib>=3.8": "pictures in reports",
    "jinja2>=3.1": "HTML reports",
    "tensorboard>=2.16": "TensorBoard logs",
}
OPENMP_PROGRAM = """
#include <cstdio>
int main() {
  int threads = 0;
  #pragma omp parallel num_threads(2) reduction(+ : threads)
  threads += 1;
  std::printf("%d", threads);
}
"""
NVRTC_PROGRAM = 'extern "C" __global__ void answer(float* out) { out[0] = 42.0f; }'

State = Literal["ok", "absent", "broken"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report. `absent`: not there, but nothing needs it; `broken`: needed, or there and not working."""

    topic: str
    name: str
    state: State
    detail: str
    fix: str = ""


@dataclasses.dataclass(frozen=True)
class Options:
    """Show which backends work on this machine and, where one does not, why and what to run."""

    json: Annotated[bool, tyro.conf.arg(help="Print JSON instead of tables.")] = False


def installed(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def output_of(*command: str | Path) -> tuple[bool, str]:
    """Run a program; return whether it succeeded, and what it printed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return done.returncode == 0, (done.stdout or done.stderr).strip()


def load_torch() -> tuple[ModuleType | None, Finding]:
    """Import torch; report its version and CUDA build."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of torch is missing
        fix = GET_TORCH if installed("torch") else "pip install 'torch>=2.6'"
        return None, Finding("machine", "torch", "broken", f"cannot be imported: {error}", fix)
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return torch, Finding("machine", "torch", "ok", f"{torch.__version__}, {build}")


def check_gpus(torch: ModuleType) -> list[Finding]:
    """Report every GPU, or why torch sees none."""
    found, driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        if not found:
            return [Finding("machine", "GPU", "absent", "no NVIDIA GPU or no driver")]
        reason = "torch was built without CUDA" if torch.version.cuda is None else "torch cannot use it"
        reason = "; ".join([reason, *(str(w.message) for w in caught)])
        return [Finding("machine", "GPU", "broken", f"driver {driver.splitlines()[0]}, but {reason}", GET_TORCH)]
    findings = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        detail = f"{gpu.name}, capability {gpu.major}.{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB"
        if found:
            detail += f", driver {driver.splitlines()[0]}"
        findings.append(Finding("machine", f"GPU {index}", "ok", detail))
    return findings


def check_cupy(torch: ModuleType) -> list[Finding]:
    """Report CuPy's wheel, whether it fits torch's CUDA, and whether it can compile and launch a kernel."""
    wheels = {name: version for name in CUPY_WHEELS if (version := installed(name))}
    have = ", ".join(f"{name} {version}" for name, version in wheels.items())
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return [Finding("compilers", "CuPy", "absent", f"{have or 'not installed'}; not needed without an NVIDIA GPU")]
    major = str(torch.version.cuda).split(".")[0]
    wanted = f"cupy-cuda{major}x"
    if not wheels:
        return [Finding("compilers", "CuPy", "broken", "not installed", f"pip install {wanted}")]
    if len(wheels) > 1 or not wheels.keys() <= {wanted, "cupy"}:
        fix = f"pip uninstall -y {' '.join(wheels)} && pip install {wanted}"
        problem = "more than one CuPy is installed" if len(wheels) > 1 else f"torch uses CUDA {major}"
        return [Finding("compilers", "CuPy", "broken", f"{have}; {problem}", fix)]
    return [Finding("compilers", "CuPy", "ok", have), check_nvrtc(wanted)]


def check_nvrtc(wheel: str) -> Finding:
    """Compile and launch a one-line kernel through CuPy and NVRTC."""
    try:
        import cupy

        out = cupy.zeros(1, dtype="float32")
        cupy.RawModule(code=NVRTC_PROGRAM).get_function("answer")((1,), (1,), (out,))
        answer = float(out[0])
        version = ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
    except Exception as error:  # CuPy, NVRTC and the driver raise types of their own; whatever it is, it is the finding
        fix = f"pip install '{wheel}[ctk]'   (brings NVRTC and CUDA's headers along)"
        return Finding("compilers", "NVRTC", "broken", f"{type(error).__name__}: {error}", fix)
    if answer != 42.0:
        return Finding("compilers", "NVRTC", "broken", f"a kernel wrote {answer} instead of 42; is the GPU healthy?")
    return Finding("compilers", "NVRTC", "ok", f"{version}, compiled and launched a kernel")


def check_compiler() -> list[Finding]:
    """Report the C++ compiler that the kernels use, and whether it builds programs with two OpenMP threads."""
    from spikeloom.kernels.cpu.build import compiler

    get = GET_COMPILER.get(platform.system(), "install a C++ compiler and set CXX to it")
    path = compiler()
    if path is None:
        return [Finding("compilers", "C++", "broken", "none found (looked for $CXX, c++, g++, clang++)", get)]
    succeeded, version = output_of(path, "--version")
    if not succeeded:
        return [Finding("compilers", "C++", "broken", f"{path} --version failed: {version}", get)]
    findings = [Finding("compilers", "C++", "ok", f"{path}: {version.splitlines()[0]}")]
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "threads.cpp"), Path(folder, "threads")
        source.write_text(OPENMP_PROGRAM)
        succeeded, text = output_of(path, "-fopenmp", source, "-o", program)
        if succeeded:
            succeeded, text = output_of(program)
    if succeeded and text == "2":
        return [*findings, Finding("compilers", "OpenMP", "ok", "ran two threads")]
    return [*findings, Finding("compilers", "OpenMP", "broken", text or "the test program failed", get)]


def check_cache() -> Finding:
    """Report whether compiled kernels can be kept."""
    from spikeloom.kernels.cache import cache_dir

    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        fix = "export SPIKELOOM_CACHE=FOLDER   (a folder that you may write to)"
        return Finding("compilers", "kernel cache", "broken", str(error), fix)
    return Finding("compilers", "kernel cache", "ok", str(folder))


def check_optional() -> list[Finding]:
    """Report the optional packages."""
    findings = []
    for requirement, purpose in OPTIONAL.items():
        name = requirement.split(">=")[0]
        version = installed(name)
        if version:
            findings.append(Finding("optional", name, "ok", f"{version}: {purpose}"))
        else:
            findings.append(Finding("optional", name, "absent", purpose, f"pip install '{requirement}'"))
    return findings


def check_backends() -> list[Finding]:
    """Ask the kernels package which of its backends run here."""
    findings = []
    for name in BACKENDS:
        try:
            from spikeloom.kernels.backends import probe

            runs, detail, fix = probe(name)
        except (ImportError, OSError) as error:  # torch, or a library that a backend links, is missing
            runs, detail, fix = False, str(error), ""
        findings.append(Finding("backends", name, "ok" if runs else "broken", detail, fix))
    return findings


def examine() -> list[Finding]:
    """Run every check."""
    python = f"{platform.python_version()} ({sys.executable}), {platform.platform()}"
    findings = [
        Finding("machine", "spikeloom", "ok", f"{spikeloom.__version__} ({Path(spikeloom.__file__).parent})"),
        Finding("machine", "Python", "ok", python),
    ]
    torch, finding = load_torch()
    findings.append(finding)
    if torch is not None:  # without it the kernels package cannot be asked
        findings += [*check_gpus(torch), *check_cupy(torch), *check_compiler(), check_cache()]
    return [*findings, *check_backends(), *check_optional()]


def works(findings: list[Finding], backend: str) -> bool:
    """Whether a backend runs here."""
    return any(f.topic == "backends" and f.name == backend and f.state == "ok" for f in findings)


def print_tables(findings: list[Finding]) -> None:
    """Print a table per topic, then the commands that mend what is missing."""
    console = Console(highlight=False)
    mark = {"ok": "[green]ok[/]", "absent": "[dim]-[/]", "broken": "[red]no[/]"}
    for topic in ("machine", "compilers", "backends", "optional"):
        console.print(f"[bold]{topic}[/]")
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(min_width=4, justify="right")
        table.add_column(min_width=12)
        table.add_column(overflow="fold")
        for finding in findings:
            if finding.topic == topic:
                table.add_row(mark[finding.state], finding.name, escape(finding.detail))
        console.print(table)
    for title, state in (("To mend", "broken"), ("To add", "absent")):
        fixes = [f for f in findings if f.state == state and f.fix]
        if fixes:
            console.print(f"\n[bold]{title}[/]")
        for finding in fixes:  # outside the table and unwrapped, to be copied
            console.print(f"  {finding.name:12}  [cyan]{escape(finding.fix)}[/]", soft_wrap=True)


def doctor(argv: list[str]) -> int:
    """Print the report; 0 when at least the reference backend works."""
    options = tyro.cli(Options, args=argv, prog="spikeloom doctor", config=(tyro.conf.FlagCreatePairsOff,))
    findings = examine()
    usable = {name: works(findings, name) for name in BACKENDS}
    if options.json:
        rows = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"version": spikeloom.__version__, "backends": usable, "findings": rows}, indent=2))
    else:
        print_tables(findings)
    return 0 if usable["reference"] else 1
