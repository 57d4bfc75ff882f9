"""Edit images with a checkpoint: image to image, inpainting, interpolation, images that agree with a measurement.

    python3 -m duet edit checkpoint=RUN out=DIR data=digits mode=image_to_image mode.strength=0.5
    python3 -m duet edit checkpoint=RUN out=DIR data=digits images=[3,8] mode=interpolate mode.count=12
    python3 -m duet edit checkpoint=RUN out=DIR data=digits mode=inpaint sampler=repaint backend=tf
    python3 -m duet edit checkpoint=RUN out=DIR path=image.png labels=7 mode=inpaint mode.known=mask.png
    python3 -m duet edit checkpoint=RUN out=DIR data=digits mode=posterior mode.operator=blur mode.noise=0.05

The images come from a data set, selected by position, or from a file: one image, a folder of images in the natural
order of their names, or an `.npz` file with uint8 images (N, H, W, C) and optional labels, as `experiments.sample`
writes it. `sampler`, `guide` and `classifier` are those of `experiments.sample`. Writes `edited.npz` and `edited.png`,
which shows each image in front of its edited ones.
"""

from __future__ import annotations

from pathlib import Path

from diffusion_core.common.text import pluralize
from experiments.config import build
from experiments.config.convert import to_yaml
from experiments.config.entry import Config, command
from experiments.editing.modes import MODES
from experiments.editing.run import edit_images
from experiments.editing.setup import EditContext


@command("edit", result=("edited.npz", "edited images"), options={"mode": MODES})
def main(cfg: Config) -> None:
    """Check the whole request, then edit the images and write them."""
    context = EditContext(build.edit_setup(cfg))
    images = edit_images(context, Path(cfg.out), to_yaml(cfg, context.choices))
    print(f"{pluralize(len(images), 'image')}: {Path(cfg.out) / 'edited.png'}")


if __name__ == "__main__":
    main()
