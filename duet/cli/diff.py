"""`duet diff`: where two implementations of a model first differ, and why.

Each side runs in the environment of its framework, which `sides` finds; the comparison needs neither and runs in any.
"""

from __future__ import annotations

import argparse
import ast
import json
import shlex
from typing import Any, NoReturn

from duet.cli.backends import backends
from duet.cli.environments import any_environment
from duet.cli.experiments import command_variables, replace_process
from duet.cli.sides import find_interpreter
from duet.cli.terminal import Stop, one_of

__all__ = ["MODES", "diff_command", "make_parser"]

MODES = ("forward", "gradient", "train", "all")


DESCRIPTION = """\
Runs both models on the same inputs, each in its own environment, and compares them operation by operation: the first
operation whose own arithmetic differs, its line in both files, and the cause. Models of another form (other names,
fused or reordered operations, another layout) are equal if their numbers are.

A side, A or B, is one of
    FILE.py:FUNCTION      a function that returns a model: an nn.Module, a Keras model, a tf.Module, or any function
    package.module:NAME   the same, from the working directory or an installed package
    FILE.onnx, FILE.keras, a SavedModel, a run of Duet

The function is called with those of dtype="float64" or "float32" and seed that it has as arguments, and with
--a-options or --b-options. The same file may have

    def inputs(seed): ...          an array, a tuple, or a dict by argument name; one side is enough
    def training(model): ...       for --steps: returns step(*inputs), which trains for one step and returns the loss
    def optimizer(model): ...      for --steps, instead: returns the optimiser
    def loss(outputs, *inputs): ...    with it; the default is a fixed function of the outputs"""

EPILOG = """\
examples:
    duet diff torch_model.py:build keras_model.py:build
    duet diff a.py:build b.py:build --inputs inputs.npz --mode train --steps 20 --out report
    duet diff model.py:build model.py:build --b-options variant=fused

exit code: 0 if the models are equal to rounding, 1 if not, 2 if they could not be compared.
docs/diff.md describes what is found, the report, and what cannot be found."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Stop with what is wrong and where the help is."""
        raise Stop(f"diff: {message}; `duet diff --help` lists the options")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = Parser(
        prog="duet diff",
        usage="duet diff A B [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("a", metavar="A", help="the first side, which the second is compared with")
    add("b", metavar="B", help="the second side")
    add("--inputs", metavar="FILE", help="arrays of an .npz file, in A's layout: arr_0, arr_1 ... in order, or by name")
    add("--seed", type=int, default=0, metavar="N", help="of inputs(seed) and of random weights (default 0)")
    add(
        "--mode",
        default="all",
        metavar="MODE",
        help="forward; gradient: and gradients; train: forward, and in training mode; all (default)",
    )
    add("--steps", type=int, default=0, metavar="N", help="compare N training steps too")
    add(
        "--weights",
        default="map",
        metavar="HOW",
        help="map: find which weights belong together (default); FILE.json: {name in A: name in B}, which wins; "
        "copy: write A's into B first",
    )
    add("--copy-weights", default="", metavar="WAY", help="a-to-b or b-to-a: write one side's weights into the other")
    add("--precision", default="float64", metavar="TYPE", help="float64 where both can (default), or float32 alone")
    for side in "ab":
        add(
            f"--{side}-options",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help=f"arguments of {side.upper()}'s function",
        )
        add(
            f"--{side}-python",
            metavar="PYTHON",
            help=f"what runs {side.upper()}: a path, or one of {', '.join(backends())} (default: by its imports)",
        )
    add("--accept", metavar="FILE", help="differences that you know and accept: a JSON list of kind, a, b, reason")
    add("--out", metavar="DIR", help="where report.html and report.json go (default: outputs/diff/TIME)")
    add("--json", action="store_true", help="print report.json instead of the summary")
    return parser


def diff_command(args: list[str]) -> int:
    """Find where two implementations of a model first differ, and why.

    usage: duet diff A B [options]
    """
    given = vars(make_parser().parse_args(one_by_one(args)))
    for key, allowed in (("mode", MODES), ("precision", ("float64", "float32"))):
        one_of(f"--{key}", given[key], allowed)
    if given["copy_weights"]:
        one_of("--copy-weights", given["copy_weights"], ("a-to-b", "b-to-a"))
    if given["steps"] < 0:
        raise Stop(f"--steps: {given['steps']} was given; it must be 0 or more")
    request: dict[str, Any] = {key: given[key] for key in given if not key.startswith(("a_", "b_"))}
    for side in "ab":
        options = read_options(f"--{side}-options", given[f"{side}_options"])
        chosen = find_interpreter(side.upper(), given[side], given[f"{side}_python"])
        request[side] = {
            "reference": given[side],
            "python": chosen.python,
            "backend": chosen.backend,
            "options": options,
        }
    request["command"] = " ".join(["python3 -m duet diff", *map(shlex.quote, args)])
    command = [any_environment(), "-m", "experiments.diff", json.dumps(request)]
    return replace_process(command, command_variables())


def one_by_one(args: list[str]) -> list[str]:
    """Return arguments in which each KEY=VALUE after --a-options or --b-options has this option before it.

    So a side may follow the options of the other one.
    """
    result, option = [], ""
    for i, word in enumerate(args):
        following = args[i + 1] if i + 1 < len(args) else ""
        if word in ("--a-options", "--b-options"):
            option = word
            result += [] if is_option(following) else [word]
        elif option and is_option(word):
            result.append(f"{option}={word}")
        else:
            option = ""
            result.append(word)
    return result


def is_option(word: str) -> bool:
    """Return whether a word is KEY=VALUE."""
    key, equals, _ = word.partition("=")
    return bool(equals) and key.isidentifier()


def read_options(option: str, words: list[str]) -> dict[str, Any]:
    """Return the values of KEY=VALUE: a number, a list ... where Python reads it as one, else a text."""
    options = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.isidentifier():
            raise Stop(f"{option}: {word!r} was given; it must be KEY=VALUE, as in {option} variant=small")
        options[key] = read_value(text)
    return options


def read_value(text: str) -> Any:
    """Return the value that a text stands for."""
    if text in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[text]
    try:
        value = ast.literal_eval(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value
