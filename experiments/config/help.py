"""The help of a command: its groups with their options, and every key with its default and one line about it.

Nothing is described here. The line of a key is the comment beside its field in `schema`, or what the docstring of the
dataclass or function behind it says of the argument; the line of a group is the comment beside the group.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from diffusion_core.common.errors import check_choice
from diffusion_core.data import load_dataset
from diffusion_core.data.transform import ImageTransform
from diffusion_core.metrics.evaluate import METRICS
from diffusion_core.sampling import make_plan
from experiments.config.schema import MODELS, SCHEMAS, SOURCES, TARGETS
from experiments.config.suggest import named_functions
from experiments.runtime.options import CONFIGS
from experiments.sampling.plans import shared_options

__all__ = ["Group", "Key", "command_groups", "help_text"]

# Arguments of the functions behind a group that a command passes itself.
# Keys of a group that have a name and options of their own.
_PARTS = ("options", "schedule", "weighting", "timestep_sampling", "coupling", "path_noise")
_PASSED = {"process", "context", "schedule", "first_t", "t", "parts", "read", "open_backend", "weights_of"}
_WIDTH = 118


@dataclass(frozen=True)
class Key:
    """A key as the help shows it: its full name, its default as text, and its description."""

    name: str
    default: str
    text: str


@dataclass(frozen=True)
class Group:
    """A group of keys.

    Args:
        name: as typed; "" for the keys of the command itself.
        chosen: the option that is chosen by default, or None if the group has no options.
        text: its description.
        options: the names that may be chosen.
        keys: its keys.
    """

    name: str
    chosen: str | None
    text: str
    options: tuple[str, ...]
    keys: tuple[Key, ...]


def help_text(command: str, description: str, only: Iterable[str] = ()) -> str:
    """Return the help of a command.

    Args:
        command: its name.
        description: the docstring of its module.
        only: groups; the help then shows nothing else.

    Raises:
        DuetError: if the command has no such group.
    """
    own, *groups = command_groups(command)
    known = {group.name: group for group in groups}
    for name in only:
        check_choice("--help", name, known)
    lines = [description.strip(), "", "Keys, set with KEY=VALUE:", *_lines(own.keys, "  ")]
    if groups:
        lines += ["", f"Groups, chosen with GROUP=NAME, and their keys ({command} --help GROUP shows one):"]
    lines, groups = ([], [known[name] for name in only]) if only else (lines, groups)
    for group in groups:
        chosen = "" if group.chosen is None else f"={group.chosen}"
        lines += ["", *_lines([Key(f"{group.name}{chosen}", "", group.text)], "  ")]
        if group.options:
            options = f"one of {', '.join(group.options)}"
            lines.append(textwrap.fill(options, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6))
        lines += _lines(group.keys, "    ")
    return "\n".join([*lines, "", _FOOTER]).strip()


_FOOTER = """\
More:
  -m, --multirun        run once for each value of KEY=A,B or GROUP=NAME,NAME
  --cfg job             print the configuration that results, and run nothing; --resolve fills in references
  --config-dir DIR      a folder of your own files, as DIR/experiment/mine.yaml for experiment=mine
  'hydra.searchpath=[DIR,DIR]'  several such folders
  hydra.run.dir=DIR     where a run is written, for commands without out
A path or a text is taken as it is; the shell itself needs quotes around spaces and ( ) & #, as in "KEY=a (1)".
Configuration: docs/commands.md. Files of the groups: configs/GROUP/NAME.yaml."""


def command_groups(command: str) -> list[Group]:
    """Return the keys of a command: first the group "" of those without a group, then its groups in order."""
    schema, defaults = SCHEMAS[command], _defaults(command)
    node, texts = OmegaConf.structured(schema), _texts(schema)
    own, groups = [], []
    for name in node.keys():  # noqa: SIM118 - a mandatory key has no value, and is not `in` it
        value, text = node._get_node(name), texts.get(name, "")
        if not (OmegaConf.is_dict(value) or name in defaults or name in ("model", "source", "target")):
            own.append(Key(_typed(name), _shown(value), text))
        else:
            groups.append(_group(name, value, text, defaults))
    more = [name for name in defaults if name.partition("@")[0] not in set(node.keys()) and "@" not in name]
    for name in more:  # groups of overrides, without keys of their own
        groups.append(Group(name, _choice(defaults[name]), _OVERRIDES.get(name, ""), _options(name), ()))
    return [Group("", None, "", (), tuple(own)), *groups]


_OVERRIDES = {
    "experiment": "a whole configuration: data, network, process and training of a published or a small system",
    "debug": "a short run that shows whether the configuration works",
    "hparams_search": "a search for good values of keys, over many runs; needs -m",
    "device": "device=cuda computes on a GPU, with a suitable workload",
}


def _group(name: str, node: Any, text: str, defaults: Mapping[str, Any]) -> Group:
    """Return a group with its keys: those of its schema, and the options of the functions that it selects."""
    selector = next((key for key in defaults if key in (name, f"data@{name}")), name)
    options = _options(selector) or tuple({"source": SOURCES, "target": TARGETS}.get(name, ()))
    choice = _choice(defaults.get(selector)) if selector in defaults else None
    values = _file(selector.partition("@")[0], choice)
    keys = dict(_walk(node, name, values))
    for key, text_of_key in _function_keys("data" if name == "training" else name):
        key = key.replace("data.", "training.", 1) if name == "training" else key
        keys.setdefault(key, Key(key, _value_at(values, key.removeprefix(f"{name}.")), text_of_key))
    return Group(selector, choice if options else None, text, options, tuple(keys.values()))


def _walk(node: Any, path: str, values: Any) -> Iterator[tuple[str, Key]]:
    """Yield the keys of a part of a schema."""
    if not OmegaConf.is_dict(node) or node._is_none() or node._is_missing():
        return
    schema = node._metadata.object_type
    texts = _texts(schema) if dataclasses.is_dataclass(schema) else {}
    for name in node:
        if name == "name" and not dataclasses.is_dataclass(schema):
            continue
        child, full = node._get_node(name), f"{path}.{name}"
        value = values.get(name, ...) if isinstance(values, Mapping) else ...
        nested = dict(_walk(child, full, value))
        text = texts.get(name, "") or (_of_function(make_plan, name) if path == "sampler" else "")
        if not nested or texts.get(name):
            yield full, Key(full, _shown(child) if value is ... else _yaml(value), text)
        yield from nested.items()


def _function_keys(group: str) -> Iterator[tuple[str, str]]:
    """Yield the keys of a group that functions define, with their descriptions."""
    if group == "sampler":
        for option in shared_options():
            yield f"sampler.{option}", _of_function(make_plan, option)
    if group == "model":
        yield "model.architecture", f"the kind of network, one of {', '.join(MODELS)}"
        for spec in MODELS.values():
            for field in dataclasses.fields(spec):
                if field.name != "architecture":
                    yield (key := f"model.{field.name}"), _of_network(field.name) or _TEXTS.get(key, "")
        return
    if group == "metrics":
        for name, metric in METRICS.items():
            for option, parameter in inspect.signature(metric.fit).parameters.items():
                if parameter.kind is parameter.KEYWORD_ONLY:
                    key = f"metrics.{name}.{option}"
                    yield key, _describe([metric.fit], option) or _TEXTS.get(key, "")
        return
    fixed = {"source": SOURCES, "target": TARGETS}.get(group)
    for path in (group, *(f"{group}.{part}" for part in _PARTS)):
        functions = fixed if fixed and path == group else named_functions(path)
        options: dict[str, list[str]] = {}
        for name, function in functions.items():
            for option, parameter in inspect.signature(function).parameters.items():
                if option not in _PASSED and (not fixed or parameter.kind is parameter.KEYWORD_ONLY):
                    options.setdefault(option, []).append(name)
        for option, names in options.items():
            owners = (
                "" if len(names) in (1, len(functions)) and len(functions) == len(names) else f" ({', '.join(names)})"
            )
            text = _TEXTS.get(f"{path}.{option}") or _describe([functions[name] for name in names], option)
            yield f"{path}.{option}", text + (owners if len(names) <= 3 else "")


# Arguments of functions whose docstrings describe a formula and not its letters.
_TEXTS = {
    "data.options.path": "the file or folder to read; null reads data.store",
    "data.options.max_unreadable": "largest fraction of the files that may be unreadable",
    "data.options.size": "height and width in pixels: a number, [HEIGHT,WIDTH], or null to keep that of the images",
    "data.options.labels": "the labels: of cifar100 fine or coarse; an array of an .npz file; a file of labels",
    "data.options.pattern": "of the names of files, as {class}_{number}.png, or a regular expression",
    "data.options.image": "the column of images; null finds it",
    "data.options.label": "the column of labels; null finds it, none reads none",
    "data.options.conditions": "what describes each image by numbers: an array or a file (arrays), columns (hf_folder)",
    "data.options.condition_names": "the name of each condition",
    "data.options.class_names": "the name of each class",
    "data.options.value_range": "[LOW,HIGH], the values of black and white of floats; null: network values",
    "data.options.unlabelled": "whether the part without labels is read too",
    "data.options.attribute": "one of the forty attributes, such as Smiling, which defines two classes",
    "data.options.layout": "what sub-folders are: auto, flat, classes or splits; of arrays where the channels are",
    "data.options.order": "of the files: natural, or by name",
    "data.options.images": "the array with the images",
    "data.options.num_classes": "number of classes; null counts the labels",
    "metrics.kernel.subsets": "number of subsets, over which the distance is averaged; 0: all pairs",
    "metrics.score.splits": "number of parts of the samples, over which the score is averaged",
    "model.init": "how the weights start: ddpm, or as the layers of keras or torch do",
    "model.self_conditioning": "whether the network also sees its previous estimate",
    "process.schedule.T": "number of timesteps",
    "process.schedule.beta_start": "the first beta",
    "process.schedule.beta_end": "the last beta",
    "process.schedule.beta": "every beta",
    "process.schedule.betas": "all betas, as a list",
    "process.schedule.s": "offset of the cosine, 0.008 as published",
    "process.schedule.max_beta": "upper limit of every beta",
    "process.schedule.start": "where the sigmoid starts",
    "process.schedule.end": "where the sigmoid ends",
    "process.schedule.tau": "width of the sigmoid",
    "process.schedule.mu": "centre of the distribution of log-SNR",
    "process.schedule.b": "width of the distribution of log-SNR",
    "process.schedule.power": "exponent of the distribution",
    "process.schedule.rate": "rate of the exponential",
    "process.schedule.beta_min": "beta at the start",
    "process.schedule.beta_max": "beta at the end",
    "process.schedule.sigma_min": "the lowest noise level",
    "process.schedule.sigma_max": "the highest noise level",
    "process.schedule.log_snr_min": "log-SNR at the noisiest time",
    "process.schedule.log_snr_max": "log-SNR at the least noisy time",
    "process.weighting.gamma": "upper limit of the SNR (min_snr), or the exponent (p2)",
    "process.weighting.k": "added to the SNR",
    "process.weighting.sigma_data": "standard deviation of the data; null is that of the process",
    "process.timestep_sampling.mean": "of the normal distribution",
    "process.timestep_sampling.std": "of the normal distribution",
    "tracker.project": "name of the project",
    "tracker.entity": "user or team; null is your own",
    "tracker.group": "name of a group of runs",
    "tracker.mode": "online, offline or disabled",
    "tracker.run": "name of the run; empty takes that of the run directory",
    "tracker.tracking_uri": "where MLflow writes: a database, a folder or a server",
    "tracker.experiment": "name of the experiment",
}


def _describe(functions: Iterable[Callable[..., Any]], option: str) -> str:
    """Return what the docstrings of functions, or of others in their modules, say of an argument."""
    functions = list(functions)
    for function in functions:
        if text := _of_function(function, option):
            return text
    for function in functions:
        for other in vars(sys.modules[function.__module__]).values():
            if getattr(other, "__module__", None) == function.__module__ and (text := _of_function(other, option)):
                return text
    return _of_function(ImageTransform, option) or _of_function(load_dataset, option)


def _of_function(owner: Any, option: str) -> str:
    return _arguments(inspect.getdoc(owner) or "").get(option, "") if callable(owner) else ""


def _of_network(option: str) -> str:
    texts = [
        _arguments(inspect.cleandoc(schema.__mro__[1].__doc__ or "")).get(option, "") for schema in MODELS.values()
    ]
    return next(filter(None, texts), "")


@functools.cache
def _arguments(docstring: str) -> dict[str, str]:
    """Return the descriptions of the arguments in a docstring, each as one line."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", docstring + "\n", re.MULTILINE)
    found = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section.group(1) if section else "", re.MULTILINE)
    return {name: _one_line(text) for name, text in found}


def _one_line(text: str) -> str:
    """Return a description without line ends and the marks of code, up to its first full stop."""
    text = " ".join(text.split()).replace('``"', "").replace('"``', "").replace("`", "").replace("None", "null")
    text = re.sub(r"\bTrue\b", "true", re.sub(r"\bFalse\b", "false", text))
    return re.split(r"(?<!\be\.g)(?<!\bi\.e)\.(?= [A-Z]|$)", text)[0]


@functools.cache
def _texts(schema: type) -> dict[str, str]:
    """Return the descriptions of the fields of a schema: comments in its source, or arguments in its docstring."""
    texts: dict[str, str] = {}
    for owner in reversed(schema.__mro__[:-1]):
        texts |= _arguments(inspect.cleandoc(owner.__doc__ or ""))
        texts |= _comments(owner)
    return texts


def _comments(schema: type) -> dict[str, str]:
    """Return the comments beside the fields of a class, or in the line above them."""
    try:
        lines = textwrap.dedent(inspect.getsource(schema)).splitlines()
    except (OSError, TypeError):  # made from a dataclass of the core, whose docstring it has
        return {}
    found = {}
    for node in ast.parse("\n".join(lines)).body[0].body:
        if isinstance(node, ast.AnnAssign):
            above, _, beside = lines[node.lineno - 2].strip(), *lines[node.end_lineno - 1].rpartition("  # ")[1:]
            comment = beside if _ else above.removeprefix("# ") if above.startswith("# ") else ""
            found |= {node.target.id: comment} if comment else {}
    return found


def _defaults(command: str) -> dict[str, Any]:
    """Return the groups of a command with their defaults, as its file lists them."""
    entries = yaml.safe_load((CONFIGS / f"{command}.yaml").read_text(encoding="utf-8"))["defaults"]
    pairs = [pair for entry in entries if isinstance(entry, dict) for pair in entry.items()]
    return {name: value for name, value in pairs if " " not in name}


def _choice(default: Any) -> str:
    if isinstance(default, list):
        return f"[{','.join(default)}]"
    return "NAME" if default in (None, "???") else str(default)


def _options(group: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (CONFIGS / group.partition("@")[0]).glob("*.yaml")))


def _file(group: str, choice: str | None) -> Any:
    """Return the values in the file of an option, if it has one."""
    path: Path = CONFIGS / group / f"{choice}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _value_at(values: Any, path: str) -> str:
    for part in path.split("."):
        values = values.get(part, ...) if isinstance(values, Mapping) else ...
    return "" if values is ... else _yaml(values)


def _typed(name: str) -> str:
    return "from" if name == "from_run" else name


def _shown(node: Any) -> str:
    """Return the default of a key as it is typed; "" without a default."""
    if node is None or node._is_missing():
        return ""
    if OmegaConf.is_config(node):
        return _yaml(OmegaConf.to_container(node, resolve=False))
    value = node._value()
    return _yaml(value._value() if hasattr(value, "_value") else value)  # a key of several types holds another node


def _yaml(value: Any) -> str:
    if value in ("???", ...):
        return ""
    text = yaml.safe_dump(value, default_flow_style=True, width=1 << 16, sort_keys=False).strip()
    return text.removesuffix("...").strip().strip("'")


def _lines(keys: Iterable[Key], indent: str) -> list[str]:
    """Return one line for each key, with descriptions that begin in one column."""
    lines = []
    for key in keys:
        shown = f"{indent}{key.name}={key.default}" if key.default else f"{indent}{key.name}"
        shown = textwrap.shorten(shown, 60, placeholder=" ...}") if len(shown) > 60 else shown
        room = _WIDTH - max(44, len(shown) + 2)
        text = key.text if len(key.text) <= room else f"{key.text[: max(20, room - 4)].rpartition(' ')[0]} ..."
        lines.append(f"{shown:<42}  {text}".rstrip())
    return lines
