"""The configurations in configs/."""

from __future__ import annotations

import pytest
from commands import composed
from hydra.errors import MissingConfigException


@pytest.mark.parametrize(
    ("command", "group"),
    [
        ("train", "experiment"),
        ("train", "debug"),
        ("train", "hparams_search"),
        ("sample", "sampler"),
        ("edit", "sampler"),
        ("edit", "data"),
        ("evaluate", "data"),
        ("evaluate", "data@training"),
    ],
)
def test_an_unknown_option_is_refused_also_for_a_group_that_may_be_empty(command, group):
    with pytest.raises(MissingConfigException, match="misspelt"):
        composed(command, f"{group}=misspelt")
