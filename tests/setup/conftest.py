"""A copy of the command `duet` with a fake Python, which records what it is asked to do."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Stands for a Python: it answers the probe, makes a "virtual environment" that holds itself, and plays pip. Any other
# call is recorded as OWNER|ARGUMENTS, where OWNER is the environment that it belongs to, or "own".
FAKE = r"""#!/bin/sh
here=$(dirname "$0")
case "$*" in
  "-c "*) echo "${FAKE_VERSION:-3 12 1} ${FAKE_VENV:-1}"; exit 0 ;;
  "-m venv "*) echo "venv" >> "$FAKE_LOG"; mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; exit 0 ;;
  "-m pip index versions "*) eval "printf '%b' \"\$FAKE_VERSIONS_$5\""; exit 0 ;;
  "-m pip --version") [ ! -e "$here/no-pip" ]; exit ;;
  "-m pip install "*) [ -n "$FAKE_REAL" ] && exec "$FAKE_REAL" "$@"
    echo "pip" >> "$FAKE_LOG"; printf '%b' "$FAKE_PIP"; exit "${FAKE_PIP_CODE:-0}" ;;
esac
case "$here" in */.venvs/*/bin) owner=$(basename "$(dirname "$here")") ;; *) owner=own ;; esac
[ "${DUET_BACKEND:-$owner}" = "$owner" ] || exit 99
echo "$owner|$*" >> "$FAKE_LOG"
case "$*" in *"$FAKE_BREAKS"*) [ -n "$FAKE_BREAKS" ] && exit "${FAKE_CODE:-9}" ;; esac
case "$*" in *experiments.compare*) page="$FAKE_OUT" ;; *experiments.study*) page="$FAKE_OUT/study" ;; *) page= ;; esac
[ -n "$FAKE_OUT" ] && [ -n "$page" ] && mkdir -p "$page" && touch "$page/report.html"
exit 0
"""

# The command in a process that takes the fake for its own interpreter.
DRIVER = "import sys, duet.cli; sys.executable = sys.argv[1]; sys.exit(duet.cli.main(sys.argv[2:]))"


class Checkout:
    """A folder with the command `duet`, the configurations, and the files of the commands."""

    def __init__(self, root: Path):
        self.root, self.log, self.python = root, root / "calls.txt", root / "python"
        shutil.copytree(ROOT / "duet", root / "duet", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("configs", "experiments", "benchmarks", "tests"):
            if (ROOT / name).exists():
                (root / name).symlink_to(ROOT / name, target_is_directory=True)
        for name in ("pyproject.toml", "constraints-torch.txt", "constraints-tf.txt"):
            (root / name).write_text("")
        self.python.write_text(FAKE)
        self.python.chmod(0o755)
        self.env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), "FAKE_LOG": str(self.log)}

    def as_package(self, **packages: str) -> None:
        """Become an installed package, as the wheel lays it out, with the package that each backend needs."""
        (self.root / "pyproject.toml").unlink()
        for name in ("configs", "experiments", "tests"):
            (self.root / name).unlink()
        (self.root / "experiments").mkdir()
        for path in (ROOT / "experiments").glob("*.py"):
            (self.root / "experiments" / path.name).symlink_to(path)
        configs = self.root / "experiments" / "configs"
        shutil.copytree(ROOT / "configs", configs)
        for name, package in packages.items():
            file = configs / "backend" / f"{name}.yaml"
            text = re.sub(r"^packages:.*$", f"packages: [{package}]", file.read_text(), flags=re.MULTILINE)
            file.write_text(text)

    def popen(self, *args: str, cwd: Path | None = None, **env: str) -> subprocess.Popen:
        command = [sys.executable, "-c", DRIVER, str(self.python), *args]
        pipe = subprocess.PIPE
        env = {**self.env, **env}
        return subprocess.Popen(command, cwd=cwd or self.root, env=env, stdout=pipe, stderr=pipe, text=True)

    def duet(self, *args: str, **env: str) -> subprocess.CompletedProcess:
        process = self.popen(*args, **env)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def calls(self) -> list[str]:
        """Return what the fake was asked to do since the last call."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines

    def venv(self, backend: str) -> Path:
        return self.root / ".venvs" / backend

    def finished(self, backend: str) -> bool:
        return bool(re.fullmatch("[0-9a-f]{64}", (self.venv(backend) / "duet-stamp").read_text()))


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def one_line():
    """Return the only line on stderr, which begins with the command's name."""

    def read(result: subprocess.CompletedProcess) -> str:
        assert result.stderr.count("\n") == 1 and result.stderr.startswith("duet: "), result.stderr
        return result.stderr

    return read
