"""The recorded tables of every sampler, from before samplers were rewritten as formulas.

``tests/data/sampler_tables.npz`` holds, for each case (a process, a sampler and its options), the tables t, sigma,
state, denoised and noise of its plan, one after another in one array.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import make_schedule
from diffusion_core.model.old_names import SAMPLER_KEYS, with_new_names
from diffusion_core.sampling import SamplerPlan, make_plan

__all__ = ["CASES", "make"]

PROCESSES = {
    "cosine_v": Process(make_schedule("cosine", T=1000), "v"),
    "edm_edm": Process(make_schedule("edm"), "edm"),
    "flow_flow": Process(make_schedule("flow", T=1000), "flow"),
    "next_level": Process(make_schedule("cosine", T=16), "next_level"),
    "cosine12_v": Process(make_schedule("cosine", T=12), "v"),
}


def make(case: Mapping[str, Any]) -> SamplerPlan:
    """Make the plan of a case."""
    return make_plan(PROCESSES[case["process"]], case["sampler"], **with_new_names(case["options"], SAMPLER_KEYS))


def _read() -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    with np.load(Path(__file__).parent.parent / "data" / "sampler_tables.npz") as file:
        values, cases, found, start = file["values"], json.loads(str(file["cases"])), [], 0
    for case in cases:
        tables = {}
        for name, shape in case["tables"].items():
            size = int(np.prod(shape))
            tables[name] = values[start : start + size].reshape(shape)
            start += size
        found.append((case, tables))
    assert start == len(values)
    return found


CASES = _read()
