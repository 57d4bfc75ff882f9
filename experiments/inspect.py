"""Inspect a data set before anything is trained on it: one page, and the same as JSON.

    python3 -m duet inspect data=digits parts=[train,held_out] out=outputs/inspect
    python3 -m duet inspect data=cifar10 out=outputs/inspect       # every part of the prepared store
    python3 -m duet inspect data=image_folder data.options.path=FOLDER out=outputs/inspect

The page shows counts per class, sizes, channel means and histograms, the mean image of each class, random images, and
near-duplicates, within a part and between parts.
"""

from __future__ import annotations

from experiments.config import build
from experiments.config.entry import Config, command
from experiments.data.inspection import inspect_dataset


@command("inspect", result=("report.json", "a report"))
def main(cfg: Config) -> None:
    """Write the page and print its path."""
    print(f"page: {inspect_dataset(build.inspection_setup(cfg), cfg.out)}")


if __name__ == "__main__":
    main()
