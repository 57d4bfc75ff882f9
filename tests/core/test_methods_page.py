"""docs/methods.md has a row for every name that can be chosen, and the generated tables are up to date."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from diffusion_core.diffusion.continuous import CONTINUOUS
from diffusion_core.diffusion.process import PREDICTIONS
from diffusion_core.diffusion.schedule import SCHEDULES
from diffusion_core.diffusion.timestep_sampling import TIMESTEP_SAMPLERS
from diffusion_core.sampling.grid import GRIDS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "methods.md").read_text()


@pytest.mark.parametrize(
    "names", [SCHEDULES, CONTINUOUS, PREDICTIONS, GRIDS, TIMESTEP_SAMPLERS], ids=lambda names: next(iter(names))
)
def test_every_name_has_a_row_under_schedules_and_processes(names):
    section = PAGE.split("## Schedules and processes")[1].split("\n## ")[0]
    first_cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    assert set(names) <= {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}


def test_the_generated_tables_are_up_to_date():
    tables = runpy.run_path(str(DOCS / "update_tables.py"))
    for page in tables["PAGES"]:
        assert tables["updated"](page.read_text()) == page.read_text(), "run python docs/update_tables.py"
