"""Messages of Hydra, OmegaConf and PyYAML as one line in the words of Duet.

Their exceptions hold the key, the value and the type as text only, so each pattern below reads one kind of message. A
message that fits none is kept as it is, without the lines that explain the library.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException, OverrideParseException

from diffusion_core.common.errors import DuetError, one_of
from experiments.config.arguments import quote
from experiments.config.backends import read_backends
from experiments.config.convert import missing_value
from experiments.config.schema import MODELS
from experiments.config.suggest import key_hint, known_keys, nearest_key

__all__ = ["describe_error"]

_TYPES = {"Integer": "a whole number", "Float": "a number", "bool": "true or false", "dict": "a mapping, as in {a: 1}"}


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
        if isinstance(cause, OverrideParseException):
            return _unreadable(cause.override, command, configs)
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
            group, _, name = cause.missing_cfg_file.rpartition("/")
            if "/" in group and not (configs / group).is_dir():  # a name with a slash, as in model=DiT-XL/2
                group, _, name = cause.missing_cfg_file.partition("/")
            # Hydra does not list the options of a group of which several are selected.
            if available := cause.options or _options(group, configs):
                # `from_run` is the option of a command that starts from a run, not one to type.
                available = [option for option in available if option != "from_run"]
                return str(one_of(group or "--config-name", name, available, _titles() if group == "backend" else {}))
        texts.append(str(cause))
        cause = cause.__cause__
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("object_type=", "reference_type=", "To append to your"))]
    message = "; ".join(dict.fromkeys(kept))
    return (
        _several_values(message, configs) or _known_key(message) or _unknown_key(message, command, configs) or message
    )


def _titles() -> dict[str, str]:
    """Return the backends by what people call them."""
    return {info.title.lower(): name for name, info in read_backends().items()}


def _options(group: str, configs: Path) -> list[str]:
    """Return the options of a group in every folder of configurations."""
    if GlobalHydra.instance().is_initialized():
        return GlobalHydra.instance().config_loader().get_group_options(group)
    return sorted(path.stem for path in (configs / group).glob("*.yaml"))


def _is_group_of(command: str | None, group: str, configs: Path) -> bool:
    """Return whether a command has a choice of a group."""
    file = configs / f"{command}.yaml"
    return file.is_file() and bool(re.search(rf"^ *- {group}:", file.read_text(encoding="utf-8"), re.MULTILINE))


def _several_values(message: str, configs: Path) -> str | None:
    """Return the message for values that only a sweep can have, or None."""
    ambiguous = re.search(r"Ambiguous value for argument '([^=]*)=(.*?)'; 1\. To use it", message)
    if not ambiguous:
        return None
    key, value = ambiguous.groups()
    group = key.lstrip("+").partition("@")[0]
    if options := _options(group, configs):
        for name in re.split(r"\s*,\s*", value):
            if name not in options:
                return str(one_of(group, name, options))
        several = f"write {key}=[{value}] for all of them, or " if _takes_several(group, configs) else ""
        return f"{key}: {value!r} was given, which is several choices; {several}add -m to run each of them"
    return (
        f"{key}: {value!r} was given, which is several values; write a list as '{key}=[{value}]', one text as "
        f"\"{key}='{value}'\", or add -m to run each of them"
    )


def _takes_several(group: str, configs: Path) -> bool:
    """Return whether a list of options of a group can be chosen, as some command does by default."""
    return any(
        re.search(rf"^ *- {group}: *\[", file.read_text(encoding="utf-8"), re.MULTILINE)
        for file in configs.glob("*.yaml")
    )


def _unreadable(argument: str, command: str | None, configs: Path) -> str:
    """Return the message for an argument that Hydra's grammar cannot read."""
    key, equals, value = argument.partition("=")
    if not equals or not re.fullmatch(r"[+~]*[\w./@]+", key):
        groups = [path.parent.name for path in configs.glob(f"*/{glob.escape(argument)}.yaml")]
        groups = [group for group in groups if _is_group_of(command, group, configs)]
        near = [group for group in groups if group in ("experiment", "study")] or groups
        known = known_keys(command) if command else []
        runs = [name for name in ("checkpoint", "run", "path") if name in known]
        if near:
            return f"{argument}: an option is KEY=VALUE; did you mean {near[0]}={argument}?"
        if runs and (equals or "/" in argument or Path(argument).exists()):
            return f"{argument}: an option is KEY=VALUE; did you mean {runs[0]}={argument}?"
        if argument in known:
            return f"{argument}: an option is KEY=VALUE, without spaces, as in {argument}=VALUE"
        return f"{argument}: an option is KEY=VALUE"
    return (
        f"{key}: {value!r} cannot be read; a text with any of ( ) [ ] {{ }} = , # & or a letter beyond ASCII needs "
        f'quotes within the quotes of the shell: "{key}={quote(value)}"'
    )


def _unknown_key(message: str, command: str | None, configs: Path) -> str | None:
    """Return the message for a key or a group that does not exist, or None."""
    if required := re.search(r"You must specify '([^']+)', e\.g, \S+; Available options:; (.*)", message):
        group, options = required.group(1), [name for name in required.group(2).split("; ") if name != "from_run"]
        return f"{group}: nothing was chosen; add {group}=NAME, one of {', '.join(options)}"
    if twice := re.search(r"Multiple values for ([\w/@.]+)\. To override", message):
        return f"{twice.group(1)}: the command has a choice of this group already; give it without the +"
    if forced := re.search(r"force-add of config groups is not supported: '\+\+([^']+)'", message):
        return f"{forced.group(1).partition('=')[0]}: a group is chosen without ++: {forced.group(1)}"
    if deleted := re.search(r"Could not delete '([^'=]+)(?:=[^']*)?'\. No match", message):
        return f"~{deleted.group(1)}: the command has no such choice to remove"
    if folder := re.search(r"Additional config directory '(.*)' not found", message):
        return f"--config-dir: {folder.group(1)!r} was given; there is no such folder"
    if group := re.search(r"Could not override '([^'@]+)@[^']*'\.; Did you mean to override (\S+?)\?", message):
        return f"{group.group(1)}: {command or 'this command'} has no such group; did you mean {group.group(2)}?"
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
    if re.fullmatch(r"\w+", key) and _is_group_of(command, key, configs) and not override:
        return (
            f"{key}: a file of this group says where its keys belong, as in configs/{key}; "
            "begin it with the line # @package _global_"
        )
    networks = {schema.__name__: name for name, schema in MODELS.items()}
    where = f" in architecture {networks[unknown.group(2)]!r}" if unknown.group(2) in networks else ""
    return f"{key}: there is no such key{where}.{key_hint(key, command)}"


def _known_key(message: str) -> str | None:
    """Return the message for a value of a wrong type, a missing value or a needless plus sign, or None."""
    if missing := re.search(r"Missing mandatory value: ([\w.]+)", message):
        return str(missing_value(missing.group(1)))
    if exists := re.search(r"An item is already at '([^']+)'", message):
        return f"{exists.group(1)}: it exists already; give it without the +"
    full = re.search(r"full_key: ([\w.\[\]]+)", message)
    if not full:
        return None
    key = full.group(1)
    given = re.search(r"Error merging override [^=]+=(.*?); ", message)
    if wrong := re.search(
        r"Value '(.*?)' (?:of type '\w+' )?(?:could not be converted to|is not a valid) (\w+)", message
    ):
        value = wrong.group(1)
        whole = re.fullmatch(r"(\d+)\.0+", value) if wrong.group(2) == "Integer" else None
        hint = f"; write {whole.group(1)}" if whole else ""
        return f"{key}: {value!r} was given; it must be {_TYPES.get(wrong.group(2), wrong.group(2))}{hint}"
    if "is not Optional" in message:
        return f"{key}: null was given; it must have a value"
    if given and (target := re.search(r"Cannot assign \w+ to (Dict|List)\[", message)):
        named = {f"process.{name}" for name in ("schedule", "weighting", "timestep_sampling", "coupling", "path_noise")}
        value = given.group(1)
        example = f"{key}.name={value}" if key in named and re.fullmatch(r"[a-z]\w*", value) else f"{key}.NAME=VALUE"
        what = "a group of keys; give one of them, as in" if target.group(1) == "Dict" else "a list, as in"
        return f"{key}: {value!r} was given; it is {what} {example if target.group(1) == 'Dict' else f'{key}=[A,B]'}"
    if given and "is not a ListConfig" in message:
        example = "RUN,RUN" if key == "runs" else "A,B"
        return f"{key}: {given.group(1)!r} was given; it must be a list, as in {key}=[{example}]"
    if given and "is not a subclass of" in message:
        value, first = given.group(1), {"lr": "peak", "sample": "count", "process.schedule": "name"}
        choose = f"; its file is chosen with data@{key}={value}" if key == "training" else ""
        name = "decay" if key == "lr" and value.isalpha() else first.get(key)
        choose = f"; did you mean {key}.{name}={value}?" if name else choose
        return (
            f"{key}: {given.group(1)!r} was given; it is a group of keys; give one of them, as in {key}.NAME=VALUE"
            f"{choose}"
        )
    return None
