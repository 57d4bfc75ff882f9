"""The program: a network as data, the same for every backend.

A program is a list of named blocks in the order of computation. Each reads earlier values by name and
gives one value under its own. The inputs are ``x`` (b h w c), ``c_noise`` (b,), ``label`` (b,) and, for a
network that has them, ``features`` (b f): numbers per image beside its class, such as an augmentation label. A
self-conditioned network (Chen et al., 2022) has ``estimate`` too, of the shape of x: an earlier estimate of x_0, or
zeros where there is none.
Parameter names are ``<block>.<parameter>``, which is what a PyTorch `state_dict` prints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.networks.blocks import KINDS, Block, Parameter

__all__ = ["INPUTS", "Node", "Program", "Training"]

INPUTS = ("x", "c_noise", "label", "features", "estimate")


@dataclass
class Training:
    """What the blocks that act otherwise in training are given; evaluation gives them None.

    Args:
        key: the two words of the dropout stream.
        positions: each image's position in the run, its counter in that stream, with shape (B,).
        statistics: new running statistics by full name, filled by the blocks.
        values: the value of each block by its name, filled where somebody looks at them; None keeps none.
    """

    key: Any
    positions: Any
    statistics: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] | None = None


@dataclass(frozen=True)
class Node:
    """A block with its name and the names of the values that it reads."""

    name: str
    block: Block
    inputs: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The name of the block's kind."""
        return type(self.block).__name__


@dataclass(frozen=True)
class Program:
    """A network.

    Args:
        nodes: the blocks in order; the last one gives the output.
        null_label: the label that means "no class"; None for a network without classes.
        classes: how many classes there are; 0 without.
        features: how many numbers per image it takes beside the class.
        uncertainty: whether the output's last channel is the log-variance of the loss, see `with_uncertainty`.

    Raises:
        DuetError: if a name is used twice or a value is read before it exists.
    """

    nodes: tuple[Node, ...]
    null_label: int | None = None
    classes: int = 0
    features: int = 0
    uncertainty: bool = False

    def __post_init__(self) -> None:
        known = set(INPUTS)
        for node in self.nodes:
            if node.kind not in KINDS:
                raise DuetError(f"program: {node.name} is of the unknown kind {node.kind}")
            if node.name in known:
                raise DuetError(f"program: the name {node.name} is used twice")
            if missing := [name for name in node.inputs if name not in known]:
                raise DuetError(f"program: {node.name} reads {missing[0]}, which no earlier block gives")
            known.add(node.name)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The manifest: every parameter under its full name, in order."""
        return tuple(
            replace(parameter, name=f"{node.name}.{parameter.name}")
            for node in self.nodes
            for parameter in node.block.parameters()
        )

    @cached_property
    def trained(self) -> tuple[Parameter, ...]:
        """The parameters that the optimiser moves, in order."""
        return tuple(p for p in self.parameters if p.trained)

    @property
    def has_batch_statistics(self) -> bool:
        """Whether in training what an image is made into depends on the others that are computed with it."""
        return any(node.kind == "BatchNorm" for node in self.nodes)

    @property
    def self_conditioned(self) -> bool:
        """Whether a block reads the estimate."""
        return any("estimate" in node.inputs for node in self.nodes)

    @property
    def labels(self) -> range:
        """The labels of the real classes: 0 .. K-1, or 1 .. K where 0 means "no class"."""
        first = int(self.null_label == 0 and self.classes > 0)
        return range(first, first + self.classes)

    @cached_property
    def last_use(self) -> tuple[tuple[str, ...], ...]:
        """For each node, the values that nobody reads after it, so that an executor can let them go."""
        last = {name: i for i, node in enumerate(self.nodes) for name in node.inputs}
        return tuple(tuple(name for name, at in last.items() if at == i) for i in range(len(self.nodes)))

    def run(
        self, modules: Mapping[str, Callable[..., Any]], inputs: Mapping[str, Any], training: Training | None = None
    ) -> Any:
        """Compute the output with one callable per node; this loop is all that an executor needs.

        Args:
            modules: by node name; those of kinds marked `in_training` take `training` too.
            inputs: the values of `INPUTS`.
            training: None in evaluation.
        """
        values = dict(inputs)
        for node, done in zip(self.nodes, self.last_use, strict=True):
            given = {"training": training} if node.block.in_training else {}
            values[node.name] = modules[node.name](*[values[name] for name in node.inputs], **given)
            if training is not None and training.values is not None:
                training.values[node.name] = values[node.name]
            for name in done:
                del values[name]
        return values[self.nodes[-1].name]

    def describe(self) -> list[dict[str, Any]]:
        """The program as plain data, to print or to hash."""
        return [
            {"name": node.name, "kind": node.kind, "inputs": list(node.inputs), "options": asdict(node.block)}
            for node in self.nodes
        ]

    @cached_property
    def sha256(self) -> str:
        """The hash of the program; two programs with the same hash compute the same function of their weights."""
        text = json.dumps([self.describe(), self.null_label, self.classes, self.features], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
