"""What a sampler declares about itself, in one place: next to its formula.

    @sampler(
        Method("DDIM", order=1),
        Method("DDIM, eta 0.5", order=1, options={"eta": 0.5}, stochastic=True),
        paper="Song et al. 2020",
        url="https://arxiv.org/abs/2010.02502",
        equation="eqs. 12 and 16",
    )
    def ddim(process, steps=50, eta=0.0, ...): ...

The function's name is the sampler's name in a configuration, and its signature holds the options. The package collects
all declarations: the tables of docs/methods.md, the gallery, the parity cases and the tests of convergence orders read
them, so a new sampler is one file in this folder and one file in configs/sampler.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from diffusion_core.common.errors import DuetError
from diffusion_core.sampling.families import FAMILIES, NETWORK, OWN_TIMES, Family

__all__ = ["DECLARATIONS", "Declaration", "Method", "families_table", "methods_table", "sampler", "samplers_table"]

F = TypeVar("F", bound=Callable[..., Any])
# Options of nearly every sampler, explained once in the text above the table.
_COMMON = ("process", "steps", "spacing", "clip")


@dataclass(frozen=True)
class Method:
    """A sampler with the options that make it one published method; the steps and their spacing are left to choose.

    Args:
        name: the name that papers print.
        order: the order of convergence to the probability-flow ODE. For a stochastic method: that of the mean and the
            variance of its samples.
        options: of the sampler.
        stochastic: whether it adds fresh noise.
        evaluations: network evaluations per step. With two, the last step has only declaration.
        warm_up: additional evaluations at the start.
        needs_signal: whether the first noise level must contain signal (alpha > 0).
        sampler: the name of the sampler; the decorator `sampler` fills it in.
    """

    name: str
    order: int
    options: Mapping[str, object] = field(default_factory=dict)
    stochastic: bool = False
    evaluations: int = 1
    warm_up: int = 0
    needs_signal: bool = False
    sampler: str = ""


@dataclass(frozen=True)
class Declaration:
    """A sampler and what it declares; see `sampler` for the fields."""

    make: Callable[..., Any]
    methods: tuple[Method, ...]
    family: Family | None
    paper: str
    url: str | None
    equation: str
    evaluations: str
    requires: str
    notes: str

    @property
    def name(self) -> str:
        """The name of the sampler in a configuration."""
        return self.make.__name__

    @property
    def options(self) -> list[str]:
        """The names of the sampler's own options."""
        return [name for name in inspect.signature(self.make).parameters if name not in _COMMON]


DECLARATIONS: dict[str, Declaration] = {}


def sampler(
    *methods: Method,
    paper: str,
    family: Family | None = None,
    url: str | None = None,
    equation: str = "",
    evaluations: str | None = None,
    requires: str | None = None,
    notes: str = "",
) -> Callable[[F], F]:
    """Declare a function that makes plans as a sampler.

    Args:
        methods: the published methods that it covers. Their orders, noise and numbers of evaluations are tested, and
            the gallery and the parity checks run all of them. A sampler of another kind (inversion, inpainting) has
            none.
        paper: authors and year of the source.
        family: whose defaults of spacing and clip its signature has; None for defaults of its own.
        url: where to read it.
        equation: the equations, algorithm or section that the code follows.
        evaluations: network evaluations in N steps; by default taken from the first method.
        requires: what the process must have; by default taken from the methods.
        notes: what else a reader of the documentation should know, in Markdown.

    Raises:
        DuetError: for a name that is taken.
    """

    def declare(make: F) -> F:
        name = make.__name__
        taken = {method.name for other in DECLARATIONS.values() for method in other.methods}
        if name in DECLARATIONS or taken & {method.name for method in methods}:
            raise DuetError(f"sampler {name}: it, or one of its methods, is declared twice; choose another name")
        needs = [method.needs_signal for method in methods]
        DECLARATIONS[name] = Declaration(
            make,
            tuple(replace(method, sampler=name) for method in methods),
            family,
            paper,
            url,
            equation,
            evaluations or _evaluations(methods[0] if methods else None),
            requires or ("signal" if needs and all(needs) else ""),
            notes,
        )
        return make

    return declare


def _evaluations(method: Method | None) -> str:
    """Return the number of network evaluations in N steps, as text."""
    if method is None:
        return "N"
    if method.evaluations == 2:
        return "2N - 1"
    return f"N + {method.warm_up}" if method.warm_up else "N"


def samplers_table() -> str:
    """Return the table of all samplers in Markdown, one row per sampler."""
    lines = ["| sampler | own options | source | evaluations | requires | notes |", "| --- " * 6 + "|"]
    for declaration in DECLARATIONS.values():
        source = f"[{declaration.paper}]({declaration.url})" if declaration.url else declaration.paper
        options = ", ".join(f"`{option}`" for option in declaration.options)
        source = f"{source}, {declaration.equation}" if declaration.equation else source
        lines.append(
            _row(
                f"`{declaration.name}`",
                options,
                source,
                declaration.evaluations,
                declaration.requires,
                declaration.notes,
            )
        )
    return "\n".join(lines)


def methods_table() -> str:
    """Return the table of all published methods in Markdown, one row per method."""
    lines = ["| method | configuration | order | fresh noise |", "| --- " * 4 + "|"]
    for declaration in DECLARATIONS.values():
        for method in declaration.methods:
            options = [f"sampler.{key}={_value(value)}" for key, value in method.options.items()]
            command = " ".join([f"sampler={declaration.name}", *options])
            lines.append(_row(method.name, f"`{command}`", str(method.order), "yes" if method.stochastic else "no"))
    return "\n".join(lines)


def families_table(configurations: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of the defaults of each family in Markdown.

    Args:
        configurations: the content of every file in configs/sampler, by name; what deviates is listed.
    """
    lines = ["| family | samplers | spacing | clip | after | configurations with other values |", "| --- " * 6 + "|"]
    for family in FAMILIES:
        members = [one.name for one in DECLARATIONS.values() if one.family is family]
        other = []
        for name, options in configurations.items():
            if options["name"] in members:
                # None is leading in a table, and linspace in continuous time.
                expected = {"spacing": family.spacing or "leading", "clip": family.clip}
                values = {key: options[key] for key in expected if key in options and options[key] != expected[key]}
                other += (
                    [f"`{name}`: " + ", ".join(f"{key} {_value(v)}" for key, v in values.items())] if values else []
                )
        spacing = f"`{family.spacing}`" if family.spacing else "`leading`; in continuous time `linspace`"
        spacing = {NETWORK: "every timestep", OWN_TIMES: "equal steps"}.get(family, spacing)
        lines.append(
            _row(
                family.title,
                ", ".join(f"`{name}`" for name in members),
                spacing,
                _value(family.clip),
                family.source,
                "; ".join(other),
            )
        )
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _value(value: object) -> str:
    """Return a value as the command line takes it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_value(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_value, value)) + "]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
