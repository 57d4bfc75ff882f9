"""The arguments of a command before Hydra reads them: flags first, text taken as it is, groups without a choice.

Hydra's grammar gives a meaning to numbers and to ``( ) [ ] { } = , # & '``, and refuses letters beyond ASCII. A path or
a title needs none of that: where the schema says that the value of a key is text, it is quoted here, unless it is
quoted already. Hydra still reads quotes, lists, ``null``, interpolations ``${...}`` and, in a sweep (``-m``), commas
between values and functions such as ``choice(a, b)``. A comma in the name of an existing file separates nothing.

A ``~`` at the start of a text is the home directory; the shell itself replaces it at the start of a word only.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.data.sources import reader_of_path
from experiments.config.schema import OWN_MODEL, SCHEMAS, SOURCES, TARGETS
from experiments.config.suggest import check_renamed, group_functions, nearest_key
from experiments.runtime.options import CONFIGS

__all__ = ["PATH_KEYS", "config_folders", "quote", "read_arguments", "unquote"]

# By command, the key of the path that may stand without one.
PATH_KEYS = {"certify": "run", "verify": "run"}

# Keys of no fixed type that hold a text, or a list of texts, among others.
_TEXTS = {"samples", "sample.labels", "labels", "network"}
# What Hydra reads as the same text: no number, no reserved word, nothing with a meaning in its grammar.
_PLAIN = re.compile(r"(?=.*[A-Za-z_/])[A-Za-z_./][\w./:%@+-]*", re.ASCII)
_RESERVED = re.compile(r"(?i)true|false|null|inf|nan|[\d.]+e[\d.]*")
_SWEEPS = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag)\s*\(.*\)", re.DOTALL)


def read_arguments(arguments: Sequence[str], command: str) -> list[str]:
    """Return the arguments of a command as Hydra reads them.

    Args:
        arguments: as typed, without the program.
        command: its name.

    Raises:
        DuetError: for an option with dashes, a renamed key, or a group without a choice that needs one.
    """
    check_renamed(list(arguments))
    flags, overrides = _split_flags(arguments, command)
    overrides = _with_path_named(overrides, command)
    is_sweep = any(flag in ("-m", "--multirun") for flag in flags) or "hydra.mode=MULTIRUN" in overrides
    folders = config_folders(flags)
    kept = [override for override in overrides if not _is_no_choice(override, command, folders)]
    quoted = [_quote_override(override, command, is_sweep) for override in kept]
    for override in quoted:
        if override.startswith("hydra.searchpath="):
            _check_search_path(override)
    return _without_model([*flags, *quoted], command)


def _with_path_named(overrides: Sequence[str], command: str) -> list[str]:
    """Return the arguments of a command that takes a path by its place, as in ``verify RUN``, with the key of the path.

    Raises:
        DuetError: if several paths are given.
    """
    key = PATH_KEYS.get(command)
    paths = [word for word in overrides if "=" not in word and not word.startswith("~")] if key else []
    if not paths:
        return list(overrides)
    if len(paths) > 1 or any(word.startswith(f"{key}=") for word in overrides):
        raise DuetError(f"{key}: {' and '.join(paths)} was given; {command} takes one path")
    return [f"{key}={word}" if word == paths[0] else word for word in overrides]


def _without_model(arguments: Sequence[str], command: str) -> list[str]:
    """Return the arguments with ``model=own`` if they name an own network, which takes the place of the model.

    Raises:
        DuetError: if a model is named too.
    """
    taken = f"model={OWN_MODEL}"  # as in the words that Hydra keeps of a run or hands to the jobs of a sweep
    keys = {argument.partition("=")[0].lstrip("+") for argument in arguments if "=" in argument and argument != taken}
    named = [argument for argument in arguments if argument.startswith("network=") and argument[8:] != "null"]
    has_model = "model" in {field.name for field in dataclasses.fields(SCHEMAS[command])} if command in SCHEMAS else ()
    if not named or not has_model:
        return list(arguments)
    for key in sorted(keys):
        if key == "model" or key.startswith("model."):
            raise DuetError(f"{key}: it was given with {named[0]}, which takes the place of the model; leave out one")
    return [*(argument for argument in arguments if argument != taken), taken]


def config_folders(flags: Sequence[str]) -> list[Path]:
    """Return the folders of configurations: that of Duet, and the one that ``--config-dir`` adds."""
    words = [word for flag in flags for word in (flag.split("=", 1) if flag.startswith("--config-dir=") else [flag])]
    added = [Path(words[i + 1]) for i, word in enumerate(words[:-1]) if word in ("--config-dir", "-cd")]
    return [CONFIGS, *added]


def quote(text: str) -> str:
    """Return a text in quotes, as Hydra's grammar reads it.

    Example:
        >>> print(quote("it's (1)"))
        'it\\'s (1)'
    """
    return QuotedString(text, Quote.single).with_quotes()


def unquote(value: str) -> str:
    """Return the text of a value that may stand in quotes."""
    return str(OverridesParser.create().parse_override(f"x={value}").value()) if _is_quoted(value) else value


def _split_flags(arguments: Sequence[str], command: str) -> tuple[list[str], list[str]]:
    """Return the flags with their values, and the other arguments; Hydra's parser wants the flags in one place."""
    actions = get_args_parser()._option_string_actions
    flags: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            overrides.append(word)
            continue
        if name not in actions:
            raise _unknown_flag(word, rest, command)
        action = actions[name]
        takes_value = action.nargs is None or (
            action.nargs == "?" and not equals and rest[:1] and rest[0] in (action.choices or ())
        )
        if equals:
            flags.append(f"{name}={os.path.expanduser(value)}")
        else:
            flags += [word, *([os.path.expanduser(rest.pop(0))] if takes_value and rest else [])]
    return flags, overrides


def _unknown_flag(flag: str, following: Sequence[str], command: str) -> DuetError:
    """Return the error for an argument with dashes that is no flag of Hydra, such as ``--batch 32``."""
    name, _, value = flag.lstrip("-").partition("=")
    if not value and following and "=" not in following[0] and not following[0].startswith("-"):
        value = following[0]
    name = name.replace("-", "_")
    key = nearest_key(name, command) or name
    shown = key if "=" in key else f"{key}={value or 'VALUE'}"
    return DuetError(f"{flag}: options have no dashes: {shown}")


def _is_no_choice(override: str, command: str, folders: Iterable[Path]) -> bool:
    """Return whether an override such as ``data=null`` keeps a group empty that is empty by default.

    Raises:
        DuetError: if a group is given a value that names no file, and that Hydra does not read as a name.
    """
    key, _, value = override.partition("=")
    group, value = key.lstrip("+").partition("@")[0], value.strip()
    options = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
    if not options or key.startswith("~") or value in options:
        return False
    if group == "data" and ("/" in value or os.path.exists(os.path.expanduser(value))):
        name, option = reader_of_path(Path(value).expanduser())
        shown = f"data={name} data.options.{option}={value}"
        raise DuetError(f"data: {value!r} was given, which is no name but a path; write {shown}")
    if value.lower() in ("null", "none"):
        file = CONFIGS / f"{command}.yaml"
        defaults = file.read_text(encoding="utf-8") if file.is_file() else ""
        if re.search(rf"^\s*- {re.escape(key.lstrip('+'))}: *null\b", defaults, re.MULTILINE):
            return True
        raise one_of(key.lstrip("+"), None, options)
    if re.fullmatch(r"(?i)[+-]?[\d._]+(e[+-]?\d+)?|true|false|\{.*\}", value):  # Hydra takes only text and lists
        raise one_of(group, value, options)
    return False


def _check_search_path(override: str) -> None:
    """Refuse a folder of configurations that does not exist, about which Hydra only warns."""
    value = OverridesParser.create().parse_override(override).value()
    for text in value if isinstance(value, list) else []:
        scheme, _, path = str(text).rpartition("://")
        if scheme in ("", "file") and "${" not in path and not Path(path).is_dir():
            raise DuetError(f"hydra.searchpath: {path!r} was given; there is no such folder")


def _quote_override(override: str, command: str, is_sweep: bool) -> str:
    """Return an override whose value, if its key holds text, is quoted where Hydra would read something else."""
    key, equals, value = override.partition("=")
    name = key.lstrip("+")
    if not equals or key.startswith("~") or (_is_plain(value) and not value.startswith("~")):
        return override
    kind = _kind(name, command)
    if kind is None or not value.strip():
        return override
    is_list = value.strip().startswith("[") and kind != "text"
    if kind == "list" and not is_list and not is_sweep:
        return override  # the error shows how a list is written
    if is_sweep and _SWEEPS.fullmatch(value.strip()):
        return override
    if is_sweep and "," in value:
        if not is_list and not _is_quoted(value) and os.path.exists(os.path.expanduser(value)):
            print(f"{name}: {value!r} exists, and is one value and not several", file=sys.stderr)
        else:
            parts = _split(value)
            return f"{key}={','.join(_quote_value(part, kind) for part in parts)}"
    elif (
        not is_list
        and re.search(r",\S", value)
        and not (_is_quoted(value) or os.path.exists(os.path.expanduser(value)))
    ):
        print(f"{name}: {value!r} is taken as one value; -m sweeps over several", file=sys.stderr)
    return f"{key}={_quote_value(value, kind)}"


def _quote_value(value: str, kind: str) -> str:
    """Return one value, quoted where Hydra would not read it as the text that it is."""
    stripped = value.strip()
    if kind != "text" and stripped.startswith("[") and stripped.endswith("]"):
        inner = stripped[1:-1]
        parts = _split(inner) if inner.strip() else []
        element = "any element" if kind == "any" else "text"
        return f"[{','.join(_quote_value(part.strip(), element) for part in parts)}]"
    if kind.startswith("any") and re.fullmatch(r"[\w.+-]+", value, re.ASCII):
        return value
    expanded = os.path.expanduser(value)
    is_table = kind == "any" and stripped.startswith("{") and stripped.endswith("}")
    if _is_quoted(stripped) or "${" in value or stripped.lower() == "null" or is_table:
        return value
    return expanded if _is_plain(expanded) or _is_escaped(expanded) else quote(expanded)


def _is_plain(value: str) -> bool:
    return bool(_PLAIN.fullmatch(value)) and not _RESERVED.fullmatch(value)


def _is_quoted(value: str) -> bool:
    value = value.strip()
    return len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]


def _is_escaped(value: str) -> bool:
    """Return whether Hydra reads a text in it, with the characters escaped that its grammar would else use."""
    if "\\" not in value:
        return False
    try:
        return isinstance(OverridesParser.create().parse_override(f"x={value}").value(), str)
    except HydraException:
        return False


def _split(text: str) -> list[str]:
    """Return the parts between commas that stand in no quotes and no brackets."""
    parts, depth, inside, escaped = [""], 0, "", False
    for c in text:
        if c == "," and not depth and not inside and not escaped:
            parts.append("")
            continue
        parts[-1] += c
        if escaped:
            escaped = False
        elif c == "\\":
            escaped = True
        elif inside:
            inside = "" if c == inside else inside
        elif c in "'\"" and not parts[-1][:-1].strip():
            inside = c
        else:
            depth += (c in "([{") - (c in ")]}")
    return parts if not depth and not inside else text.split(",")


@functools.cache
def _kind(key: str, command: str) -> str | None:
    """Return ``"text"`` for a text, ``"list"`` for a list of texts, ``"any"`` for the keys of `_TEXTS`, else None."""
    if key in _TEXTS or key == "from":
        return "text" if key == "from" else "any"
    group, _, option = key.rpartition(".")
    functions = {"source": SOURCES, "target": TARGETS}.get(group, {}).values()
    functions = [*functions, *group_functions(group.replace("training.", "data."))]
    hints = [_hint(function, option) for function in functions]
    if hint := next((hint for hint in hints if hint is not None), None):
        return _kind_of_hint(hint)
    schema = HydraConf if key.startswith("hydra.") else SCHEMAS.get(command)
    node: Any = None if schema is None else OmegaConf.structured(schema)
    for part in key.removeprefix("hydra.").split("."):
        if not OmegaConf.is_dict(node) or part not in node.keys():  # noqa: SIM118 - a missing value is not `in` it
            return None
        node = node._get_node(part)
    if OmegaConf.is_list(node) or OmegaConf.is_dict(node):
        return "list" if OmegaConf.is_list(node) and node._metadata.element_type is str else None
    return _kind_of_hint(node._metadata.ref_type)


def _hint(function: Any, option: str) -> Any:
    parameter = inspect.signature(function).parameters.get(option)
    if parameter is None or parameter.annotation is parameter.empty:
        return None
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    try:
        return typing.get_type_hints(function).get(option)
    except NameError:  # an annotation whose names are imported for type checkers only
        return None


def _kind_of_hint(hint: Any) -> str | None:
    """Return the kind of value that an annotation describes."""
    if hint in (str, Path):
        return "text"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = {_kind_of_hint(member) for member in typing.get_args(hint) if member is not type(None)}
        return "list" if "list" in kinds and None not in kinds else "text" if kinds == {"text"} else None
    return "list" if typing.get_origin(hint) in (list, tuple, Sequence) and str in typing.get_args(hint) else None
