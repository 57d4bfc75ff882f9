"""Energy as the machine counts it: RAPL of Intel and AMD processors, and NVML of NVIDIA GPUs.

RAPL counts microjoules of each processor package in a file that wraps around at `max_energy_range_uj`; a kernel may let
only the administrator read it. NVML counts millijoules of each GPU. Both count the whole machine, so a difference is
the energy of one job only if nothing else runs. Without a counter nothing is reported, and nothing is estimated.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

__all__ = ["read_counters", "spent"]

POWERCAP = Path("/sys/class/powercap")

# By counter: joules, and the joules at which it wraps around, or None if it does not.
Counters = Mapping[str, tuple[float, float | None]]


def read_counters(powercap: Path = POWERCAP) -> Counters:
    """Return every counter that can be read; none on most virtual machines."""
    return _packages(powercap) | _gpus()


def _packages(powercap: Path) -> dict[str, tuple[float, float | None]]:
    energies = {}
    for zone in sorted(powercap.glob("*-rapl:*")):
        if zone.name.count(":") > 1:  # a part of a package, already counted by the package
            continue
        try:
            joules, wrap = (int((zone / name).read_text()) / 1e6 for name in ("energy_uj", "max_energy_range_uj"))
        except (OSError, ValueError):
            continue
        energies[zone.name] = (joules, wrap)
    return energies


def _gpus() -> dict[str, tuple[float, float | None]]:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return {}
    if nvml.nvmlInit_v2():
        return {}
    count, energies = ctypes.c_uint(), {}
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    for index in range(count.value):
        device, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)):
            continue
        if not nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)):
            energies[f"gpu:{index}"] = (millijoules.value / 1e3, None)
    nvml.nvmlShutdown()
    return energies


def spent(before: Counters, after: Counters) -> float | None:
    """Return the joules between two readings of all counters that both have; None if there is none."""
    both = [name for name in before if name in after]
    if not both:
        return None
    total = 0.0
    for name in both:
        difference, wrap = after[name][0] - before[name][0], after[name][1]
        total += difference if difference >= 0 or wrap is None else difference + wrap
    return total
