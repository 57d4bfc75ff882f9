"""`duet test`: test every backend in its own environment, then compare what they computed."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from duet.cli.backends import ROOT, backends
from duet.cli.environments import setup_all
from duet.cli.stages import Stage, ladder, make_jobs, run_jobs
from duet.cli.terminal import Stop, duration, say

__all__ = ["BROWSERS", "stages", "test_command"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PARTS = 3  # of the tests without a backend; each is a process of its own
TRACE = "trace backend={b} precisions=[{p}] backend.threads={t} out={x}/trace/{b}"


def stages(names: list[str], browser: bool = True) -> tuple[Stage, ...]:
    """Return what `duet test` runs, in order. The first backend runs the tests that need none, or any one.

    Args:
        names: the backends.
        browser: whether to run the tests that operate a page in a browser.
    """
    first, *others = names
    without = "" if browser else " and not browser"
    kinds = " and ".join(f"not {kind}" for kind in ("backend", "together", "exchange", "notebook", "slow", "gpu"))
    common = [(first, f"-m '{kinds}{without}' --part {i}/{PARTS}") for i in range(1, PARTS + 1)]
    own = [
        *((name, f"-m 'backend and not either and not recorded and not slow and not gpu{without}'") for name in others),
        (first, f"-m 'backend and not recorded and not slow and not gpu{without}'"),
        (first, f"-m 'together and not slow{without}'"),
    ]
    ladder_title, handover_title = "parity ladder", "hand-over between backends"
    # The longest first, so that none is left over at the end: what TensorFlow traces takes longest.
    return (
        Stage(ladder_title, ladder(names), TRACE),
        Stage("tests of each backend", tuple(own), "pytest {p}"),
        Stage("notebooks", tuple((name, "-m 'notebook and not slow'") for name in reversed(names)), "pytest {p}"),
        Stage(handover_title, ladder(names), TRACE + " handover={x}/trace/{o}", (ladder_title,)),
        Stage("tests without a backend", tuple(common), "pytest {p}"),
        Stage("backends against each other", ((first, "-m exchange"),), "pytest {p}", (handover_title,)),
    )


def test_command(args: list[str]) -> int:
    """Test every backend in its own environment, then compare what they computed.

    usage: duet test [PYTEST ARGS ...]

    PYTEST ARGS are added to every call of pytest, for example `-k resume` or `tests/core/test_ema.py`. Exit code: 0 if
    every stage passed, 1 if one failed.
    """
    if not (ROOT / "tests").is_dir():
        raise Stop(f"test: {ROOT} has no folder tests, since Duet was installed as a package; run it in the repository")
    browser = find_browser()
    started = time.monotonic()
    pythons = setup_all(backends().values())
    no_browser = f"no {' or '.join(BROWSERS)} on PATH: the tests marked `browser` are NOT RUN, so no page is operated"
    if not browser:
        say(no_browser)
    table = stages(list(pythons), bool(browser))
    with tempfile.TemporaryDirectory(prefix="duet-exchange-") as folder:
        jobs = make_jobs(pythons, table, folder, args, DUET_EXCHANGE=str(Path(folder) / "trace"))
        results = run_jobs(jobs)
    # pytest exits with 5 if it selects no test, which is normal in some stages for the user's own selection.
    harmless = {stage.title for stage in table if args and stage.template.startswith("pytest")}
    failed = {title for title, result in results.items() if result.code not in ((0, 5) if title in harmless else (0,))}
    for title, (code, seconds) in results.items():
        outcome = f"FAILED (exit code {code})" if title in failed else "passed"
        say(f"{title:<28} {outcome:<22} {duration(seconds):>8}")
    say(f"{'together':<51} {duration(time.monotonic() - started):>8}")
    if not browser:
        say(no_browser)
    return 1 if failed else 0


def find_browser() -> str | None:
    """Return the Chromium for the tests marked `browser`, or None if there is none."""
    path = os.environ.get("DUET_BROWSER")
    if path and path != "none" and not shutil.which(path):
        raise Stop(f"DUET_BROWSER: {path!r} was given; it must be the path of a Chromium, or none")
    return None if path == "none" else path or next(filter(None, map(shutil.which, BROWSERS)), None)
