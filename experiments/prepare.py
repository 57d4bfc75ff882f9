"""Prepare a data set once, as a store that both frameworks read, with its data card.

    python3 -m duet prepare data=cifar10
    python3 -m duet prepare data=image_folder data.options.path=FOLDER data.options.size=64
    python3 -m duet prepare data=celeba data.options.path=FOLDER split=stream
    python3 -m duet prepare data=image_folder data.options.path=FOLDER split=file split.path=parts.txt

With features=NAME, the mean and the covariance of the features of each part are written too, as reference=FILE of
`evaluate`.

Files at data.options.path are used as they are. Without a path, the files in the folder of archives are used, and
missing ones are downloaded there. The same command resumes an interrupted preparation. Every part is prepared, whatever
data.options.part is.
"""

from __future__ import annotations

from diffusion_core.common.text import pluralize
from diffusion_core.data.card import part_lines
from diffusion_core.data.reading import reading_lines
from experiments.config import build
from experiments.config.entry import Config, command
from experiments.data.preparation import SPLITS, prepare_dataset


@command("prepare", options={"split": SPLITS})
def main(cfg: Config) -> None:
    """Write the stores and the card, and print what each part holds."""
    setup = build.preparation_setup(cfg)
    prepared = prepare_dataset(setup)
    for line in reading_lines(prepared.card.get("reading", {})):
        print(line)
    for part, facts in prepared.card["parts"].items():
        skipped = facts["unreadable"]["count"]
        note = f", {pluralize(skipped, 'unreadable image')} skipped (README.md lists them)" if skipped else ""
        print(
            f"{part}: {pluralize(facts['pictures'], 'image')} in {pluralize(len(facts['classes']), 'class')}{note}, "
            f"sha256 {facts['sha256']}"
        )
        for line in part_lines(facts):
            print(f"{part}: {line}")
        if part in prepared.statistics:
            print(f"{part}: mean and covariance of the features: {prepared.statistics[part]}")
    for part in prepared.empty_parts:
        print(f"{part}: skipped, it has no image of these classes")
    print(f"prepared: {setup.out}")


if __name__ == "__main__":
    main()
