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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError

__all__ = [
    "CLASS_COUNTS",
    "LABEL_NAMES",
    "LAYOUTS",
    "SECOND_TIMES",
    "TIMES",
    "Arguments",
    "CallNames",
    "call_names",
    "class_rows",
    "images_to_samples",
    "infer_inputs",
    "samples_to_images",
    "second_time_position",
    "time_position",
    "to_image_shape",
]

LAYOUTS = ("channels_first", "channels_last")
# t as floats (B,), as whole numbers (B,), or as floats (B, 1).
TIMES = ("float", "int", "column")
# What an own network can be given, besides its conditions: `second_time` is the length t - r of MeanFlow, or the
# exponent of a shortcut's number of steps; `end_time` is t - second_time, the r of MeanFlow.
VALUES = ("x", "t", "second_time", "end_time", "label", "one_hot")
SECOND_TIMES = ("second_time", "end_time")
# Names of parameters of other people's networks that take the class.
LABEL_NAMES = ("label", "labels", "class_labels", "class_label", "y", "classes", "cls", "c")
# Names that take t, so that a network called as (t, x) is known by them.
TIME_NAMES = (
    "t", "ts", "time", "times", "timestep", "timesteps", "sigma", "sigmas", "noise_level", "noise_levels", "log_snr",
    "logsnr",
)  # fmt: skip
# Names that take a second time, beside one that takes t: its distance from t, or the time itself.
SECOND_TIME_NAMES = {
    **dict.fromkeys(("second_time", "h", "dt", "delta_t", "duration", "step_size", "dt_base"), "second_time"),
    **dict.fromkeys(("end_time", "r", "t_end", "t_next", "next_t"), "end_time"),
}
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

    def with_value(self, old: str, new: str) -> Arguments:
        """Return the same call with one value in place of another."""
        positional = tuple(new if value == old else value for value in self.positional)
        return replace(
            self, positional=positional, keywords=tuple((k, new if v == old else v) for k, v in self.keywords)
        )

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

    Names of a second time do not count where three parameters or more are left to choose from.

    Example:
        >>> time_position(["x", "t"]), time_position(["sigma", "x", "y"]), time_position(["t", "time"])
        (1, 0, 1)
        >>> time_position(["z", "r", "t"]), time_position(["x", "h"])
        (2, 1)
    """
    second = second_time_position(names)
    first, other = [i for i in range(len(names)) if i != second][:2]
    return first if names[first] in TIME_NAMES and names[other] not in TIME_NAMES else other


def second_time_position(names: Sequence[str]) -> int | None:
    """Return which parameter of a call takes a second time, by their names; None if none or more than one does.

    Example:
        >>> second_time_position(["x", "t", "h"]), second_time_position(["z", "r", "t", "y"])
        (2, 1)
        >>> second_time_position(["x", "h"]), second_time_position(["x", "h", "y"])
        (None, None)
    """
    found = [i for i, name in enumerate(names) if name in SECOND_TIME_NAMES]
    others = [name for name in names if name not in SECOND_TIME_NAMES]
    has_first = len(others) >= 2 and not {*others[:2]} & {*LABEL_NAMES, *OTHER_NAMES}
    return found[0] if len(found) == 1 and has_first else None


def infer_inputs(names: CallNames | None, with_label: bool | None, two_times: bool = False) -> str:
    """Return the arguments of a network from the parameters of a call.

    The first is x and the second t, unless their names say the reverse. A second time goes to a parameter whose name
    says so, such as ``h``, or ``r`` for the time t - h itself. A class goes to a parameter whose name says so, or to
    the third, unless its name says that it takes something else.

    Args:
        names: (name, whether it must be given) of each parameter, see `call_names`; None if they are unknown.
        with_label: whether the network is given a class; None if only where it must be.
        two_times: whether a parameter for a second time is given it even if that is optional.

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
        >>> infer_inputs(call_names(lambda x, t, h, y=None: x), with_label=True)
        'x, t, second_time, label'
        >>> infer_inputs(call_names(lambda z, r, t: z), with_label=None)
        'x, end_time, t'
    """
    advice = "name its arguments, as in duet.adapt(network, inputs='x, t, class_labels=label')"
    if names is None:
        return ", ".join(["x, t", *(["second_time"] if two_times else []), *(["label"] if with_label else [])])
    by_keyword = {name for name, _, *only in names if any(only)}
    needed = {name for name, must, *_ in names if must}
    every = [name for name, *_ in names]
    shown = ", ".join(every)
    if len(every) < 2:
        raise DuetError(f"network: it takes ({shown}); Duet gives it x and t; {advice}")
    position = second_time_position(every)
    second = None if position is None else every[position]
    t = every[time_position(every)]
    first, *rest = [name for name in every if name not in (t, second)]
    values = {first: "x", t: "t"}
    if second is not None and (two_times or second in needed):
        values[second] = SECOND_TIME_NAMES[second]
    named = [name for name in rest if name in LABEL_NAMES]
    third = rest[0] if len(rest) == 1 and rest[0] not in OTHER_NAMES else None
    label = named[0] if len(named) == 1 else third
    required = [name for name in every if name in needed and name not in values]
    if with_label is None:
        with_label = label is not None and required == [label]
    if with_label and label is None:
        raise DuetError(
            f"labels: classes were given, but which of the network's arguments takes them is not clear from "
            f"({shown}); {advice}"
        )
    if set(required) - ({label} if with_label else set()):
        raise DuetError(f"network: it takes ({shown}), and what {required[0]} is given is not clear; {advice}")
    if with_label:
        values[label] = "label"
    # By position until one is left out: a name that a framework makes up, as Keras does, differs in every process.
    words, is_positional = [], True
    for name in every:
        is_positional = is_positional and name in values and name not in by_keyword
        if name in values:
            words.append(values[name] if is_positional else f"{name}={values[name]}")
    return ", ".join(words)


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
