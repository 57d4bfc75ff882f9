"""Messages of Hydra, OmegaConf and PyYAML as one line in the words of Duet.

Their exceptions hold the key, the value and the type as text only, so each pattern below reads one kind of message. A
message that fits none is kept as it is, without the lines that explain the library.
"""

from __future__ import annotations

import re
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.errors import MissingConfigException

from diffusion_core.common.errors import DuetError, one_of
from experiments.config.convert import missing_value
from experiments.config.schema import MODELS
from experiments.config.suggest import nearest_key

__all__ = ["check_flags", "describe_error"]

_TYPES = {"Integer": "a whole number", "Float": "a number", "bool": "true or false", "dict": "a mapping, as in {a: 1}"}


def check_flags(arguments: list[str], command: str) -> None:
    """Refuse arguments with dashes that are no flags of Hydra, such as ``--batch 32``.

    Raises:
        DuetError: showing the option without dashes.
    """
    if not any(argument.startswith("-") for argument in arguments):
        return
    _, unknown = get_args_parser().parse_known_args(arguments)
    for flag in unknown:
        if flag.startswith("-"):
            name, _, value = flag.lstrip("-").partition("=")
            after = arguments[arguments.index(flag) + 1 :][:1]
            if not value and after and "=" not in after[0] and not after[0].startswith("-"):
                value = after[0]
            name = name.replace("-", "_")
            key = nearest_key(name, command) or name
            raise DuetError(f"{flag}: options have no dashes: {key}={value or 'VALUE'}")


def describe_error(error: Exception, command: str | None, configs: Path) -> str:
    """Return the message of an exception, with the key, what was given, and what is allowed.

    Args:
        error: an exception of Hydra, OmegaConf or PyYAML.
        command: the name of the command, for the keys that it has; None if it is not known.
        configs: the folder of configurations.
    """
    texts, cause = [], error
    while cause is not None:
        if isinstance(cause, DuetError):  # raised by an object that Hydra constructed, and wrapped by Hydra
            return str(cause)
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
            group, _, name = cause.missing_cfg_file.rpartition("/")
            # Hydra does not list the options of a group of which several are selected.
            if available := cause.options or sorted(path.stem for path in (configs / group).glob("*.yaml")):
                # `from_run` is the option of a command that starts from a run, not one to type.
                return str(one_of(group, name, [option for option in available if option != "from_run"]))
        texts.append(str(cause))
        cause = cause.__cause__
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("object_type=", "reference_type=", "To append to your"))]
    message = "; ".join(dict.fromkeys(kept))
    return _known_key(message) or _unknown_key(message, command) or message


def _unknown_key(message: str, command: str | None) -> str | None:
    """Return the message for a key or a group that does not exist, or None."""
    if group := re.search(r"Could not override '([^']+)'\. No match in the defaults list", message):
        name = group.group(1)
        near = nearest_key(name, command)
        hint = f"; did you mean {near}?" if near else "; --help lists the groups that it has"
        return f"{name}: {command or 'this command'} has no such group{hint}"
    unknown = re.search(r"Key '([^']+)' (?:is not in struct|not in(?: '([^']+)')?)", message)
    if not unknown:
        return None
    full = re.search(r"full_key: ([\w.\[\]]+)", message)
    override = re.search(r"Could not (?:override|append to config) '([^']+)'", message)
    key = (override or full or unknown).group(1)
    near = nearest_key(key, command)
    networks = {schema.__name__: name for name, schema in MODELS.items()}
    where = f" in architecture {networks[unknown.group(2)]!r}" if unknown.group(2) in networks else ""
    return f"{key}: there is no such key{where}." + (f" Did you mean {near}?" if near else "")


def _known_key(message: str) -> str | None:
    """Return the message for a value of a wrong type, a missing value or a needless plus sign, or None."""
    if missing := re.search(r"Missing mandatory value: ([\w.]+)", message):
        return str(missing_value(missing.group(1)))
    if unchosen := re.search(r"You must specify '([^']+)'", message):
        group = unchosen.group(1)
        names = re.findall(r"; (\w+)", message.partition("Available options:")[2])
        options = [name for name in names if name != "from_run"]
        return f"{group}: nothing was chosen; add {group}=NAME, one of {', '.join(options)}"
    if exists := re.search(r"An item is already at '([^']+)'", message):
        return f"{exists.group(1)}: it exists already; give it without the +"
    if parsed := re.search(r"Error parsing override '(.*?)'; missing EQUAL", message):
        return f"{parsed.group(1)}: an option is KEY=VALUE"
    full = re.search(r"full_key: ([\w.\[\]]+)", message)
    if not full:
        return None
    key = full.group(1)
    given = re.search(r"Error merging override [^=]+=(.*?); ", message)
    if wrong := re.search(
        r"Value '(.*?)' (?:of type '\w+' )?(?:could not be converted to|is not a valid) (\w+)", message
    ):
        value = wrong.group(1)
        return f"{key}: {value!r} was given; it must be {_TYPES.get(wrong.group(2), wrong.group(2))}"
    if "is not Optional" in message:
        return f"{key}: null was given; it must have a value"
    if given and "is not a ListConfig" in message:
        example = "RUN,RUN" if key == "runs" else "A,B"
        return f"{key}: {given.group(1)!r} was given; it must be a list, as in {key}=[{example}]"
    if given and "is not a subclass of" in message:
        return f"{key}: {given.group(1)!r} was given; it is a group of keys; give one of them, as in {key}.NAME=VALUE"
    return None
