"""The registry of block kinds, and the rules that are written once per kind.

A block kind is a frozen dataclass. `register` enters it in `BLOCKS` under the name of its class:

    @register
    @dataclass(frozen=True)
    class SiLU(Elementwise):
        ...

The class itself carries what needs no array: its parameters, the shape of its value and its multiply-adds. What
computes stands elsewhere, in one `BlockRules` table each: a NumPy reference function (`backend/reference/`), an ONNX
emitter (`convert/onnx*.py`) and one module per backend (`backends/*/`). `BLOCKS` and every table raise a `DuetError`
that names the kind when a rule is missing; `tests/backend/test_twins.py` lists all missing rules.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError

__all__ = [
    "BLOCKS",
    "Block",
    "BlockRules",
    "Elementwise",
    "NoProducts",
    "Parameter",
    "Shape",
    "check_beside",
    "check_image",
    "check_no_tokens",
    "check_tokens",
    "kind_of",
    "positions",
    "register",
]

# Without the batch: (h, w, c) of an image, (n, c) of tokens, (c,) of a vector, () of one number per sample.
Shape = tuple[int, ...]
Rule = TypeVar("Rule")
Kind = TypeVar("Kind", bound="type[Block]")


@dataclass(frozen=True)
class Parameter:
    """One array of a network.

    Args:
        name: its name within the block, then within the program.
        shape: in the canonical axes.
        axes: what each axis is, as in ``"o i kh kw"``.
        init: ``("constant", value)``, ``("uniform", bound)``, ``("positive", bound)`` for uniform on (0, bound),
            ``("normal", standard deviation)``, or ``("given", 0)`` for an array that the block came with, see
            `Block.given`.
        decay: whether weight decay applies to it (never to biases, norms and embeddings).
        trained: whether the optimiser updates it; running statistics and random frequencies are not trained.
        normalised: the eps of forced weight normalisation, which each step of training begins with; None for most
            parameters, which have no such rule. See `optim/normalisation.py`.
    """

    name: str
    shape: tuple[int, ...]
    axes: str
    init: tuple[str, float]
    decay: bool = False
    trained: bool = True
    normalised: float | None = None

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)


class Block(ABC):
    """A block kind: explicit numbers, the parameters it owns, and the rules for its shape and its cost.

    The inputs of `output_shape` are the inputs of the block, in the same order.
    """

    # Whether the block computes something else in training than in evaluation, as BatchNorm and Dropout do. Its
    # functions then take an argument `training` (a `program.Training`, or None in evaluation).
    has_training_mode: ClassVar[bool] = False
    # Whether its value for an image depends, in training, on the other images of the batch.
    has_batch_statistics: ClassVar[bool] = False
    # Whether it takes times as whole numbers, by which nothing can be differentiated; and whether it takes a second
    # time as the end of a step rather than its length.
    rounds_times: ClassVar[bool] = False
    reads_end_time: ClassVar[bool] = False
    # Options that the kind has had later than checkpoints of it: a program does not mention them at their defaults, so
    # that the hash of an older program stays.
    later_options: ClassVar[tuple[str, ...]] = ()

    def parameters(self) -> tuple[Parameter, ...]:
        """Return the parameters that the block owns, in order; none by default."""
        return ()

    def given(self, name: str) -> NDArray:
        """Return the value that a parameter with the distribution ``"given"`` starts from."""
        raise NotImplementedError

    @abstractmethod
    def output_shape(self, *inputs: Shape) -> Shape:
        """Return the shape of the block's value for one sample, given the shapes of its inputs."""

    @abstractmethod
    def multiply_adds(self, *inputs: Shape) -> int:
        """Return the multiply-adds of the block's matrix products and convolutions for one sample."""

    def describe(self) -> dict[str, Any]:
        """Return its numbers by name as plain data, to print or to hash."""
        defaults = {field.name: field.default for field in fields(self) if field.name in self.later_options}  # type: ignore[arg-type]
        numbers = asdict(self)  # type: ignore[call-overload]
        return {name: value for name, value in numbers.items() if name not in defaults or value != defaults[name]}

    @classmethod
    def input_count(cls) -> int:
        """Return how many values the block reads."""
        return len(inspect.signature(cls.output_shape).parameters) - 1


def positions(x: Shape) -> Shape:
    """Return the axes of a value without its channels: (h, w) of an image, (n,) of tokens, () of a vector."""
    return x[:-1]


def check_beside(kind: str, x: Shape, y: Shape) -> None:
    """Raise a `DuetError` unless y is a vector, or has the positions of x."""
    if len(y) > 1 and positions(y) != positions(x):
        raise DuetError(
            f"block {kind}: values of the shapes {x} and {y} were given; the second must be a vector, or have the "
            f"pixels or tokens of the first"
        )


def check_image(kind: str, x: Shape) -> None:
    """Raise a `DuetError` unless x is an image."""
    if len(x) != 3:
        raise DuetError(f"block {kind}: a value of the shape {x} was given; it reads images (h, w, c)")


def check_no_tokens(kind: str, x: Shape) -> None:
    """Raise a `DuetError` if x is a value of tokens."""
    if len(x) == 2:
        raise DuetError(f"block {kind}: tokens of the shape {x} were given; it reads images (h, w, c) or vectors (c,)")


def check_tokens(kind: str, x: Shape) -> None:
    """Raise a `DuetError` unless x is a value of tokens."""
    if len(x) != 2:
        raise DuetError(f"block {kind}: a value of the shape {x} was given; it reads tokens (n, c), see Patchify")


class NoProducts(Block):
    """A block without matrix product or convolution: it reads each number about once."""

    def multiply_adds(self, *inputs: Shape) -> int:
        """Return 0."""
        return 0


class Elementwise(NoProducts):
    """A block of one input whose value has the shape of that input, such as a norm or an activation."""

    def output_shape(self, x: Shape) -> Shape:
        """Return the shape of the input."""
        return x


BLOCKS: dict[str, type[Block]] = {}


def register(kind: Kind) -> Kind:
    """Enter a block kind in `BLOCKS` under the name of its class; use it as a decorator.

    Raises:
        DuetError: if another kind has this name.
    """
    if kind.__name__ in BLOCKS:
        raise DuetError(f"block {kind.__name__}: a kind of this name is registered already; choose another name")
    BLOCKS[kind.__name__] = kind
    return kind


def kind_of(block: object) -> str:
    """Return the name of a block's kind.

    Raises:
        DuetError: if its class is not registered.
    """
    name = type(block).__name__
    if BLOCKS.get(name) is not type(block):
        raise DuetError(
            f"block {name}: this kind is not registered; put @register in front of its class, as "
            "diffusion_core/networks/blocks does"
        )
    return name


class BlockRules(dict[str, Rule]):
    """A table with one rule per block kind, filled by a decorator: ``@rules(Conv)``.

    Args:
        what: what the table holds, as in "reference function"; errors name it.
        file: where such a rule is written; errors name it.

    Example:
        >>> from diffusion_core.networks.blocks import Conv, SiLU
        >>> symbols = BlockRules("symbol", "this example")
        >>> @symbols(SiLU)
        ... def silu(block):
        ...     return "x sigmoid(x)"
        >>> symbols["SiLU"](SiLU())
        'x sigmoid(x)'
        >>> symbols["Conv"]
        Traceback (most recent call last):
            ...
        diffusion_core.common.errors.DuetError: block Conv: it has no symbol; add one to this example
    """

    def __init__(self, what: str, file: str) -> None:
        super().__init__()
        self.what, self.file = what, file

    def __call__(self, kind: type[Block]) -> Callable[[Rule], Rule]:
        """Return a decorator that enters a rule for this kind."""

        def enter(rule: Rule) -> Rule:
            self.add(kind.__name__, rule)
            return rule

        return enter

    def add(self, kind: str, rule: Rule) -> None:
        """Enter a rule under the name of a registered kind.

        Raises:
            DuetError: if there is no such kind, or it has a rule already.
        """
        if kind not in BLOCKS:
            raise DuetError(f"{self.file}: a {self.what} is given for {kind}, which is no registered block kind")
        if kind in self:
            raise DuetError(f"{self.file}: block {kind} has two entries as {self.what}; remove one")
        self[kind] = rule

    def __missing__(self, kind: str) -> Rule:
        raise DuetError(f"block {kind}: it has no {self.what}; add one to {self.file}")
