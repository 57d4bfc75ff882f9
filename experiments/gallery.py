"""Compare all samplers on one checkpoint: images and errors against the number of network evaluations.

    python3 -m duet gallery checkpoint=outputs/demo/torch out=outputs/gallery
    python3 -m duet gallery backend=tf checkpoint=RUN out=DIR methods=[DDIM,Heun] budgets=[10,20,50]

All methods start from the same noise on the same grid of noise levels (`spacing`), without a clip, so the deterministic
ones have one common limit: the solution of the probability flow ODE, which the method `reference` approximates in
`reference_steps` steps. Their error is the root mean square over pixels and samples, in units of the data range
[-1, 1]. A method that draws fresh noise has no such limit, so only its images are shown. Writes gallery.png, curves.png
and .svg, gallery.json and gallery.html.
"""

from __future__ import annotations

from pathlib import Path

from diffusion_core.common.text import pluralize
from experiments.config import build
from experiments.config.entry import Config, command
from experiments.sampling.gallery import draw_gallery


@command("gallery", result=("gallery.json", "a gallery"))
def main(cfg: Config) -> None:
    """Draw samples with every method, and write images, numbers and the page."""
    page, entries = draw_gallery(build.gallery_setup(cfg), Path(cfg.out))
    methods = pluralize(len({entry.method for entry in entries}), "method")
    print(f"{pluralize(len(entries), 'plan')} of {methods}: {page}")


if __name__ == "__main__":
    main()
