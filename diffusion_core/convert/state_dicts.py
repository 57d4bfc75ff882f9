"""The state dict of a network inside a file that holds more: prefixes, nested mappings, lists, moving averages.

A reader joins the names of nested mappings and lists by points, so that ``{"model": {"conv.weight": w}}`` and
``{"model.conv.weight": w}`` are the same file. A network then stands under a *prefix*, which is found without a list
of known ones: each format has one name that all of its networks have, its *anchor*, and whatever precedes the anchor
is a prefix. What a wrapper writes into the middle of names (`torch.compile`, FSDP) is removed first.

    one prefix                              it is taken
    two, one of them a moving average       weights and average, in one import
    more                                    refused with the prefixes; source.key=ema chooses

Two forms of moving averages have no names of their own:

    shadow_params.0 .. N-1     a list in the order of the parameters (torch_ema, score_sde)
    model_ema.<name>           the names without their points (LitEma of latent-diffusion)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import join_some
from diffusion_core.convert.names import Arrays, NameMap, read_weights
from diffusion_core.networks import Program
from diffusion_core.networks.weights import Weights

__all__ = ["ANCHORS", "StateDicts", "choose_state_dicts", "read_both"]

# By format: a name that all of its networks have, and those of no other format. Two of them are source=diffusers.
ANCHORS = {
    "diffusers": "time_embedding.linear_1.weight",
    "diffusers_dit": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.weight",
    "guided_diffusion": "input_blocks.0.0.weight",
    "ddpm_torch": "temb.dense.0.weight",
    "edm": "map_layer0.weight",
    "edm2": "unet.emb_noise.weight",
    "dome272": "inc.double_conv.0.weight",
    "denoising_diffusion_pytorch": "init_conv.weight",
    "dit": "x_embedder.proj.weight",
    "uvit": "mid_block.norm1.weight",
    "jit": "x_embedder.proj1.weight",
}
_WRAPPERS = re.compile(r"(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AVERAGE = re.compile(r"ema|averag|shadow|polyak|(^|_)swa", re.IGNORECASE)
_BUFFERS = (".resample_filter", ".freqs", ".running_mean", ".running_var", ".num_batches_tracked")
_SHOWN = 8


@dataclass(frozen=True, eq=False)
class StateDicts:
    """The arrays of one network, without their prefix.

    Args:
        weights: by the names of the format.
        average: their moving average, or None.
        prefix: what preceded their names.
        note: where they stood in the file, for the terminal; empty if nowhere special.
        source: what errors call the weights: the file, and the prefix if there is one.
        average_source: what errors call the moving average.
    """

    weights: Arrays
    average: Arrays | None
    prefix: str
    note: str
    source: str
    average_source: str

    @property
    def averaged(self) -> tuple[Arrays, str]:
        """What a file of a moving average holds, and what errors call it: the average, or else its only network."""
        return (self.weights, self.source) if self.average is None else (self.average, self.average_source)


def choose_state_dicts(
    arrays: Arrays,
    format: str,
    what: str,
    source: str,
    key: str | None = None,
    known: Iterable[str] = (),
    averages: Iterable[str] = (),
) -> StateDicts:
    """Return the state dict of a network, and that of its moving average, among the arrays of a file.

    Args:
        arrays: all arrays of the file.
        format: a key of `ANCHORS`.
        what: what the file should be, for errors, as in "a state dict of SongUNet".
        source: what errors call the file.
        key: a part of the prefix, as in "ema"; None decides as the module says.
        known: names outside the state dicts that the caller reads itself.
        averages: prefixes of moving averages that no word names as such.

    Raises:
        DuetError: if there is none, or several of which none was chosen.
    """
    arrays = {_WRAPPERS.sub(r"\1", name): array for name, array in arrays.items()}
    anchor = ANCHORS[format]
    found = _prefixes(arrays, anchor)
    if not found:
        others = [f"source={name.removesuffix('_dit')}" for name, other in ANCHORS.items() if _prefixes(arrays, other)]
        hint = f"; its names are those of {' or '.join(others)}" if others else ""
        raise DuetError(f"{source}: {anchor} is missing; this is not {what}{hint}; it holds {_describe(arrays)}")
    inner = {prefix: _below(arrays, prefix, found) for prefix in sorted(found, key=lambda p: (len(p), p))}
    chosen = _with_key(inner, key, source) if key is not None else _without_copies(inner)
    averaged = [prefix for prefix in chosen if _is_average(prefix) or prefix in averages]
    plain = [prefix for prefix in chosen if prefix not in averaged]
    if len(plain) == len(averaged) == 1:
        weights, average = plain[0], chosen[averaged[0]]
        at = averaged[0]
    elif len(chosen) == 1:
        weights = next(iter(chosen))
        at, average = _nameless_average(arrays, weights, chosen[weights]) if key is None else ("", None)
    else:
        options = " or ".join(f"source.key={prefix.rstrip('.')}" for prefix in chosen)
        raise DuetError(f"{source}: it holds {len(chosen)} networks; choose one with {options}")
    return StateDicts(
        chosen[weights],
        average,
        weights,
        _note(weights, at if average is not None else None, set(arrays) - set(known)),
        f"{source}, {weights.rstrip('.')}" if weights else source,
        f"{source}, {at.rstrip('.')}",
    )


def read_both(
    names: NameMap, program: Program, found: StateDicts, second: StateDicts | None = None
) -> tuple[Weights, Weights | None]:
    """Return the weights and their moving average, which is that of a second file if there is one, or None."""
    weights = read_weights(names, program, found.weights, found.source)
    average, source = (found.average, found.average_source) if second is None else second.averaged
    return weights, None if average is None else read_weights(names, program, average, source)


def _prefixes(arrays: Arrays, anchor: str) -> set[str]:
    return {name.removesuffix(anchor) for name in arrays if name == anchor or name.endswith(f".{anchor}")}


def _below(arrays: Arrays, prefix: str, prefixes: Iterable[str]) -> dict[str, NDArray]:
    """Return the arrays under a prefix, except those under a longer one that starts with it."""
    longer = tuple(p for p in prefixes if p != prefix and p.startswith(prefix))
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix) and not name.startswith(longer)
    }


def _with_key(inner: Mapping[str, Arrays], key: str, source: str) -> dict[str, Arrays]:
    """Return the state dicts whose prefix contains a key as whole words between points."""
    exact = {prefix: inner[prefix] for prefix in inner if prefix.rstrip(".") == key.rstrip(".")}
    chosen = exact or {prefix: inner[prefix] for prefix in inner if f".{key.rstrip('.')}." in f".{prefix}"}
    if not chosen:
        places = ", ".join(prefix.rstrip(".") or "(no prefix)" for prefix in inner)
        raise DuetError(f"source.key: {key!r} was given, but {source} holds networks only under: {places}")
    return chosen


def _without_copies(inner: Mapping[str, Arrays]) -> dict[str, Arrays]:
    """Leave out what has the same bits as one before it, such as the copy that an averaging wrapper keeps."""
    chosen: dict[str, Arrays] = {}
    for prefix, arrays in inner.items():
        same_kind = (other for p, other in chosen.items() if _is_average(p) == _is_average(prefix))
        if not any(_equal(arrays, other) for other in same_kind):
            chosen[prefix] = arrays
    return chosen


def _equal(a: Arrays, b: Arrays) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def _is_average(prefix: str) -> bool:
    words = prefix.rstrip(".").split(".")
    return any(map(_AVERAGE.search, words)) and not any("online" in word for word in words)


def _nameless_average(arrays: Arrays, prefix: str, weights: Arrays) -> tuple[str, dict[str, NDArray] | None]:
    """Return (where it stands, the moving average) if it is a list of arrays or has names without points."""
    # A list holds parameters alone, not constants and running statistics.
    parameters = [name for name in weights if not name.endswith(_BUFFERS)]
    for first in [name for name in arrays if name.endswith("shadow_params.0")]:
        at = first.removesuffix("0")
        for names in (list(weights), parameters):
            shadow = [arrays.get(f"{at}{i}") for i in range(len(names) + 1)]
            has_shapes = all(
                b is not None and weights[name].shape == b.shape for name, b in zip(names, shadow, strict=False)
            )
            if has_shapes and shadow[-1] is None:
                return at, {**weights, **dict(zip(names, shadow, strict=False))}
    root, _, rest = prefix.partition(".")
    for at in ("model_ema.", f"{root}_ema."):
        squeezed = {name: arrays.get(at + (rest + name).replace(".", "")) for name in weights}
        if all(value is not None for value in squeezed.values()):
            return at, squeezed
    return "", None


def _note(weights: str, average: str | None, names: Iterable[str]) -> str:
    note = f", read under {weights.rstrip('.')}" if weights else ""
    note += f", with its moving average under {average.rstrip('.')}" if average is not None else ""
    if not weights:
        return note
    taken = (weights, average or weights)
    rest = sorted({name.split(".")[0] for name in names} - {prefix.split(".")[0] for prefix in taken})
    return note + (f"; not read: {', '.join(rest[:_SHOWN])}" if rest else "")


def _describe(arrays: Arrays) -> str:
    """Return the first words of all names, or the first names where there is one word."""
    words = list(dict.fromkeys(name.split(".")[0] for name in arrays))
    words = words if len(words) > 1 else list(arrays)
    return join_some(words, _SHOWN) or "nothing"
