"""Write the page of a run again: losses, samples, evaluation, speed, and how to continue.

    python3 -m duet page run=outputs/train/2026-05-03_14-05-00-torch-seed0

A training writes the page when it ends, also after a signal or an error. This command makes it for a run that was
killed, that is still training, or that an earlier version made; nothing else in the directory is changed. The page
needs no other file and no network. No framework is needed.
"""

from __future__ import annotations

from experiments.config import build
from experiments.config.entry import Config, command
from experiments.config.safe_yaml import check_yaml, read_config
from experiments.report import run as report
from experiments.report.run_facts import RunFacts


@command("page")
def main(cfg: Config) -> None:
    """Read the directory of a run, and write its page."""
    directory = build.run_directory(cfg)
    file = directory / "config.yaml"
    print(f"page: {report.write(RunFacts(directory, read_config(file), check_yaml(file)))}")


if __name__ == "__main__":
    main()
