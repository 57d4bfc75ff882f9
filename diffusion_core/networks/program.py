"""The program: a network as data, the same for every backend.

A program is a list of named blocks in the order of computation. Each block reads earlier values by name and produces
one value under its own name. The inputs are

    x         (b h w c)  the noisy images, multiplied by c_in
    c_noise   (b,)       the noise level, as the process encodes it
    label     (b,)       the classes
    features  (b f)      numbers per image in addition to the class, such as an augmentation label
    estimate  (b h w c)  an earlier estimate of x_0, or zeros; read by self-conditioned networks (Chen et al., 2022)
    second_time  (b,)    a second time, or the program's default; read by networks of two times, as MeanFlow's

Parameter names are ``<block>.<parameter>``, the names of a PyTorch `state_dict`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import pluralize
from diffusion_core.networks import blocks as _blocks  # noqa: F401  registers the block kinds
from diffusion_core.networks.initialisation import initialised_parameters
from diffusion_core.networks.registry import Block, Parameter, Shape, kind_of

__all__ = ["INPUTS", "Node", "Program", "Training", "input_shapes"]

INPUTS = ("x", "c_noise", "label", "features", "estimate", "second_time")


def input_shapes(image: Shape, features: int = 0) -> dict[str, Shape]:
    """Return the shape of each input without the batch, for images of shape (h, w, c)."""
    return {"x": image, "c_noise": (), "label": (), "features": (features,), "estimate": image, "second_time": ()}


@dataclass
class Training:
    """What blocks with a training mode read and write in a training pass; in evaluation they get None instead.

    Args:
        key: the two words of the dropout stream.
        positions: each image's position in the run, its counter in that stream, with shape (B,).
        statistics: new running statistics by full name, filled by the blocks.
        values: if given, it is filled with the value of each block by name.
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


@dataclass(frozen=True, repr=False)
class Program:
    """A network as a list of blocks.

    Args:
        nodes: the blocks in order; the value of the last one is the output.
        null_label: the label that means "no class"; None for a network without classes.
        classes: number of classes; 0 for a network without classes.
        features: length of the feature vector that each image has in addition to its class.
        uncertainty: whether the output's last channel is the log-variance of the loss, see `with_uncertainty`.
        init: where its weights start, see `initialisation`; it does not change what the program computes.
        default_second_time: what a network of two times reads where no second time is given, so that its output is the
            prediction of its process, see `diffusion.second_time`; not a part of the hash, as it is an input.

    Raises:
        DuetError: if a block kind is not registered, a name is used twice, or a value is read before it exists.

    Example:
        >>> from diffusion_core.networks.blocks import Conv, SiLU
        >>> conv = Conv(inputs=3, outputs=3, kernel=3, stride=1, padding=(1, 1, 1, 1), bias=True, scale=1.0)
        >>> program = Program((Node("conv", conv, ("x",)), Node("act", SiLU(), ("conv",))))
        >>> program
        Program(2 blocks, 84 parameters)
        >>> [(p.name, p.shape) for p in program.parameters]
        [('conv.weight', (3, 3, 3, 3)), ('conv.bias', (3,))]
    """

    nodes: tuple[Node, ...]
    null_label: int | None = None
    classes: int = 0
    features: int = 0
    uncertainty: bool = False
    init: str = "ddpm"
    default_second_time: float = 0.0

    def __post_init__(self) -> None:
        known = set(INPUTS)
        for node in self.nodes:
            try:
                kind_of(node.block)
            except DuetError as error:
                raise DuetError(f"program: node {node.name}: {error}") from error
            if node.name in known:
                raise DuetError(f"program: the name {node.name} is used twice")
            if missing := [name for name in node.inputs if name not in known]:
                raise DuetError(f"program: {node.name} reads {missing[0]}, which is no input and no earlier block")
            known.add(node.name)

    def __repr__(self) -> str:
        classes = f", classes={self.classes}" if self.classes else ""
        size = pluralize(sum(p.size for p in self.trained), "parameter")
        return f"Program({pluralize(len(self.nodes), 'block')}, {size}{classes})"

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The manifest: every parameter under its full name, in order."""
        return initialised_parameters([(node.name, node.block, node.inputs) for node in self.nodes], self.init)

    @cached_property
    def trained(self) -> tuple[Parameter, ...]:
        """The parameters that the optimiser updates, in order."""
        return tuple(p for p in self.parameters if p.trained)

    @cached_property
    def normalised(self) -> dict[str, float]:
        """The eps of forced weight normalisation by parameter name, see `optim/normalisation.py`; empty for most."""
        return {p.name: p.normalised for p in self.parameters if p.normalised is not None}

    @property
    def has_batch_statistics(self) -> bool:
        """Whether the output for an image depends, in training, on the other images of its batch."""
        return any(node.block.has_batch_statistics for node in self.nodes)

    @property
    def self_conditioned(self) -> bool:
        """Whether a block reads the estimate."""
        return any("estimate" in node.inputs for node in self.nodes)

    @property
    def two_times(self) -> bool:
        """Whether a block reads the second time."""
        return any("second_time" in node.inputs for node in self.nodes)

    @property
    def rounds_times(self) -> bool:
        """Whether a block takes times as whole numbers, by which nothing can be differentiated."""
        return any(node.block.rounds_times for node in self.nodes)

    @property
    def reads_end_time(self) -> bool:
        """Whether a block takes the second time as the end of a step rather than its length."""
        return any(node.block.reads_end_time for node in self.nodes)

    @property
    def labels(self) -> range:
        """The labels of the real classes: 0 .. K-1, or 1 .. K where 0 means "no class"."""
        first = int(self.null_label == 0 and self.classes > 0)
        return range(first, first + self.classes)

    @cached_property
    def last_use(self) -> tuple[tuple[str, ...], ...]:
        """For each node, the values that no later node reads, so that an executor can free them."""
        last = {name: i for i, node in enumerate(self.nodes) for name in node.inputs}
        return tuple(tuple(name for name, at in last.items() if at == i) for i in range(len(self.nodes)))

    def run(
        self, modules: Mapping[str, Callable[..., Any]], inputs: Mapping[str, Any], training: Training | None = None
    ) -> Any:
        """Compute the output with one callable per node; an executor needs no other loop.

        Args:
            modules: by node name; those of kinds with a training mode also take `training`.
            inputs: the values of `INPUTS`.
            training: None in evaluation.
        """
        values = dict(inputs)
        for node, unused in zip(self.nodes, self.last_use, strict=True):
            mode = {"training": training} if node.block.has_training_mode else {}
            values[node.name] = modules[node.name](*[values[name] for name in node.inputs], **mode)
            if training is not None and training.values is not None:
                training.values[node.name] = values[node.name]
            for name in unused:
                del values[name]
        return values[self.nodes[-1].name]

    def describe(self) -> list[dict[str, Any]]:
        """Return the program as plain data, to print or to hash."""
        return [
            {"name": node.name, "kind": node.kind, "inputs": list(node.inputs), "options": node.block.describe()}
            for node in self.nodes
        ]

    @cached_property
    def sha256(self) -> str:
        """The hash of the program; programs with the same hash compute the same function of their weights."""
        text = json.dumps([self.describe(), self.null_label, self.classes, self.features], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
