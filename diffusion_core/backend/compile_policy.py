r"""Whether compiling pays for the work that is asked for.

Compiling takes time once, and saves or loses some in every call. With B blocks in a network, K calls of it, M numbers
that its blocks give in all of them and P multiply-adds of its products::

    cost   = per_block B
    saving = per_call B K + per_number M - per_product P

The first term of the saving is what a framework spends on each block beside its numbers, and counts in small networks.
The second is what fused kernels save: ways through memory. The third is what compiled products take more than those of
the library that a framework calls otherwise, and decides in large networks. The four constants are measured, see
docs/speed.md, and stand in the configuration of a backend. Nothing is measured when a run begins: the same work has
the same mode on any machine, at any load, and a run that is resumed has that it was begun in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.networks.flops import multiply_adds, numbers
from diffusion_core.networks.program import Program
from diffusion_core.sampling.plan import SamplerPlan

__all__ = ["AUTO", "Costs", "Work", "compiles", "sampling_work", "training_work"]

AUTO = "auto"


@dataclass(frozen=True)
class Costs:
    """What compiling costs and saves in one kind of work, in seconds.

    Args:
        per_block: to compile one block of a network.
        per_call: saved in each call of each block.
        per_giga: saved in 10^9 numbers that blocks give.
        per_tera: lost in 10^12 multiply-adds.
    """

    per_block: float
    per_call: float
    per_giga: float
    per_tera: float

    @staticmethod
    def of(given: Mapping[str, float] | None) -> Costs | None:
        """Those of a configuration; None where it has none.

        Raises:
            DuetError: for other names, or what is no time.
        """
        if given is None:
            return None
        names = [field.name for field in fields(Costs)]
        if sorted(given) != sorted(names):
            raise DuetError(f"backend.costs: {', '.join(given)} were given; they are {', '.join(names)}")
        for name, value in given.items():
            if not (isinstance(value, (int, float)) and value >= 0):
                raise DuetError(f"backend.costs: {name} {value} was given; it is a time in seconds, at least 0")
        return Costs(**given)


@dataclass(frozen=True)
class Work:
    """What is asked of a network.

    Args:
        blocks: B, of the network.
        calls: K, whole batches that it is called with.
        numbers: M, that the blocks give in all calls together.
        products: P, multiply-adds in all calls together.
    """

    blocks: int
    calls: int
    numbers: int
    products: int

    @staticmethod
    def of(program: Program, image: tuple[int, int, int], calls: int, passes: int) -> Work:
        """So many calls, in which so many images of shape (h, w, c) pass through a network."""
        each = numbers(program, image), multiply_adds(program, image)
        return Work(len(program.nodes), calls, *(passes * one for one in each))

    def saving(self, costs: Costs) -> float:
        """Seconds that compiled functions save, less those that it takes to compile them."""
        saved = costs.per_call * self.blocks * self.calls + costs.per_giga * self.numbers / 1e9
        return saved - costs.per_tera * self.products / 1e12 - costs.per_block * self.blocks


def training_work(program: Program, image: tuple[int, int, int], images: int, batch: int) -> Work:
    """Training with so many images; a backward pass is twice a forward pass."""
    return Work.of(program, image, -(-images // batch), 3 * images)


def sampling_work(program: Program, image: tuple[int, int, int], plan: SamplerPlan, samples: int, batch: int) -> Work:
    """Drawing so many samples; a guided row looks at each image twice."""
    passes = plan.rows + int(plan.is_guided.sum())
    calls = plan.rows * -(-samples // batch)
    return Work.of(program, image, calls, passes * samples)


def compiles(given: bool | str, costs: Costs | None, work: Work | None, begun: bool | None = None) -> bool:
    """Whether functions are compiled.

    Args:
        given: true or false, which is taken as it is, or ``"auto"``.
        costs: of the backend in this kind of work; None where compiling is not known to pay.
        work: what is asked for; None is little.
        begun: whether they were in the run that is gone on with, which auto keeps to: compiled functions differ in the
            last bits, and a run that was cut must end as one that was not. None is a new run.

    Raises:
        DuetError: for anything else that is given.
    """
    if isinstance(given, bool):
        return given
    if given != AUTO:
        raise one_of("backend.compile", str(given), (AUTO, "true", "false"))
    if begun is not None:
        return begun
    return costs is not None and work is not None and work.saving(costs) > 0
