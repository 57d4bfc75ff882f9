"""Our profiles against the `EMAModel` of diffusers, which is there wherever PyTorch is.

It has the inverse-gamma ramp of k-diffusion, but copies the weights at the first update whatever the least decay is.
Without the ramp it has a warm-up that counts one update less than ours, which is TensorFlow's: its first update forgets
the initial weights, ours keeps 2/11 of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffusion_core.optim import InverseGamma, Profile, Warmup, ema_update

UPDATES = 60
VALUES = np.random.default_rng(0).normal(size=UPDATES + 1)


def model(**options: Any) -> Any:
    """Their average of the first value."""
    import torch
    from diffusers.training_utils import EMAModel

    return EMAModel([torch.nn.Parameter(torch.tensor(VALUES[:1]))], **options)


def decays(profile: Profile) -> np.ndarray:
    k = np.arange(1, UPDATES + 1)
    return profile(k, k, 1)


@pytest.mark.parametrize("inv_gamma, power, decay, least, start", [
    (1.0, 2 / 3, 0.9999, 0.0, 0), (5.0, 0.75, 0.8, 0.3, 0), (1.0, 2 / 3, 0.9999, 0.0, 7),
])  # fmt: skip
def test_the_decays_of_an_inverse_gamma_are_those_of_diffusers(inv_gamma, power, decay, least, start):
    theirs = model(use_ema_warmup=True, inv_gamma=inv_gamma, power=power, decay=decay, min_decay=least,
                   update_after_step=start)  # fmt: skip
    wanted = [theirs.get_decay(k) for k in range(1, UPDATES + 1)]
    got = decays(InverseGamma(inv_gamma, power, least, decay, start))
    np.testing.assert_allclose(got[1:], wanted[1:], rtol=1e-14)
    assert (got[0], wanted[0]) == (least, 0.0)


def test_the_warm_up_of_diffusers_is_ours_one_update_later():
    theirs, got = model(decay=0.9), decays(Warmup(0.9))
    assert [theirs.get_decay(k) for k in range(1, UPDATES + 1)] == [0.0, *got[:-1]]


def test_the_average_of_diffusers_is_ours():
    import torch

    theirs, average = model(use_ema_warmup=True, decay=0.9), {"p": VALUES[:1]}
    for value, decay in zip(VALUES[1:], decays(InverseGamma(max_decay=0.9)), strict=True):
        theirs.step([torch.nn.Parameter(torch.tensor([value]))])
        average = ema_update(average, {"p": np.array([value])}, float(decay))
        assert theirs.shadow_params[0].item() == pytest.approx(average["p"][0], rel=1e-12)
