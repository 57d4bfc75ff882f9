r"""The call of an own network: the order and the keywords of its inputs, and the layout of its samples.

The backends compute with images ``b h w c``. One sample of an own network may have one to four axes; with its channels
last they become

    (D,) -> (1, 1, D)      (L, C) -> (1, L, C)      (H, W, C) -> (H, W, C)      (D, H, W, C) -> (D, H W, C)

which changes no number: noise, losses and sampler steps act on each element, and random numbers follow this order. So
networks with channels first and with channels last get the same noise, bit for bit.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError

__all__ = [
    "CLASS_COUNTS",
    "LABEL_NAMES",
    "LAYOUTS",
    "TIMES",
    "Arguments",
    "CallNames",
    "call_names",
    "class_rows",
    "images_to_samples",
    "infer_inputs",
    "samples_to_images",
    "time_position",
    "to_image_shape",
]

LAYOUTS = ("channels_first", "channels_last")
# t as floats (B,), as whole numbers (B,), or as floats (B, 1).
TIMES = ("float", "int", "column")
# What an own network can be given, besides its conditions.
VALUES = ("x", "t", "label", "one_hot")
# Names of parameters of other people's networks that take the class.
LABEL_NAMES = ("label", "labels", "class_labels", "class_label", "y", "classes", "cls", "c")
# Names that take t, so that a network called as (t, x) is known by them.
TIME_NAMES = (
    "t", "ts", "time", "times", "timestep", "timesteps", "sigma", "sigmas", "noise_level", "noise_levels", "log_snr",
    "logsnr",
)  # fmt: skip
# Names of parameters that take neither x, t nor the class.
OTHER_NAMES = (
    "self_cond", "x_self_cond", "x_cond", "mask", "attention_mask", "context", "encoder_hidden_states", "text",
    "text_embeddings", "model_kwargs", "return_dict", "training", "train", "deterministic",
)  # fmt: skip
# Attributes of networks with their number of classes.
CLASS_COUNTS = ("null_label", "num_classes", "label_dim")

# (name, whether it must be given) of each parameter of a call; True after these for one that is given by keyword only.
CallNames = tuple[tuple[str, bool] | tuple[str, bool, bool], ...]


@dataclass(frozen=True)
class Arguments:
    """In which order and under which keywords a network is given its inputs.

    Args:
        positional: the values, each of `VALUES` or a condition.
        keywords: (keyword, value).
        packed: whether all values are one list, or one dict if they have keywords.

    Example:
        >>> Arguments.parse("x, t, class_labels=one_hot")
        Arguments(positional=('x', 't'), keywords=(('class_labels', 'one_hot'),), packed=False)
        >>> Arguments.parse("[x, t]").bind({"x": 1, "t": 2, "label": 3})
        (([1, 2],), {})
        >>> Arguments.parse("{image: x, time: t}").bind({"x": 1, "t": 2})
        (({'image': 1, 'time': 2},), {})
    """

    positional: tuple[str, ...]
    keywords: tuple[tuple[str, str], ...] = ()
    packed: bool = False

    @staticmethod
    def parse(text: str, conditions: Sequence[str] = ()) -> Arguments:
        """Read the arguments of a call, as in ``"x, t, class_labels=label"``; ``"[x, t]"`` is one list, and
        ``"{image: x, time: t}"`` one dict.

        Raises:
            DuetError: for a value that does not exist or is given twice, or a call without x.
        """
        known = (*VALUES, *conditions)
        wrong = DuetError(
            f"inputs: {text!r} was given; it must be the arguments of a call of the network, made of "
            f"{', '.join(known)}, for example 'x, t' or 'x, t, class_labels=label'"
        )
        if not isinstance(text, str):
            raise wrong
        inner = re.fullmatch(r"\s*(\[.*\]|\{.*\})\s*", text)
        packed, is_dict = inner is not None, inner is not None and inner[1][0] == "{"
        text = inner[1][1:-1] if inner else text
        positional, keywords = [], []
        for part in text.split(","):
            keyword, _, value = (piece.strip() for piece in part.rpartition(":" if is_dict else "="))
            is_word = keyword.isidentifier() or (is_dict and keyword)
            if value not in known or (keyword and not is_word) or (packed and bool(keyword) != is_dict):
                raise wrong
            if keyword:
                keywords.append((keyword, value))
            elif keywords:
                raise wrong
            else:
                positional.append(value)
        values = [*positional, *(value for _, value in keywords)]
        if "x" not in values or len(set(values)) < len(values):
            raise wrong
        return Arguments(tuple(positional), tuple(keywords), packed)

    def __str__(self) -> str:
        if self.packed and self.keywords:
            return "{" + ", ".join(f"{keyword}: {value}" for keyword, value in self.keywords) + "}"
        words = ", ".join([*self.positional, *(f"{keyword}={value}" for keyword, value in self.keywords)])
        return f"[{words}]" if self.packed else words

    @property
    def values(self) -> tuple[str, ...]:
        """The values that the network takes."""
        return (*self.positional, *(value for _, value in self.keywords))

    def bind(self, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and the keyword arguments of a call."""
        positional = tuple(values[name] for name in self.positional)
        keywords = {keyword: values[name] for keyword, name in self.keywords}
        if self.packed:
            return (keywords or [*positional],), {}
        return positional, keywords


def call_names(function: Callable[..., Any]) -> CallNames | None:
    """Return (name, whether it must be given) of each parameter of a function; None if they are unknown.

    Example:
        >>> call_names(lambda x, t, label=None: x), call_names(lambda *inputs: inputs)
        ((('x', True), ('t', True), ('label', False)), None)
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return tuple(
        (p.name, p.default is p.empty, *([True] if p.kind is p.KEYWORD_ONLY else []))
        for p in parameters
        if p.kind is not p.VAR_KEYWORD
    )


def time_position(names: Sequence[str]) -> int:
    """Return which parameter of a call takes t, by their names: the second, or the first if its name alone says so.

    Example:
        >>> time_position(["x", "t"]), time_position(["sigma", "x", "y"]), time_position(["t", "time"])
        (1, 0, 1)
    """
    return 0 if names[0] in TIME_NAMES and names[1] not in TIME_NAMES else 1


def infer_inputs(names: CallNames | None, with_label: bool | None) -> str:
    """Return the arguments of a network from the parameters of a call.

    The first is x and the second t, unless their names say the reverse. A class goes to a parameter whose name says so,
    or to the third, unless its name says that it takes something else.

    Args:
        names: (name, whether it must be given) of each parameter, see `call_names`; None if they are unknown.
        with_label: whether the network is given a class; None if only where it must be.

    Raises:
        DuetError: if there are too few parameters or too many that must be given, or none for the class.

    Example:
        >>> names = [("sample", True), ("timestep", True), ("class_labels", False), ("return_dict", False)]
        >>> infer_inputs(names, with_label=True)
        'x, t, label'
        >>> infer_inputs(names, with_label=None)
        'x, t'
        >>> infer_inputs([("x", True), ("sigma", True), ("context", False), ("y", True)], with_label=None)
        'x, t, y=label'
        >>> infer_inputs(call_names(lambda x, *, noise: x), with_label=None)
        'x, noise=t'
        >>> infer_inputs(call_names(lambda t, x: x), with_label=None)
        't, x'
    """
    advice = "name its arguments, as in duet.adapt(network, inputs='x, t, class_labels=label')"
    if names is None:
        return "x, t, label" if with_label else "x, t"
    by_keyword = {name for name, _, *only in names if any(only)}
    names = [(name, needed) for name, needed, *_ in names]
    shown = ", ".join(name for name, _ in names)
    if len(names) < 2:
        raise DuetError(f"network: it takes ({shown}); Duet gives it x and t; {advice}")
    required = [name for name, needed in names[2:] if needed]
    named = [name for name, _ in names[2:] if name in LABEL_NAMES]
    third = names[2][0] if len(names) == 3 and names[2][0] not in OTHER_NAMES else None
    label = named[0] if len(named) == 1 else third
    if with_label is None:
        with_label = label is not None and required == [label]
    if with_label and label is None:
        raise DuetError(
            f"labels: classes were given, but which of the network's arguments takes them is not clear from "
            f"({shown}); {advice}"
        )
    if set(required) - ({label} if with_label else set()):
        raise DuetError(f"network: it takes ({shown}), and what {required[0]} is given is not clear; {advice}")
    order = ("tx", "xt")[time_position([name for name, _ in names])]
    first = [f"{name}={value}" if name in by_keyword else value for (name, _), value in zip(names, order, strict=False)]
    if names[0][0] in by_keyword:
        first[1] = f"{names[1][0]}={order[1]}"
    if not with_label:
        return ", ".join(first)
    # By position where it is the third: a name that a framework makes up, as Keras does, differs in every process.
    is_third = label == names[2][0] and label not in by_keyword
    return ", ".join([*first, "label" if is_third else f"{label}=label"])


def class_rows(network: Any, embeddings: Sequence[int]) -> int | None:
    """Return how many labels a network knows, "no class" among them; None if that cannot be seen.

    Its attribute ``null_label``, ``num_classes`` or ``label_dim`` says so, or the number of rows of its only embedding.

    Args:
        network: the object.
        embeddings: the number of rows of each of its embeddings.
    """
    for attribute in CLASS_COUNTS:
        value = getattr(network, attribute, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value + 1
    return embeddings[0] if len(embeddings) == 1 else None


def to_image_shape(shape: Sequence[int], layout: str) -> tuple[int, int, int]:
    """Return (h, w, c) of one sample with its own shape.

    Raises:
        DuetError: for no axis, more than four, or one that is empty.

    Example:
        >>> to_image_shape((3, 32, 48), "channels_first"), to_image_shape((100, 2), "channels_last")
        ((32, 48, 3), (1, 100, 2))
    """
    shape = tuple(shape)
    if not 1 <= len(shape) <= 4 or min(shape) < 1:
        raise DuetError(f"shape: one sample has the shape {shape}; it must have one to four axes of at least 1")
    last = (*shape[1:], shape[0]) if layout == "channels_first" else shape
    if len(last) < 3:
        return (1,) * (3 - len(last)) + last
    height, *rest, channels = last
    return height, int(np.prod(rest)), channels


def samples_to_images(samples: NDArray, layout: str) -> NDArray:
    """Return samples in their own layout as images b h w c.

    Example:
        >>> samples_to_images(np.zeros((2, 3, 32, 48)), "channels_first").shape
        (2, 32, 48, 3)
    """
    shape = to_image_shape(samples.shape[1:], layout)
    last = np.moveaxis(samples, 1, -1) if layout == "channels_first" else samples
    return np.ascontiguousarray(last).reshape(len(samples), *shape)


def images_to_samples(images: NDArray, shape: Sequence[int], layout: str) -> NDArray:
    """Return images b h w c as samples of this shape in their own layout; the inverse of `samples_to_images`."""
    first = layout == "channels_first"
    samples = images.reshape(len(images), *((*shape[1:], shape[0]) if first else shape))
    return np.ascontiguousarray(np.moveaxis(samples, -1, 1) if first else samples)
