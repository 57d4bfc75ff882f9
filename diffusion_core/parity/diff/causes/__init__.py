"""The catalogue of causes: what makes two implementations of one operation differ, and how to tell.

    change       what a cause proposes: one operation computed in another way
    training, gradients, optimiser    what only shows in training mode, in gradients, in training steps
    the other modules                 causes in a forward pass, by subject

A cause is a function of a `Suspect` that yields a `Change` for each way in which its operations could have been meant.
Whether a change is the cause is not its business: `walk` runs on from it and looks whether the two sides then agree.
"""

from diffusion_core.parity.diff.causes import (  # noqa: F401
    activation,
    attention,
    constants,
    cropping,
    dropout,
    embedding,
    layout,
    layout_order,
    normalisation,
    precision,
    recurrent,
    reduction,
    rotary,
    search,
    wiring,
)
from diffusion_core.parity.diff.causes.change import CAUSES, Change, Suspect

__all__ = ["CAUSES", "Change", "Suspect"]
