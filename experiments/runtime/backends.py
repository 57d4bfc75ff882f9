"""The choice of a backend: which one, with which settings, compiled or not, in which process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

from diffusion_core.backend.compile_policy import AUTO, should_compile
from diffusion_core.backend.interface import Backend, BackendConfig, load_backend
from diffusion_core.runtime.distributed import ProcessGroup
from diffusion_core.runtime.heartbeat import heartbeat
from diffusion_core.sampling import SamplerPlan

__all__ = ["BackendSetup", "sampling_calls"]


@dataclass(frozen=True)
class BackendSetup:
    """Everything that is needed to open a backend.

    Args:
        name: ``"torch"``, ``"tf"`` or another installed backend.
        config: device, precision and threads; its `compile` is ignored in favour of the next argument.
        compile: True, False, or ``"auto"``, which decides by the number of network calls.
        compile_after: for ``"cpu"`` and ``"cuda"``, the number of network calls beyond which auto compiles; a missing
            entry or None means never.
        group: the processes that compute together.
    """

    name: str = "torch"
    config: BackendConfig = field(default_factory=BackendConfig)
    compile: bool | str = AUTO
    compile_after: Mapping[str, int | None] = field(default_factory=dict)
    group: ProcessGroup = field(default_factory=ProcessGroup)

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", replace(self.config, compile=should_compile(self.compile, 0, None)))

    @property
    def precision(self) -> str:
        """The precision of the computation."""
        return self.config.precision

    def with_precision(self, precision: str) -> BackendSetup:
        """Return the same setup in another precision."""
        return replace(self, config=replace(self.config, precision=precision))

    def load(self) -> Backend:
        """Return the backend as configured; with ``compile="auto"`` it does not compile."""
        with heartbeat(f"starting {self.name}"):
            return load_backend(self.name, self.config, *([] if self.group.kind == "none" else [self.group]))

    def open(self, calls: int = 0, resumed: bool | None = None) -> Backend:
        """Open the backend and print its device, precision and mode.

        Args:
            calls: planned network calls, by which ``compile="auto"`` decides.
            resumed: whether the resumed run was compiled; None for a new run.
        """
        if self.group.kind != "none":  # auto does not compile what processes exchange: that has not been measured
            calls, resumed = 0, None
        backend = self.choose_mode(self.load(), calls, resumed)
        print(backend.describe().line(), flush=True)
        return backend

    def choose_mode(self, backend: Backend, calls: int = 0, resumed: bool | None = None) -> Backend:
        """Return an open backend, compiled or not as `compile` decides for this number of network calls."""
        limit = self.compile_after.get("cpu" if backend.describe().on_cpu else "cuda")
        compiled = should_compile(self.compile, calls, limit, resumed)
        # With compile=true the backend itself refuses where nothing can be compiled; auto computes without.
        if compiled and self.compile == AUTO and (obstacle := backend.compile_obstacle()):
            again = "; the last bits may differ from those of the resumed run" if resumed else ""
            _say_once(f"backend.compile=auto: computing without compiling, since {obstacle}{again}")
            compiled = False
        return backend if compiled == backend.config.compile else backend.in_mode(compiled)


@cache
def _say_once(line: str) -> None:
    print(line, flush=True)


def sampling_calls(drawn: Iterable[tuple[SamplerPlan, int]], batch: int) -> int:
    """Return the average number of network calls over several plans.

    Compiling is decided by the average because each plan may have to be compiled separately.

    Args:
        drawn: each plan with the number of samples drawn with it.
        batch: samples per call.
    """
    calls = [plan.rows * -(-count // batch) for plan, count in drawn]
    return sum(calls) // len(calls)
