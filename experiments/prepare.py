"""Prepare a data set once, as a store that both frameworks read, with its data card.

    python3 -m duet prepare data=cifar10
    python3 -m duet prepare data=image_folder data.options.path=FOLDER data.options.size=64
    python3 -m duet prepare data=celeba data.options.path=FOLDER split=stream
    python3 -m duet prepare data=image_folder data.options.path=FOLDER split=file split.path=parts.txt

With autoencoder=DIR, the folder of an AutoencoderKL of diffusers, the images are encoded: latents are written to `out`,
which a network trains on and samples in, and which its samples are decoded from.

    python3 -m duet prepare data=cifar10 autoencoder=VAE out=data/cifar10-latents backend=torch

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
from experiments.data.latents import encode_dataset
from experiments.data.preparation import SPLITS, PreparedData, prepare_dataset


@command("prepare", options={"split": SPLITS})
def main(cfg: Config) -> None:
    """Write the stores and the card, and print what each part holds."""
    latents = build.latent_setup(cfg)
    if latents is not None:
        card = encode_dataset(latents)
        _print_parts(PreparedData(card, ()))
        print(f"latents: {latents.out}")
        return
    setup = build.preparation_setup(cfg)
    prepared = prepare_dataset(setup)
    for line in reading_lines(prepared.card.get("reading", {})):
        print(line)
    _print_parts(prepared)
    for part in prepared.empty_parts:
        print(f"{part}: skipped, it has no image of these classes")
    print(f"prepared: {setup.out}")


def _print_parts(prepared: PreparedData) -> None:
    """Print what each part holds."""
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


if __name__ == "__main__":
    main()
