"""Figures of schedules and processes show the numbers of their tables, and load matplotlib only when drawn."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import make_schedule


def axes():
    return Figure().subplots()


@pytest.mark.parametrize("name", ["cosine", "linear", "flow", "edm", "vp_sde"])
def test_a_schedule_is_drawn_with_its_own_alpha_and_sigma(name):
    schedule = make_schedule(name)
    drawn = schedule.plot(axes())
    for line, values in zip(drawn.lines, zip(*map(schedule, [drawn.lines[0].get_xdata()]), strict=True), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), values[0])
    assert name in drawn.get_title()


def test_a_process_is_drawn_with_its_own_columns():
    process = Process(make_schedule("edm"), "edm")
    drawn = process.plot(axes())
    columns = process.columns(drawn.lines[0].get_xdata())
    for line, name in zip(drawn.lines, ("c_skip", "c_out", "c_in"), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), getattr(columns, name))
    assert drawn.get_xscale() == "log"  # t is sigma, 0.002 to 80


def test_importing_a_schedule_does_not_load_matplotlib():
    code = "import sys, diffusion_core.diffusion.process; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
