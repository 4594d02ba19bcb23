"""Compile C++ kernels with the machine's compiler at first use; `kernels.cache` keeps them."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from spikeloom.kernels.cache import cache_dir, cached

FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fPIC",
    "-shared",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-tree-loop-distribute-patterns",
    "-fopenmp",
    "-w",
)
"""No fast-math: the kernels round as the reference does. GCC 12 turns `to[l] = s[l]; s[l] = from[l];` into two calls of
memcpy in the wrong order; the flag against it keeps loops loops."""


class CompilerError(RuntimeError):
    """The machine's C++ compiler is missing or refused a kernel."""


@lru_cache(maxsize=1)
def compiler() -> str | None:
    """The C++ compiler: `$CXX`, else the first of c++, g++, clang++ on the path; None if there is none."""
    candidates = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    return next((found for c in candidates if (found := shutil.which(c))), None)


@lru_cache(maxsize=1)
def _machine() -> str:
    """Compiler version and processor features: what `-march=native` depends on."""
    asked = subprocess.run([str(compiler()), "--version"], capture_output=True, text=True)
    if asked.returncode != 0:
        raise CompilerError(f"{compiler()} --version failed (exit {asked.returncode}): {asked.stderr.strip()}")
    version = asked.stdout
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    features = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return "\n".join([version, platform.machine(), *features])


def load(source: str) -> ctypes.CDLL:
    """The compiled library of a source, from the cache or freshly built.

    Raises:
        CompilerError: no compiler, or it failed; the message holds its last lines.
    """
    if compiler() is None:
        raise CompilerError("no C++ compiler found; install one (Debian: apt-get install g++) or set CXX")
    identity = "\0".join([source, *FLAGS, _machine()])
    return ctypes.CDLL(str(cached("cpu", ".so", identity, lambda file: _compile(source, file))))


def _compile(source: str, library: Path) -> None:
    code = library.with_suffix(".cpp")
    code.write_text(source)
    command = [str(compiler()), *FLAGS, str(code), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        tail = "\n".join(done.stderr.splitlines()[-12:])
        raise CompilerError(f"{command[0]} could not compile a kernel (exit {done.returncode}):\n{tail}")


def probe() -> tuple[bool, str, str]:
    """Can kernels be compiled and loaded here? `(works, detail, what to do)`."""
    if compiler() is None:
        return False, "no C++ compiler found (looked for $CXX, c++, g++, clang++)", "apt-get install g++"
    try:
        load(
            'extern "C" int loom_probe() { int n = 0;\n#pragma omp parallel for reduction(+ : n)\n'
            "for (int i = 0; i < 8; ++i) n += i; return n; }\n"
        )
    except (CompilerError, OSError) as error:
        return False, str(error), "install a working g++ or clang++ with OpenMP, or make the cache folder writeable"
    return True, f"{compiler()} with OpenMP, {sys.platform} {platform.machine()}, cache {cache_dir()}", ""
