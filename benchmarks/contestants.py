"""Contestants as waiting processes, each in the environment of its framework, and their interleaved rounds."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Timer
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from benchmarks.peers import PEERS, Task
from diffusion_core.backend.interface import BackendConfig
from diffusion_core.common.errors import DuetError
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec
from diffusion_core.networks.weights import parameter_count
from experiments.config.entry import CONFIGS
from hydra_plugins.duet_launcher.launcher import backend_python

__all__ = ["BACKENDS", "CONTESTANTS", "Contestant", "Mode", "interleave", "start"]

_BACKEND_FILES = {path.stem: OmegaConf.load(path) for path in (CONFIGS / "backend").glob("*.yaml")}
# In the order of their titles.
BACKENDS = tuple(sorted(_BACKEND_FILES, key=lambda name: _BACKEND_FILES[name].title))
CONTESTANTS = (*BACKENDS, *PEERS)

# The levels of a peer's network if Duet's network is not a UNetSpec: those of the usual tutorials.
_TUTORIAL_LEVELS = {"multipliers": (1, 2, 4), "blocks": 1, "attention": (), "groups": 8}


@dataclass(frozen=True)
class Mode:
    """A contestant, its precision, and whether it compiles."""

    contestant: str
    precision: str
    compile: bool

    @property
    def name(self) -> str:
        """The name in the table."""
        words = [self.contestant.replace("_", "-")]
        words += [self.precision] * (self.precision != "float32") + ["compiled"] * self.compile
        return " ".join(words)


@dataclass
class Contestant:
    """A waiting process and the rounds that it has completed.

    Args:
        mode: contestant, precision and compilation.
        process: the process; None if its environment does not exist.
        facts: its own description.
        ready: seconds from its start until it is ready: imports and construction.
        first: seconds of its first round, which includes tracing and compilation.
        seconds: for each workload, the seconds per image in each round.
        memory: peak memory in MiB at the end of its first round.
        left_out: why it does not compete, or did not finish; empty if it did.
        limit: seconds after which a round is ended.
    """

    mode: Mode
    process: subprocess.Popen | None
    facts: dict[str, Any] = field(default_factory=dict)
    ready: float = 0.0
    first: float = 0.0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    memory: float = 0.0
    left_out: str = ""
    limit: float = 3600.0

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send one line and return the answer.

        Raises:
            DuetError: if it answers with an error, stops, or takes longer than its limit, after which it is ended.
        """
        timer = Timer(self.limit, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        timed_out = not timer.is_alive()
        timer.cancel()
        if not line:
            code = self.process.wait()
            reason = (
                f"was ended after limit_s={self.limit:g} seconds" if timed_out else f"stopped with exit code {code}"
            )
            raise DuetError(f"bench: {self.mode.name} {reason}; its output is above")
        answer = json.loads(line)
        if "error" in answer:
            raise DuetError(f"bench: {self.mode.name}: {answer['error']}")
        return answer

    def can_run(self, work: str) -> bool:
        """Return whether it has a workload and has not failed at it."""
        return work in self.facts.get("work", ())

    def fail(self, work: str, reason: str) -> None:
        """Exclude it from a workload and discard its rounds of it."""
        self.left_out = self.left_out or f"{reason} (at {work})"
        self.facts["work"] = [name for name in self.facts["work"] if name != work]
        self.seconds.pop(work, None)

    def round(self, work: str) -> tuple[float, float, float]:
        """Run one round; return its seconds, its seconds per image, and the peak memory in MiB so far."""
        answer = self.ask({"work": work})
        return answer["seconds"], answer["seconds"] / answer["images"], answer["peak_memory_mib"]

    def rounds(self, work: str) -> NDArray[np.float64]:
        """Return the seconds per image in each round."""
        return np.array(self.seconds[work])

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            with suppress(BrokenPipeError):  # it has stopped already, with unread input
                self.process.stdin.close()
            self.process.wait()


def start(
    mode: Mode,
    model: DiffusionModel,
    rounds: Mapping[str, int],
    device: str,
    threads: int | None,
    limit: float,
    cache: Path,
    own: Mapping[str, Any] | None = None,
) -> Contestant:
    """Start a contestant and wait until it is ready; one that cannot start is left out, with the reason.

    Args:
        mode: contestant, precision and compilation.
        model: Duet's network and process.
        rounds: batch, steps, images and ddim_steps.
        device: as in `BackendConfig`.
        threads: as in `BackendConfig`.
        limit: seconds after which it is ended.
        cache: an empty directory for compiled code, since a cache of an earlier run would hide the time to compile.
        own: the own network, see `benchmarks.own`.
    """
    is_peer = mode.contestant in PEERS
    owner = PEERS[mode.contestant][1] if is_peer else mode.contestant
    try:
        python = backend_python(_BACKEND_FILES[owner], os.environ, CONFIGS.parent)
    except DuetError as error:
        return Contestant(mode, None, left_out=f"bench: {mode.name}: {error}")
    began = perf_counter()
    process = subprocess.Popen(
        [str(python), "-m", "benchmarks.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CONFIGS.parent,
        env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache)},
    )  # fmt: skip
    contestant = Contestant(mode, process, limit=limit)
    if is_peer:
        request = {"task": asdict(_task(mode, model, rounds, device, threads))}
    else:
        settings = BackendConfig(device, mode.precision, mode.compile, threads, deterministic=False)
        request = {"settings": asdict(settings), "model": model.to_dict(), "own": own, **rounds}
    try:
        contestant.facts = contestant.ask({"contestant": mode.contestant} | request)
    except DuetError as error:
        contestant.left_out = str(error)
    contestant.ready = perf_counter() - began
    return contestant


def _task(mode: Mode, model: DiffusionModel, rounds: Mapping[str, int], device: str, threads: int | None) -> Task:
    """Return the task of a peer: a network with the same levels, or with those of the tutorials."""
    spec, levels = model.spec, _TUTORIAL_LEVELS
    if isinstance(spec, UNetSpec):
        levels = {
            "multipliers": tuple(spec.channel_multipliers), "blocks": spec.blocks_per_resolution,
            "attention": tuple(spec.attention_resolutions), "groups": spec.norm_groups,
        }  # fmt: skip
    return Task(
        size=spec.image_size, channels=spec.in_channels, classes=spec.num_classes, **levels,
        parameters=parameter_count(model.program), T=len(model.process.schedule.alpha), **rounds,
        device=device, threads=threads, compile=mode.compile,
        bf16=mode.precision == "bf16",
    )  # fmt: skip


def interleave(
    contestants: Sequence[Contestant],
    work: Sequence[str],
    repeats: int,
    progress: Callable[[int, str], None] = lambda done, note: None,
) -> None:
    """Run workloads in rounds in which every contestant has its turn at each, after one round to warm up.

    The order within a round is random, so that no contestant always follows the same other one. A contestant that fails
    at the first workload is left out; one that fails at another workload no longer runs that one.

    Args:
        contestants: the contestants, which hold the results.
        work: a workload and its parts.
        repeats: rounds after the first.
        progress: called with the number of rounds completed and the name of the next turn.
    """
    for k in range(repeats + 1):
        for at, what in enumerate(work):
            able = [
                contestant for contestant in contestants if contestant.can_run(work[0]) and contestant.can_run(what)
            ]
            for place in np.random.default_rng((k, at)).permutation(len(able)):
                contestant = able[place]
                progress(k, f"{what}, {contestant.mode.name}")
                try:
                    took, each, memory = contestant.round(what)
                except DuetError as error:
                    contestant.fail(what, str(error))
                    continue
                if k:
                    contestant.seconds.setdefault(what, []).append(each)
                elif not at:
                    contestant.first, contestant.memory = took, memory
    progress(repeats + 1, "")
