"""`duet demo`: train with every backend, exchange checkpoints, climb the parity ladder, and report."""

from __future__ import annotations

import time
from pathlib import Path

from duet.cli.backends import backends
from duet.cli.environments import setup_all
from duet.cli.stages import Stage, ladder, make_jobs, run_jobs
from duet.cli.terminal import Stop, duration, say
from duet.layout import working_folder

__all__ = ["demo_command", "stages"]

MARKER = ".duet-demo"  # in a folder that an earlier demo made
REPORTS = ("report.html", "study/report.html")
TRACE = "trace backend={b} precisions=[{p}] backend.threads={t} out={x}/trace/{b} whole=false"


def stages(titles: dict[str, str]) -> tuple[Stage, ...]:
    """Return what `duet demo` runs, in order.

    Args:
        titles: the title of each backend by its name.
    """
    names = list(titles)
    each, first = tuple((name, "") for name in names), ((names[0], ""),)
    runs = ",".join(f"{{x}}/{name}" for name in names)
    crossed, traces = (",".join(f"{{x}}/{folder}/{name}" for name in names) for folder in ("crossed", "trace"))
    return (
        Stage(
            "train with the same random numbers",
            each,
            "train experiment=digits backend={b} backend.threads={t} hydra.run.dir={x}/{b}",
        ),
        Stage(
            "sample from the other backend's checkpoint",
            each,
            "sample backend={b} backend.threads={t} checkpoint={x}/{o} out={x}/crossed/{b} save_images=false"
            " sample.count=500 sample.batch=500",
        ),
        Stage("climb the parity ladder", ladder(names), TRACE),
        Stage("hand over between backends", ladder(names), TRACE + " handover={x}/trace/{o}"),
        Stage(
            "compare",
            first,
            f"compare runs=[{runs}] crossed=[{crossed}] traces=[{traces}] out={{x}}"
            f" 'title=Handwritten digits in {' and '.join(titles.values())}' 'command=python3 -m duet demo'",
        ),
        Stage("repeat with three seeds", first, "study study=demo out={x}/study hydra.launcher.workers=2"),
    )


def demo_command(args: list[str]) -> int:
    """Train a small network with every backend, compare the runs, and write a report.

    usage: duet demo [--out DIR]

    This takes six to eight minutes on two cores, not counting set-up. DIR is outputs/demo by default. An
    earlier demo in it is renamed, never overwritten.
    """
    if args and not (len(args) == 2 and args[0] == "--out"):
        raise Stop(f"demo: {' '.join(args)!r} was given; it takes nothing or --out DIR")
    root = working_folder()
    folder = Path(args[1]).expanduser().resolve() if args else root / "outputs" / "demo"
    marker, reports = folder / MARKER, [folder / name for name in REPORTS]
    if folder.exists() and not marker.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise Stop(f"--out: {folder} was given, which holds other files; name a new or an empty folder")
    known = backends()
    pythons = setup_all(known.values())
    if marker.exists():
        renamed = folder.with_name(folder.name + time.strftime("-%Y%m%d-%H%M%S"))
        folder.rename(renamed)
        say(f"the earlier demo was renamed to {renamed}")
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text("Made by `duet demo`.\n")
    out, started = str(folder.relative_to(root) if root in folder.parents else folder), time.monotonic()
    for stage in stages({name: backend.title for name, backend in known.items()}):
        code = run_jobs(make_jobs(pythons, [stage], out))[stage.title].code
        if code:
            raise Stop(f"the demo stopped with exit code {code} at: {stage.title}", 1)
    for report in reports:
        if not report.is_file():
            raise Stop(f"the demo ran to its end but did not write {report}", 1)
    say(f"finished in {duration(time.monotonic() - started)}, not counting set-up")
    for report in reports:
        say(f"report: {report}")
    return 0
