"""The page of a run, written when the run ends, however it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusion_core.runtime import signals
from experiments.report import run as report
from experiments.report.run_facts import RunFacts

__all__ = ["page_at_the_end"]


@contextmanager
def page_at_the_end(
    directory: Path, config: str, options: Mapping[str, Any], resume_command: Callable[[], str]
) -> Iterator[None]:
    """Write report.html when the run in `directory` ends: after its last step, a signal or an error.

    A page that cannot be made is named in a line and changes nothing about how the run ended.

    Args:
        directory: of the run.
        config: the configuration as YAML.
        options: the same as plain data.
        resume_command: returns the command that continues the run; empty if there is none.
    """
    problem = ""
    try:
        yield
    except (signals.Stopped, KeyboardInterrupt):
        raise
    except BaseException as error:
        problem = str(error) or type(error).__name__
        raise
    finally:
        if (directory / "environment.json").is_file():
            _write(RunFacts(directory, options, config, problem, resume_command()))


def _write(run: RunFacts) -> None:
    try:
        print(f"page: {report.write(run)}", flush=True)
    except Exception as error:  # the run itself is complete, or has an error of its own to show
        print(f"page: report.html could not be written ({type(error).__name__}: {error})", flush=True)
