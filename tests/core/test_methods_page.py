"""The page of methods has a row for everything that can be chosen by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diffusion_core.diffusion.continuous import CONTINUOUS
from diffusion_core.diffusion.process import PREDICTIONS
from diffusion_core.diffusion.schedule import SCHEDULES
from diffusion_core.diffusion.timestep_sampling import TIMESTEP_SAMPLERS
from diffusion_core.sampling.grid import GRIDS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text()


@pytest.mark.parametrize(
    "names", [SCHEDULES, CONTINUOUS, PREDICTIONS, GRIDS, TIMESTEP_SAMPLERS], ids=lambda names: next(iter(names))
)
def test_every_name_has_a_row_under_schedules_and_processes(names):
    section = PAGE.split("## Schedules and processes")[1].split("\n## ")[0]
    first_cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    assert set(names) <= {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
