"""Reports: self-contained HTML pages that need no other file and no network.

    comparison   do two or more runs agree?           (experiments.compare)
    study        which setting is better?             (experiments.study)
    gallery      samplers on one checkpoint           (experiments.gallery)
    data         a data set before training           (experiments.inspect)
    run          how did a run go, and how to continue?  (experiments.train, experiments.page)

Python prepares numbers and positions; the HTML, the style sheet and the script are in `templates`. This package
imports `diffusion_core` and no other part of `experiments`.
"""

from __future__ import annotations

from .comparison import render, write

__all__ = ["render", "write"]
