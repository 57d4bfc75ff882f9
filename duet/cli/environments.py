"""One virtual environment per backend: `duet setup` builds it, updates it, and says why it could not.

An environment is rebuilt or updated when pyproject.toml, its constraints file, its Python or its options change. A
stamp file in its folder tells: it holds a hash of these, or "unfinished" while pip works.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import TextIO

from duet.cli.backends import ROOT, Backend, backends, get_backend
from duet.cli.builds import (
    BuildOptions,
    check_extra,
    extras_of_project,
    for_cpu,
    read_options,
    requirement,
    write_options,
)
from duet.cli.terminal import Stop, duration, one_of, say
from duet.layout import INSTALLED, working_folder

try:
    import fcntl
except ImportError:  # Windows: two set-ups at the same time are not kept apart
    fcntl = None

__all__ = [
    "SUPPORTED", "any_environment", "checked_python", "environment_exists", "setup", "setup_all", "setup_command",
]  # fmt: skip

SUPPORTED = ((3, 11), (3, 12), (3, 13))  # requires-python of pyproject.toml
FORMAT = "1"  # of an environment; changing it makes every existing one outdated
UNFINISHED = "unfinished"  # content of the stamp while pip works

OFFLINE = r"connection broken|Failed to establish|Max retries|name resolution|timed out|CERTIFICATE|from versions: none"
NO_MATCH = "No matching distribution|ResolutionImpossible"
# Why a set-up failed: a pattern in the output, the cause, the advice. The first match counts.
CAUSES = (
    ("No space left on device", "the disk is full", "free some space (pip unpacks in TMPDIR)"),
    (OFFLINE, "no network, or pip cannot reach its package index", "check network, proxy and `pip config list`"),
    (NO_MATCH, "the package index has no matching version", "check `pip config list` and the constraints file"),
)


def setup_command(args: list[str]) -> int:
    """Build or update the environments of the backends.

    usage: duet setup [--cpu] [--extra NAME ...] [--default] [BACKEND ...]

    Without BACKEND, all environments are built. Each is a virtual environment in .venvs/ whose packages pip installs
    with your own pip settings. The path of each Python is printed. Other commands do the same when they first need an
    environment.

    --cpu          install builds without CUDA where the package index has them, as for a laptop
    --extra NAME   install an extra of pyproject.toml too: jupyter, sweeps, tracking, grain ...
    --default      forget an earlier --cpu and --extra

    These options are kept: later updates of an environment follow them.
    """
    if INSTALLED:
        return show_installed(args)
    names, flags, extras = [], set(), []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        flag, _, value = word.partition("=")
        if not word.startswith("-"):
            names.append(word)
        elif one_of("setup", flag, ("--cpu", "--extra", "--default")) == "--extra":
            if not value and not rest:
                raise Stop(f"--extra: no name was given; it is one of {', '.join(sorted(extras_of_project()))}")
            extras += [check_extra(name) for name in (value or rest.pop(0)).split(",")]
        else:
            flags.add(flag)
    chosen = [get_backend(name) for name in names] or list(backends().values())
    for backend in chosen:
        former = BuildOptions() if "--default" in flags else read_options(backend)
        options = BuildOptions(former.cpu or "--cpu" in flags, tuple(dict.fromkeys([*former.extras, *extras])))
        own = user_python(backend)
        if own and options != BuildOptions():
            say(f"{backend.name}: {own} is an interpreter of your own, in which nothing is installed")
        elif options != read_options(backend):
            write_options(backend, options)
    for name, python in setup_all(chosen).items():
        say(f"{name}: {python}")
    return 0


def setup_all(chosen: Iterable[Backend]) -> dict[str, str]:
    """Return the path of each backend's Python by name; environments that are not ready are built at the same time."""
    with ThreadPoolExecutor() as pool:
        started = {backend.name: pool.submit(setup, backend) for backend in chosen}
        return {name: build.result() for name, build in started.items()}


def setup(backend: Backend) -> str:
    """Return the path of the backend's Python; build or update its environment first where necessary."""
    chosen = user_python(backend)
    if chosen or is_ready(backend):
        return chosen or venv_python(backend)
    if INSTALLED:
        return installed_python(backend)
    venv = ROOT / backend.environment
    venv.parent.mkdir(parents=True, exist_ok=True)
    with open(str(venv) + ".lock", "w") as lock:
        acquire_lock(lock)
        if not is_ready(backend):  # another process may have built it while this one waited for the lock
            with open(str(venv) + ".log", "w+", errors="replace") as log:
                build(backend, log)
    return venv_python(backend)


def show_installed(args: list[str]) -> int:
    """Say which backends an installed Duet can use; it sets nothing up."""
    if args:
        raise Stop(
            f"setup: {' '.join(args)!r} was given, but Duet was installed as a package into {sys.prefix}, whose "
            "packages you choose with pip; only a checkout of the repository has environments of its own"
        )
    for backend in backends().values():
        own = user_python(backend) or (sys.executable if has_package(backend) else "")
        say(f"{backend.name}: {own or f'{sys.executable} has no {backend.package}'}")
    return 0


def installed_python(backend: Backend) -> str:
    """Return the Python into which Duet was installed as a package, or stop if the backend's package is not in it."""
    if has_package(backend):
        return sys.executable
    others = "".join(f", but what backend={other.name} needs" for other in backends().values() if has_package(other))
    raise Stop(
        f"backend {backend.name}: {sys.executable}, into which Duet was installed, has no {backend.package}{others}; "
        f"install it there, or name a Python that has it and Duet with {python_variable(backend)}=PATH"
    )


def has_package(backend: Backend) -> bool:
    """Return whether the running Python has the package that a backend imports."""
    return not backend.package or find_spec(backend.package) is not None


def any_environment() -> str:
    """Return the Python of an environment that exists; build that of the first backend where none does."""
    if INSTALLED:
        return sys.executable
    known = list(backends().values())
    return setup(next(filter(environment_exists, known), known[0]))


def environment_exists(backend: Backend) -> bool:
    """Return whether `setup` has nothing to do for a backend."""
    return bool(user_python(backend)) or (has_package(backend) if INSTALLED else is_ready(backend))


def is_ready(backend: Backend) -> bool:
    """Return whether the backend's virtual environment is complete and up to date."""
    stamp = ROOT / backend.environment / "duet-stamp"
    return stamp.is_file() and stamp.read_text() == stamp_text(backend)


def user_python(backend: Backend) -> str | None:
    """Return the interpreter that the user chose for a backend, or None.

    DUET_<NAME>_PYTHON chooses it, or the key `python` of its configuration file.
    """
    variable = python_variable(backend)
    if os.environ.get(variable):
        return checked_python(variable, os.environ[variable], Path.cwd())
    return checked_python("backend.python", backend.python, working_folder()) if backend.python else None


def python_variable(backend: Backend) -> str:
    """Return the name of the environment variable with the user's own interpreter for a backend."""
    return f"DUET_{re.sub('[^A-Z0-9]', '_', backend.name.upper())}_PYTHON"


def checked_python(source: str, path: str, folder: Path) -> str:
    """Return the absolute path of an interpreter, or stop. A link is kept: it identifies a virtual environment."""
    python = shutil.which(os.path.join(str(folder), os.path.expanduser(path)))
    if not python or probe(python)[:2] not in SUPPORTED:
        raise Stop(f"{source}: {path!r} was given; it must be the path of a working Python 3.11-3.13")
    return python


def venv_python(backend: Backend) -> str:
    """Return the path of the Python in the backend's virtual environment."""
    return str(ROOT / backend.environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def probe(path: str) -> tuple[int, ...]:
    """Return (major, minor, micro, 1 if it has venv and ensurepip) of the Python at `path`; () if it does not start."""
    code = "import sys, importlib.util as u; print(*sys.version_info[:3], int(all(map(u.find_spec, sys.argv[1:]))))"
    try:
        answer = subprocess.run([path, "-c", code, "venv", "ensurepip"], stdout=PIPE, stderr=DEVNULL, check=True).stdout
        return tuple(map(int, answer.split()))
    except (OSError, ValueError, subprocess.CalledProcessError):
        return ()


def base_python() -> str:
    """Return the Python to build with: the running one where supported, else the newest supported one on PATH."""
    names = ["python{}.{}".format(*version) for version in reversed(SUPPORTED)]
    without_venv = []
    for path in filter(None, [sys.executable, *map(shutil.which, names)]):
        version = probe(path)
        if version[:2] in SUPPORTED:
            if version[3]:
                return path
            without_venv.append((path, "{}.{}".format(*version)))
    for path, version in without_venv:
        package = f"python{version}-venv (or python3-venv)"
        raise Stop(f"Python {version} ({path}) lacks venv or ensurepip; on Debian or Ubuntu install {package}")
    running = ".".join(map(str, probe(sys.executable)[:3]))
    raise Stop(
        f"Python {running} ({sys.executable}) is not supported, and PATH has no {', '.join(names)}; install one of them"
    )


def constraints(backend: Backend) -> str:
    """Return the name of the file with the tested versions of a backend's packages."""
    return f"constraints-{backend.name}.txt"


def stamp_text(backend: Backend) -> str:
    """Return a hash of what an environment with its present Python would be made of; "" if that Python does not start.

    The hash covers ROOT, since the editable install names it.
    """
    version = probe(venv_python(backend))[:3]
    options = read_options(backend)
    kind = (FORMAT, version, str(ROOT)) if options == BuildOptions() else (FORMAT, version, str(ROOT), tuple(options))
    digest = hashlib.sha256(repr(kind).encode())
    for name in ("pyproject.toml", constraints(backend)):
        digest.update((ROOT / name).read_bytes() if (ROOT / name).is_file() else b"")
    return digest.hexdigest() if version[:2] in SUPPORTED else ""


def acquire_lock(lock: TextIO) -> None:
    """Take the lock, waiting for the process that holds it; closing the file releases it."""
    if fcntl:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another set-up that holds {lock.name}")
            fcntl.flock(lock, fcntl.LOCK_EX)


def build(backend: Backend, log: TextIO) -> None:
    """Make the environment, or update it in place where it is complete and only outdated.

    The stamp reads "unfinished" from before the first change until after the last. An environment that was interrupted
    is made anew; pip's cache then has its packages.
    """
    name, venv, python = backend.name, ROOT / backend.environment, venv_python(backend)
    stamp = venv / "duet-stamp"

    def logged(*command: str) -> bool:
        return run_logged(command, log, name)

    started, former = time.monotonic(), stamp.read_text() if stamp.is_file() else ""
    options, flavour = read_options(backend), venv / "duet-cpu"  # exists in an environment of builds for CPUs
    complete = former != UNFINISHED and stamp_text(backend) != "" and logged(python, "-m", "pip", "--version")
    complete = complete and flavour.exists() == options.cpu  # pip would leave packages of the other kind in it
    if not complete:
        base = base_python()
        if venv.exists():
            say(f"{name}: removing {venv}, which is incomplete or for another device")
            shutil.rmtree(venv)
        say(f"{name}: making {venv} with {base}")
        venv.mkdir()
        stamp.write_text(UNFINISHED)
        if not logged(base, "-m", "venv", str(venv)):
            raise failure(f"{name}: making {venv} failed", log)
    say(f"{name}: installing with pip, which takes some minutes; its output is in {log.name}")
    if backend.download and not options.cpu:
        say(f"{name}: download size {backend.download}, less where pip has packages in its cache")
    pinned = ["-c", constraints(backend)] if (ROOT / constraints(backend)).is_file() else []
    stamp.write_text(UNFINISHED)
    if options.cpu:
        flavour.touch()
        pinned = ["-c", str(for_cpu(backend, python, ROOT / constraints(backend), venv / "constraints.txt"))]
    # Python compiles a module when it is first imported; pip would compile all 25,000 files of the two environments.
    quick = ("--no-input", "--no-compile")
    if not logged(python, "-m", "pip", "install", *quick, "-e", requirement(backend, options), *pinned):
        error = failure(f"{name}: installing failed", log)
        if complete and "Installing collected packages" not in Path(log.name).read_text(errors="replace"):
            stamp.write_text(former)  # pip gave up before it changed anything
        raise error
    stamp.write_text(stamp_text(backend))
    say(f"{name}: ready after {duration(time.monotonic() - started)}")


def run_logged(command: Sequence[str], log: TextIO, name: str, every: float = 10.0) -> bool:
    """Run a command whose output goes into a log; return whether it succeeded.

    Every `every` seconds, the time and the last line of the log show that it is at work.
    """
    log.flush()
    began = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, stdin=DEVNULL, stdout=log, stderr=log) as process:
        try:
            while True:
                try:
                    return process.wait(every) == 0
                except subprocess.TimeoutExpired:
                    lines = Path(log.name).read_text(errors="replace").split("\n")
                    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
                    say(f"{name}: {duration(time.monotonic() - began)}, {last[:100]}".rstrip(", "))
        except BaseException:
            process.kill()
            raise


def failure(what: str, log: TextIO) -> Stop:
    """Print the lines of the log that matter; return an error that names the cause."""
    log.flush()
    lines = [line.strip() for line in Path(log.name).read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"error\b", line, re.IGNORECASE)]
    for line in list(dict.fromkeys(errors or lines))[-5:]:
        say("    " + line[:300])
    for pattern, cause, advice in CAUSES:
        if any(re.search(pattern, line) for line in lines):
            return Stop(f"{what}: {cause}; {advice}, then try again. All output: {log.name}", 1)
    return Stop(f"{what}; all output: {log.name}", 1)
