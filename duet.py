#!/usr/bin/env python3
"""Duet's two Python environments: build them, run in them, test them, see them at work.

    python3 duet.py setup [torch|tf]            build .venvs/torch, .venvs/tf or both
    python3 duet.py run torch|tf -- ARGS...     run that environment's Python with ARGS
    python3 duet.py test [PYTEST ARGS...]       test both backends, then one against the other
    python3 duet.py demo [--out DIR]            train, trace and compare both (DIR is outputs/demo)

PyTorch and TensorFlow never share an environment. What is missing is built first; what is there is
left alone until pyproject.toml, its constraints file or its Python changes. Packages come with pip
and your own pip settings: about 3 GB for torch (its CUDA libraries included), 0.7 GB for tf.

    DUET_TORCH_PYTHON, DUET_TF_PYTHON           an interpreter of your own (conda) to use instead
    DUET_BROWSER                                a Chromium of your own, or none; the tests operate the reports in it

Exit code: 0 when all went well, 2 when something given does not fit, else that of what failed.
"""
# Only the standard library, and nothing that Python 3.7 cannot read: an old one must get a clear line.

from __future__ import annotations

import difflib
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from typing import TextIO

try:
    import fcntl
except ImportError:  # Windows: two set-ups at once are then not kept apart
    fcntl = None

ROOT = Path(__file__).resolve().parent
DOWNLOAD = {"torch": "about 3 GB, CUDA libraries included", "tf": "about 0.7 GB"}  # the backends, and what they weigh
SUPPORTED = ((3, 11), (3, 12), (3, 13))  # requires-python of pyproject.toml
# The extras of pyproject.toml; PyTorch's wheels bring CUDA, TensorFlow's only where there is a driver for it.
EXTRA = {"torch": "torch,peers,metrics", "tf": "tf-cuda" if Path("/proc/driver/nvidia").exists() else "tf"}
FORMAT = "1"  # of an environment; a change makes every older one outdated
UNFINISHED = "unfinished"  # stands in the stamp while pip is at work
DEMO_MARKER = ".duet-demo"

# A job is a backend, and what of it: a precision or a selection of tests. Two run at a time, each on half of the cores;
# the slower ones come first.
BOTH = (("torch", ""), ("tf", ""))
TORCH = BOTH[:1]
LADDER = tuple((backend, precision) for backend in ("tf", "torch") for precision in ("float64", "float32"))
RECORD = "-m experiments.trace backend={b} precisions=[{p}] backend.threads={t} out={x}/trace/{b}"
# The tests that know no backend, and those for which either will do, run in one of the environments.
EACH = (
    ("torch", "not backend and not together and not exchange and not slow and not gpu"),
    ("tf", "backend and not either and not recorded and not slow and not gpu"),
    ("torch", "backend and not recorded and not slow and not gpu"),
    ("torch", "together and not slow"),
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# What the tests run in order: title, jobs, arguments of their Python. {x} is a fresh folder, {b} the backend, {o} the
# other one, {p} the precision or the tests, {t} the threads.
TESTS = (
    ("all but the exchange", EACH, "-m pytest -m {p}"),
    ("climb the parity ladder", LADDER, RECORD),
    ("hand over to each other", LADDER, RECORD + " handover={x}/trace/{o}"),
    ("one against the other", TORCH, "-m pytest -m exchange"),
)
# What the demo runs in order; {x} is DIR.
DEMO = (
    (
        "train in lock step",
        BOTH,
        "-m experiments.train experiment=digits backend={b} backend.threads={t} hydra.run.dir={x}/{b}",
    ),
    (
        "sample from the other's checkpoint",
        BOTH,
        "-m experiments.sample backend={b} backend.threads={t} checkpoint={x}/{o} out={x}/crossed/{b} pictures=false"
        " sample.count=500 sample.batch=500",
    ),
    ("climb the parity ladder", LADDER, RECORD + " whole=false"),
    ("hand over to each other", LADDER, RECORD + " whole=false handover={x}/trace/{o}"),
    (
        "compare",
        TORCH,
        "-m experiments.compare a={x}/torch b={x}/tf crossed=[{x}/crossed/torch,{x}/crossed/tf]"
        " traces=[{x}/trace/torch,{x}/trace/tf] out={x}"
        " 'title=Handwritten digits in PyTorch and TensorFlow' 'command=python3 duet.py demo'",
    ),
    ("ask the same of three seeds", TORCH, "-m experiments.study study=demo out={x}/study hydra.launcher.workers=2"),
)
DEMO_REPORTS = ("report.html", "study/report.html")
OFFLINE = r"connection broken|Failed to establish|Max retries|name resolution|timed out|CERTIFICATE|from versions: none"
NO_MATCH = "No matching distribution|ResolutionImpossible"
# Why a set-up failed: what the output shows, the cause, what to do. The first that matches counts.
CAUSES = (
    ("No space left on device", "the disk is full", "free some space (pip unpacks in TMPDIR)"),
    (OFFLINE, "no network, or pip cannot reach its package index", "check network, proxy and `pip config list`"),
    (NO_MATCH, "the package index has no matching version", "check `pip config list` and the constraints file"),
)


class Stop(Exception):
    """The command cannot go on: one line for a person, and the exit code."""

    def __init__(self, line: str, code: int = 2):
        super().__init__(line)
        self.code = code


def say(line: str, file: TextIO | None = None) -> None:
    """Print one line at once, in order with the output of child processes."""
    print("duet: " + line, file=file, flush=True)


def probe(path: str) -> tuple[int, ...]:
    """(major, minor, micro, 1 if it has venv and ensurepip) of the Python at `path`; () if it does not start."""
    code = "import sys, importlib.util as u; print(*sys.version_info[:3], int(all(map(u.find_spec, sys.argv[1:]))))"
    try:
        answer = subprocess.run([path, "-c", code, "venv", "ensurepip"], stdout=PIPE, stderr=DEVNULL, check=True).stdout
        return tuple(map(int, answer.split()))
    except (OSError, ValueError, subprocess.CalledProcessError):
        return ()


def base_python() -> str:
    """The Python to build with: the running one where supported, else the newest supported one on PATH."""
    names = ["python{}.{}".format(*version) for version in reversed(SUPPORTED)]
    bare = []
    for path in filter(None, [sys.executable, *map(shutil.which, names)]):
        found = probe(path)
        if found[:2] in SUPPORTED:
            if found[3]:
                return path
            bare.append((path, "{}.{}".format(*found)))
    for path, version in bare:
        package = f"python{version}-venv (or python3-venv)"
        raise Stop(f"Python {version} ({path}) lacks venv or ensurepip; on Debian or Ubuntu install {package}")
    running = ".".join(map(str, probe(sys.executable)[:3]))
    raise Stop(f"Python {running} ({sys.executable}) does not fit, and PATH has none of {', '.join(names)}")


def own_python(backend: str) -> str | None:
    """The interpreter that DUET_<BACKEND>_PYTHON names, or None where it is not set."""
    variable = f"DUET_{backend.upper()}_PYTHON"
    given = os.environ.get(variable)
    path = given and shutil.which(os.path.abspath(os.path.expanduser(given)))
    if given and not (path and probe(path)[:2] in SUPPORTED):
        raise Stop(f"{variable}: {given!r} was given; it must be the path of a Python 3.11 to 3.13 that starts")
    return path or None


def stamp_of(backend: str, python: str) -> str:
    """What an environment with this Python would be made of now, as one hash; empty if that does not start."""
    version = probe(python)[:3]
    digest = hashlib.sha256(repr((FORMAT, version, str(ROOT))).encode())  # its editable install names ROOT
    for name in ("pyproject.toml", f"constraints-{backend}.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest() if version[:2] in SUPPORTED else ""


def hold(lock: TextIO) -> None:
    """Hold the lock file until it is closed, after whoever holds it now."""
    if fcntl:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another set-up that holds {lock.name}")
            fcntl.flock(lock, fcntl.LOCK_EX)


def setup(backend: str) -> str:
    """The path of the backend's Python, in an environment that is whole and up to date."""
    venv, own = ROOT / ".venvs" / backend, own_python(backend)
    python = own or str(venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    stamp = venv / "duet-stamp"

    def ready() -> bool:
        return stamp.is_file() and stamp.read_text() == stamp_of(backend, python)

    if own or ready():
        return python
    venv.parent.mkdir(exist_ok=True)
    with open(venv.parent / f"{backend}.lock", "w") as lock:
        hold(lock)
        if not ready():  # it is, where the holder of the lock before us has built it
            with open(venv.parent / f"{backend}.log", "w+", errors="replace") as log:
                build(backend, venv, python, stamp, log)
    return python


def build(backend: str, venv: Path, python: str, stamp: Path, log: TextIO) -> None:
    """Make the environment, or update it in place where it is whole and only outdated.

    The stamp reads "unfinished" from before the first change until after the last, which tells one that was
    cut short; made anew, it takes its packages from pip's cache.
    """

    def logged(*command: str) -> bool:
        log.flush()
        return subprocess.run(command, cwd=ROOT, stdin=DEVNULL, stdout=log, stderr=log, check=False).returncode == 0

    started, former = time.monotonic(), stamp.read_text() if stamp.is_file() else ""
    whole = former != UNFINISHED and stamp_of(backend, python) != "" and logged(python, "-m", "pip", "--version")
    if not whole:
        base = base_python()
        if venv.exists():
            say(f"{backend}: removing {venv}, which is not whole")
            shutil.rmtree(venv)
        say(f"{backend}: making {venv} with {base}")
        venv.mkdir()
        stamp.write_text(UNFINISHED)
        if not logged(base, "-m", "venv", str(venv)):
            raise failure(f"{backend}: making {venv} failed", log)
    stamp.write_text(UNFINISHED)
    say(f"{backend}: installing with pip (to download, if not cached: {DOWNLOAD[backend]}; output in {log.name})")
    packages = ("-e", f".[{EXTRA[backend]},dev]", "-c", f"constraints-{backend}.txt")
    if not logged(python, "-m", "pip", "install", "--no-input", *packages):
        error = failure(f"{backend}: installing failed", log)
        if whole and "Installing collected packages" not in Path(log.name).read_text(errors="replace"):
            stamp.write_text(former)  # pip gave up before it touched anything
        raise error
    stamp.write_text(stamp_of(backend, python))
    say(f"{backend}: ready after {time.monotonic() - started:.0f} s")


def failure(what: str, log: TextIO) -> Stop:
    """Show the lines of the log that matter, and name the cause in one."""
    log.flush()
    lines = [line.strip() for line in Path(log.name).read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"error\b", line, re.IGNORECASE)]
    for line in list(dict.fromkeys(errors or lines))[-5:]:
        say("    " + line[:300])
    for pattern, cause, advice in CAUSES:
        if any(re.search(pattern, line) for line in lines):
            return Stop(f"{what}: {cause}; {advice}, then try again. All output: {log.name}", 1)
    return Stop(f"{what}; all output: {log.name}", 1)


def browser() -> str | None:
    """The Chromium that the tests marked `browser` operate pages in, or None where there is none."""
    given = os.environ.get("DUET_BROWSER")
    if given and given != "none" and not shutil.which(given):
        raise Stop(f"DUET_BROWSER: {given!r} was given; it must be the path of a Chromium, or none")
    return None if given == "none" else given or next(filter(None, map(shutil.which, BROWSERS)), None)


def call(command: list[str], **options: object) -> int:
    """Run a command in the foreground; its exit code as a shell gives it."""
    return shell_code(subprocess.run(command, check=False, **options).returncode)


def shell_code(code: int) -> int:
    """An exit code as a shell gives it: 128 and the signal for a process that one ended."""
    return code if code >= 0 else 128 - code


def side_by_side(jobs: list[tuple[str, list[str], dict[str, str]]]) -> int:
    """Run (backend, command, environment) two at a time, each line under its backend's name; the worst exit code.

    The worst is the highest, but for the 5 of a pytest that selects no test.
    """
    running: list[subprocess.Popen] = []

    def run(job: tuple[str, list[str], dict[str, str]]) -> int:
        backend, command, env = job
        options = {"stdin": DEVNULL, "stdout": PIPE, "stderr": STDOUT, "text": True, "errors": "replace"}
        with subprocess.Popen(command, cwd=ROOT, env=env, **options) as process:
            running.append(process)
            for line in process.stdout:
                print(f"{backend:>5} | {line}", end="", flush=True)
        return shell_code(process.returncode)

    with ThreadPoolExecutor(2) as pool:
        try:
            return max(pool.map(run, jobs), key=lambda code: (code != 5, code) if code else (False, 0))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()
            raise


def stage(pythons: dict[str, str], jobs: tuple, template: str, folder: str, *more: str, **variables: str) -> int:
    """Run one row of a table, with `more` arguments and environment variables; its exit code."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    commands = []
    for backend, part in jobs:
        other = next(name for name in DOWNLOAD if name != backend)
        values = {"x": folder, "b": backend, "o": other, "p": part, "t": str(max(1, cores // 2))}
        arguments = [*words(template, values), *more]
        say(shown(backend, arguments))
        commands.append((backend, [pythons[backend], *arguments], dict(os.environ, DUET_BACKEND=backend, **variables)))
    if len(commands) > 1:
        for *_, env in commands:
            env.setdefault("OMP_NUM_THREADS", values["t"])  # NumPy's too, which takes all cores otherwise
        return side_by_side(commands)
    _, command, env = commands[0]
    return call(command, cwd=ROOT, env=env)


def words(template: str, values: dict[str, str]) -> list[str]:
    """A command of a table as a list; a folder is spelled as Hydra reads it unquoted."""
    escaped = {**values, "x": re.sub(r"([\\()\[\]{}:=, ])", r"\\\1", values["x"])}
    return [re.sub(r"{(\w)}", lambda found: escaped[found.group(1)], word) for word in shlex.split(template)]


def shown(backend: str, command: list[str]) -> str:
    """A command as a person would type it."""
    return f"python3 duet.py run {backend} -- {' '.join(map(shlex.quote, command))}"


def one_of(what: str, given: str, allowed: Iterable[str]) -> str:
    """`given`, which must be one of the `allowed` names."""
    if given not in allowed:
        near = [f" Did you mean {name!r}?" for name in difflib.get_close_matches(given, allowed, n=1)]
        raise Stop(f"{what}: {given!r} was given; it must be one of {', '.join(allowed)}.{''.join(near)}")
    return given


def setup_command(args: list[str]) -> int:
    """duet.py setup [torch|tf]"""
    for backend in [one_of("backend", arg, DOWNLOAD) for arg in args] or DOWNLOAD:
        say(f"{backend}: {setup(backend)}")
    return 0


def run_command(args: list[str]) -> int:
    """duet.py run torch|tf -- ARGS..."""
    if not args:
        raise Stop("run: no backend was given; as in `python3 duet.py run torch -- -m experiments.train`")
    rest = args[2:] if args[1:2] == ["--"] else args[1:]
    return call([setup(one_of("backend", args[0], DOWNLOAD)), *rest])


def test_command(args: list[str]) -> int:
    """duet.py test [PYTEST ARGS...]"""
    found = browser()
    pythons = {backend: setup(backend) for backend in DOWNLOAD}
    rows = []
    without = f"no {' or '.join(BROWSERS)} on PATH: the tests marked `browser` are NOT RUN, so no page is operated"
    if not found:
        say(without)
    with tempfile.TemporaryDirectory(prefix="duet-exchange-") as exchange:
        for title, jobs, template in TESTS:
            is_pytest = "-m pytest" in template
            say(f"{title}:")
            started = time.monotonic()
            if not found and jobs is EACH:
                jobs = tuple((backend, f"{selection} and not browser") for backend, selection in jobs)
            traces = str(Path(exchange) / "trace")
            code = stage(pythons, jobs, template, exchange, *(args if is_pytest else []), DUET_EXCHANGE=traces)
            # pytest leaves with 5 where it selects no test, as a person's own selection may well do in one stage
            passed = code == 0 or (code == 5 and is_pytest and bool(args))
            rows.append((title, passed, code, time.monotonic() - started))
    for title, passed, code, seconds in rows:
        say(f"{title:<24} {'passed' if passed else f'FAILED (exit code {code})':<22} {seconds:8.1f} s")
    if not found:
        say(without)
    return 0 if all(passed for _, passed, _, _ in rows) else 1


def demo_command(args: list[str]) -> int:
    """duet.py demo [--out DIR]"""
    if args and not (len(args) == 2 and args[0] == "--out"):
        raise Stop(f"demo: {' '.join(args)!r} was given; it takes nothing or --out DIR")
    folder = Path(args[1]).expanduser().resolve() if args else ROOT / "outputs" / "demo"
    marker, reports = folder / DEMO_MARKER, [folder / name for name in DEMO_REPORTS]
    if folder.exists() and not marker.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise Stop(f"--out: {folder} was given and holds something else; name a new or an empty folder")
    pythons = {backend: setup(backend) for backend in DOWNLOAD}
    if marker.exists():
        aside = folder.with_name(folder.name + time.strftime("-%Y%m%d-%H%M%S"))
        folder.rename(aside)
        say(f"the demo of before is now {aside}")
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text("Made by `duet.py demo`.\n")
    out, started = str(folder.relative_to(ROOT) if ROOT in folder.parents else folder), time.monotonic()
    for title, jobs, template in DEMO:
        say(f"{title}:")
        code = stage(pythons, jobs, template, out)
        if code:
            raise Stop(f"the demo stopped with exit code {code} at: {title}", 1)
    for report in reports:
        if not report.is_file():
            raise Stop(f"the demo ran to its end but left no {report}", 1)
    say(f"done in {time.monotonic() - started:.0f} s, set-up not counted; see {' and '.join(map(str, reports))}")
    return 0


COMMANDS = {"setup": setup_command, "run": run_command, "test": test_command, "demo": demo_command}


def main(args: list[str]) -> int:
    """Run one command; its exit code."""
    try:
        if not args or args[0] in ("-h", "--help") or (args[0] in COMMANDS and args[1:2] in (["-h"], ["--help"])):
            print(__doc__.strip())
            return 0 if args else 2
        return COMMANDS[one_of("command", args[0], COMMANDS)](args[1:])
    except (Stop, OSError, KeyboardInterrupt) as error:
        say(str(error) or "interrupted", sys.stderr)
        return getattr(error, "code", 130 if isinstance(error, KeyboardInterrupt) else 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
