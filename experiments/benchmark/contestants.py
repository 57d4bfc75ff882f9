"""Contestants as waiting processes, each in the environment that owns its framework, and their interleaved rounds."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Timer
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from diffusion_core.backend.interface import BackendConfig
from diffusion_core.common.errors import DuetError
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec
from diffusion_core.networks.weights import count
from experiments.config.entry import CONFIGS
from hydra_plugins.duet_launcher.launcher import backend_python
from peers import PEERS, Task

__all__ = ["BACKENDS", "Contestant", "Mode", "interleave", "start"]

BACKENDS = ("torch", "tf")
# The network of a peer where Duet's is no UNetSpec: the levels of the tutorials.
_USUAL = {"multipliers": (1, 2, 4), "blocks": 1, "attention": (), "groups": 8}


@dataclass(frozen=True)
class Mode:
    """Who competes, and how it computes."""

    contestant: str
    precision: str
    compile: bool

    @property
    def name(self) -> str:
        """As it stands in the table."""
        words = [self.contestant.replace("_", "-")]
        words += [self.precision] * (self.precision != "float32") + ["compiled"] * self.compile
        return " ".join(words)


@dataclass
class Contestant:
    """A waiting process, with the rounds that it did.

    Args:
        mode: who it is.
        process: the process; None where there is no environment for it.
        facts: what it said of itself.
        ready: seconds from its start until it was ready: import and build.
        first: seconds of its first round, in which it traces and compiles.
        seconds: of one image by work, in each round.
        memory: the most that it used by the end of its first round, in MiB.
        left_out: why it does not compete, or not to the end; empty where it does.
        limit: seconds after which a round is given up.
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
        """Send one line and read the answer.

        Raises:
            DuetError: it says that it cannot, it stopped, or it took longer than its limit and was ended.
        """
        clock = Timer(self.limit, self.process.kill)
        clock.start()
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        late = not clock.is_alive()
        clock.cancel()
        if not answer:
            code = self.process.wait()
            why = f"was ended after {self.limit:g} s" if late else f"stopped with exit code {code}"
            raise DuetError(f"bench: {self.mode.name} {why}; its output is above")
        told = json.loads(answer)
        if "error" in told:
            raise DuetError(f"bench: {self.mode.name}: {told['error']}")
        return told

    def does(self, work: str) -> bool:
        """Whether it can do a work, and has not failed at it."""
        return work in self.facts.get("work", ())

    def fail(self, work: str, why: str) -> None:
        """It does a work no more, and what it did of it does not count."""
        self.left_out = self.left_out or f"{why} (at {work})"
        self.facts["work"] = [one for one in self.facts["work"] if one != work]
        self.seconds.pop(work, None)

    def round(self, work: str) -> tuple[float, float, float]:
        """Seconds of one round, of one image in it, and the most memory used by then."""
        answer = self.ask({"work": work})
        return answer["seconds"], answer["seconds"] / answer["images"], answer["peak_memory_mib"]

    def rounds(self, work: str) -> NDArray[np.float64]:
        """Seconds of one image in each round."""
        return np.array(self.seconds[work])

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            with suppress(BrokenPipeError):  # it stopped by itself, and had something left to read
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
) -> Contestant:
    """Start a contestant and wait until it is ready; one that cannot start is left out, and says why.

    Args:
        mode: who.
        model: Duet's network and process.
        rounds: batch, steps, images and ddim_steps.
        device: as in `BackendConfig`.
        threads: as in `BackendConfig`.
        limit: seconds after which it is given up.
        cache: an empty directory for what its framework compiles: what an earlier run left there would be no compiling.
    """
    is_peer = mode.contestant in PEERS
    owner = PEERS[mode.contestant][1] if is_peer else mode.contestant
    try:
        python = backend_python(OmegaConf.load(CONFIGS / "backend" / f"{owner}.yaml"), os.environ, CONFIGS.parent)
    except DuetError as error:
        return Contestant(mode, None, left_out=f"bench: {mode.name}: {error}")
    began = perf_counter()
    process = subprocess.Popen(
        [str(python), "-m", "experiments.benchmark.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CONFIGS.parent,
        env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache)},
    )  # fmt: skip
    made = Contestant(mode, process, limit=limit)
    if is_peer:
        asked = {"task": asdict(_task(mode, model, rounds, device, threads))}
    else:
        settings = BackendConfig(device, mode.precision, mode.compile, threads, deterministic=False)
        asked = {"settings": asdict(settings), "problem": model.to_dict(), **rounds}
    try:
        made.facts = made.ask({"contestant": mode.contestant} | asked)
    except DuetError as error:
        made.left_out = str(error)
    made.ready = perf_counter() - began
    return made


def _task(mode: Mode, model: DiffusionModel, rounds: Mapping[str, int], device: str, threads: int | None) -> Task:
    """The work of a peer: a network of the same levels, or of the usual ones."""
    spec, levels = model.spec, _USUAL
    if isinstance(spec, UNetSpec):
        levels = {
            "multipliers": tuple(spec.multipliers), "blocks": spec.blocks_per_resolution,
            "attention": tuple(spec.attention_resolutions), "groups": spec.norm_groups,
        }  # fmt: skip
    return Task(
        size=spec.image_size, channels=spec.in_channels, classes=spec.num_classes, **levels,
        parameters=count(model.program), T=len(model.process.schedule.alpha), **rounds,
        device=device, threads=threads, compile=mode.compile,
        bf16=mode.precision == "bf16",
    )  # fmt: skip


def interleave(contestants: Sequence[Contestant], work: Sequence[str], repeats: int) -> None:
    """Do all works in rounds in which every contestant has its turn at each, after one round to warm up.

    The order is drawn for each round, so that none always follows the same other one. Who fails at the first work is
    left out, and who fails at another one does that no more; it says why.
    """
    for k in range(repeats + 1):
        for at, what in enumerate(work):
            able = [one for one in contestants if one.does(work[0]) and one.does(what)]
            for place in np.random.default_rng((k, at)).permutation(len(able)):
                one = able[place]
                try:
                    took, each, memory = one.round(what)
                except DuetError as error:
                    one.fail(what, str(error))
                    continue
                if k:
                    one.seconds.setdefault(what, []).append(each)
                elif not at:
                    one.first, one.memory = took, memory
