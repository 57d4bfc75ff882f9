"""Hints for configuration keys that do not exist: the nearest known key, or the new name of a renamed one."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import join_some
from diffusion_core.data import DATASETS
from diffusion_core.diffusion.continuous import CONTINUOUS
from diffusion_core.diffusion.loss_weighting import WEIGHTINGS
from diffusion_core.diffusion.schedule import LISTED, SCHEDULES
from diffusion_core.diffusion.timestep_sampling import TIMESTEP_SAMPLERS
from diffusion_core.metrics.evaluate import METRICS, metric_options
from diffusion_core.optim import OPTIMISERS, PROFILES
from diffusion_core.sampling import SAMPLERS
from diffusion_core.training.coupling import COUPLINGS
from diffusion_core.training.path_noise import PATH_NOISES
from diffusion_core.training.targets import METHODS
from experiments.config.schema import MODELS, SCHEMAS
from experiments.config.synonyms import other_name
from experiments.features import FEATURES
from experiments.runtime.options import CONFIGS
from experiments.sampling.plans import shared_options

__all__ = [
    "RENAMED_KEYS",
    "check_renamed",
    "group_functions",
    "key_hint",
    "known_keys",
    "named_functions",
    "nearest_key",
    "register_options",
]

# Keys of earlier versions, with their present names.
RENAMED_KEYS: Mapping[str, str] = {
    "a": "runs=[RUN,RUN]",
    "b": "runs=[RUN,RUN]",
    "compared": "max_compared",
    "data.stand_in": "data.fallback",
    "ema.beside": "ema.extra",
    "likelihood.law": "likelihood.distribution",
    "model.attention_sizes": "model.attention_resolutions",
    "model.blocks_per_level": "model.blocks_per_resolution",
    "model.multipliers": "model.channel_multipliers",
    "pictures": "save_images",
    "process.drop_label": "process.label_dropout",
    "process.levels": "process.timestep_sampling",
    "sampler.guidance": "sampler.guidance_scale",
    "tolerance": "max_unreadable",
    "trainer.most_skipped": "trainer.max_skipped",
    "within": "max_distance",
}

# By configuration group: the functions whose keyword arguments are the options of that group.
_OPTIONS: dict[str, Mapping[str, Callable[..., Any]]] = {
    "data.options": DATASETS,
    "ema": PROFILES,
    "optimiser": OPTIMISERS,
    "objective": METHODS,
    "features": FEATURES,
    "process.coupling": COUPLINGS,
    "process.path_noise": PATH_NOISES,
    "process.schedule": SCHEDULES | CONTINUOUS | LISTED,
    "process.timestep_sampling": TIMESTEP_SAMPLERS,
    "process.weighting": WEIGHTINGS,
    "sampler": SAMPLERS,
}


def register_options(group: str, functions: Mapping[str, Callable[..., Any]]) -> None:
    """Add the functions that a command selects by name with the configuration group `group`.

    The names of their arguments become known keys, as ``mode.strength`` for the group ``mode``.
    """
    _OPTIONS[group] = functions
    known_keys.cache_clear()


def group_functions(group: str) -> list[Callable[..., Any]]:
    """Return the functions whose keyword arguments are the options of a configuration group."""
    return list(named_functions(group).values())


def named_functions(group: str) -> Mapping[str, Callable[..., Any]]:
    """Return the functions that a configuration group selects, by the name that selects them."""
    return _OPTIONS.get(group, {})


def check_renamed(overrides: list[str]) -> None:
    """Refuse overrides that use a key of an earlier version.

    Args:
        overrides: command-line arguments such as ``sampler.guidance=2``; flags are ignored.

    Raises:
        DuetError: naming the present key.
    """
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        for old, new in RENAMED_KEYS.items():
            if key == old or key.startswith(f"{old}."):
                raise DuetError(f"{key}: this key was renamed; use {new}{key.removeprefix(old)}")


def nearest_key(key: str, command: str | None = None) -> str | None:
    """Return the new name of a renamed key, or the known key that is most like `key`.

    Args:
        key: such as ``trainer.bacth``.
        command: whose keys are known; None takes those of every command.

    Returns:
        None if nothing is similar, or if `key` itself is known: a key of another architecture is not misspelled.
    """
    if key in RENAMED_KEYS:
        return RENAMED_KEYS[key]
    known = known_keys(command)
    if key in known:
        return None
    if in_group := _in_nearest_group(key, known):
        return in_group
    if other := other_name(key, known):
        return other[0]
    last = key.rpartition(".")[2]
    moved = [other for other in known if other.rpartition(".")[2] == last]  # the right name in another group
    if "." in key:
        near = difflib.get_close_matches(key, moved, n=1, cutoff=0.0)
    else:
        near = sorted(moved, key=lambda other: (not other.startswith("trainer."), other))
    near = near or difflib.get_close_matches(key, known, 1, 0.75)
    if not near and "." not in key:  # without its group and misspelled
        names = sorted({other.rpartition(".")[2] for other in known})
        close = difflib.get_close_matches(key, names, 1, 0.75)
        near = [other for other in known if close and other.rpartition(".")[2] == close[0]]
        near.sort(key=lambda other: (not other.startswith("trainer."), other))
    near = near or difflib.get_close_matches(key, known, 1, 0.5)
    return near[0] if near else None


def _in_nearest_group(key: str, known: Sequence[str]) -> str | None:
    """Return the key in the group that its own, which does not exist, is most like; None if it is not a key there."""
    group, dot, rest = key.partition(".")
    groups = {other.partition(".")[0] for other in known}
    is_group = group in groups or any(key in known_keys(name) for name in SCHEMAS)  # of this command, or of another
    near = difflib.get_close_matches(group, groups, 1, 0.85) if dot and not is_group else []
    if not near:
        return None
    found = f"{near[0]}.{rest}"
    is_table = not any(other.startswith(f"{near[0]}.") for other in known)  # of any keys
    return found if found in known or is_table else None


def key_hint(key: str, command: str | None = None) -> str:
    """Return the sentence that offers the key nearest to one that does not exist, or nothing.

    Args:
        key: as typed.
        command: whose keys are known; None takes those of every command.
    """
    has_group = key.rpartition(".")[0] in known_keys(command)
    if has_group and key not in RENAMED_KEYS and (choices := _choices_with(key)):
        return f" It is an option of {join_some(choices, 6)}."
    near, other = nearest_key(key, command), other_name(key, known_keys(command))
    others = [name for name in sorted(SCHEMAS) if name != command and key in known_keys(name)] if command else []
    if others and not other and ("." in key or near is None or near.rpartition(".")[2] != key):
        return f" It is a key of {join_some(others, 6)}."  # what is most like it here has another meaning
    if near is None:
        return ""
    note = other[1] if other and other[0] == near else ""
    near = "from" if near == "from_run" else near
    return f" Did you mean {near} ({note})?" if note else f" Did you mean {near}?"


def _choices_with(key: str) -> list[str]:
    """Return the choices of a group whose file has this option, as in ``optimiser=sgd`` for ``optimiser.momentum``;
    of the networks, the architectures with this key.
    """
    group, _, option = key.rpartition(".")
    if group == "model":
        return [f"architecture {name!r}" for name, schema in MODELS.items() if option in schema.__dataclass_fields__]
    files = sorted((CONFIGS / group).glob("*.yaml")) if group else []
    texts = {file.stem: file.read_text(encoding="utf-8") for file in files}
    return [f"{group}={name}" for name, text in texts.items() if re.search(rf"^{re.escape(option)}:", text, re.M)]


@functools.cache
def known_keys(command: str | None = None) -> tuple[str, ...]:
    """Return every key of a command, or of all; with those of every architecture and of the registered groups."""

    def walk(node: Any, path: str) -> list[str]:
        if not OmegaConf.is_dict(node):
            return [path]
        below = [key for name in node for key in walk(node._get_node(name), f"{path}.{name}" if path else name)]
        return [path, *below]

    schemas = [SCHEMAS[command]] if command in SCHEMAS else SCHEMAS.values()
    keys = {key for schema in schemas for key in walk(OmegaConf.structured(schema), "") if key}
    groups = {key for key in keys if "." not in key}
    more = {key for schema in MODELS.values() for key in walk(OmegaConf.structured(schema), "model")}
    for group, functions in _OPTIONS.items():
        more |= {f"{group}.{option}" for f in functions.values() for option in inspect.signature(f).parameters}
    more |= {f"metrics.{name}.{option}" for name, metric in METRICS.items() for option in metric_options(metric)}
    more |= {f"sampler.{option}" for option in shared_options()}
    if command in (None, "train"):
        keys |= {"hydra.run.dir", "experiment", "debug", "hparams_search"}  # of Hydra, and groups without keys
    return tuple(sorted(keys | {key for key in more if key.split(".")[0] in groups}))
