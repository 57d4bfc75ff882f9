"""What `torch.compile` needs on this machine, and what its errors mean.

On a CPU it writes C++ and calls a compiler; on CUDA it uses Triton, which calls a C compiler for its launchers. Both
include Python.h. The check compiles an empty file in the same way, in less than a second.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from diffusion_core.common.text import first_line

__all__ = ["COMPILER", "compile_obstacle", "explain"]

COMPILER = "torch.compile"
# Packages whose exceptions are those of the compiler.
_PACKAGES = ("torch._dynamo", "torch._inductor", "triton")


def compile_obstacle(device: str) -> str | None:
    """Return why nothing can be compiled for a device, "cpu" or "cuda", and what to install; None if it can."""
    if device == "cuda":
        if find_spec("triton") is None:
            return "the package triton is not installed; install it"
        found = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "clang", "cc")), "gcc")
        return _check_compiler(found, "CC", "C", "")
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return _check_compiler(os.environ.get("CXX", default), "CXX", "C++", os.environ.get("PATH", ""))


@cache
def _check_compiler(command: str, variable: str, language: str, path: str) -> str | None:
    """Return why a compiler does not work; `path` is only part of what the answer is kept for."""
    install = f"install one (Debian and Ubuntu: apt install g++ python3-dev) or name it in {variable}"
    words = shlex.split(command)
    if not words or shutil.which(words[0]) is None:
        return f"no {language} compiler was found ({command or f'{variable} is empty'}); {install}"
    if sys.platform == "win32":  # other options than those below; that it exists must do
        return None
    options = ["-shared", "-fPIC", f"-I{sysconfig.get_path('include')}"]
    openmp = ["-fopenmp"] if language == "C++" and sys.platform == "linux" else []
    with TemporaryDirectory() as folder:
        file = Path(folder, "empty.cpp" if language == "C++" else "empty.c")
        file.write_text("#include <Python.h>\n" + "#include <omp.h>\n#include <cmath>\n" * bool(openmp))
        arguments = [*words, *options, *openmp, str(file), "-o", str(Path(folder, "empty.so"))]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"the {language} compiler {command} does not work ({first_line(error)}); {install}"
    if done.returncode == 0:
        return None
    lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
    reason = next((line for line in lines if "error" in line), lines[0]).rpartition("error: ")[2]
    return f"the {language} compiler {command} does not work ({reason}); {install}"


def explain(error: Exception) -> str | None:
    """Return in a line why the compiler failed, or None if an exception is not the compiler's."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    if not type(error).__module__.startswith(_PACKAGES):
        return None
    return first_line(causes[-1])
