"""Where the files of Duet lie: in a checkout of the repository, or in an environment into which it was installed.

    ROOT       the folder that holds the package `duet` and those beside it: the checkout, or site-packages
    INSTALLED  whether this is no checkout, so that there is no pyproject.toml, no tests and no .venvs
    CONFIGS    the configurations: `configs` of a checkout, which the wheel holds as `experiments/configs`
    BESIDE     the packages that lie beside `duet`, under names that a user's own folders may have too

This module uses the standard library only, and no syntax that Python 3.7 cannot read.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

__all__ = ["BESIDE", "CONFIGS", "INSTALLED", "ROOT", "check_packages", "working_folder"]

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = not (ROOT / "pyproject.toml").is_file()
CONFIGS = ROOT / "experiments" / "configs" if INSTALLED else ROOT / "configs"
BESIDE = ("diffusion_core", "backends", "experiments")


def working_folder() -> Path:
    """Return the folder where relative paths of settings start, and outputs go: the checkout, or the working one."""
    return Path.cwd() if INSTALLED else ROOT


def check_packages() -> None:
    """Check that Python finds the packages beside `duet`, and not a user's own ones of the same names.

    Raises:
        ImportError: it finds another one; the message says which, and what to do.
    """
    for name in BESIDE:
        spec = find_spec(name)
        found = None if spec is None else spec.origin or str(next(iter(spec.submodule_search_locations or ["?"])))
        if found is None or ROOT not in Path(found).resolve().parents:
            where = sys.path[0] or str(Path.cwd())
            raise ImportError(
                f"Duet's package {name!r} lies in {ROOT}, but Python finds {found or 'none'} under this name; "
                f"rename that file or folder, or start Python where sys.path does not begin with {where}"
            )
