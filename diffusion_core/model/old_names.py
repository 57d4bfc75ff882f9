"""Keys that earlier versions of Duet wrote under another name.

Checkpoints and run directories on disk keep the old names. A reader calls `with_new_names` once, right after it has
checked the file's hash, so that the rest of the code knows one name for each thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["NETWORK_KEYS", "OBJECTIVE_KEYS", "SAMPLER_KEYS", "notes_with_new_names", "with_new_names"]

# Options of a network, under `spec` in state.json and in the header of a snapshot.
NETWORK_KEYS = {
    "multipliers": "channel_multipliers",
    "blocks_per_level": "blocks_per_resolution",
    "attention_sizes": "attention_resolutions",
}
# Options of a sampler, under `notes.sampler` in state.json.
SAMPLER_KEYS = {"guidance": "guidance_scale"}
# Options of the training objective, under `notes.trained_for` in state.json.
OBJECTIVE_KEYS = {
    "process.levels": "process.timestep_sampling",
    "process.drop_label": "process.label_dropout",
}


def with_new_names(options: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Return `options` with every old key replaced by its new name.

    Example:
        >>> with_new_names({"guidance": 1.5, "steps": 25}, SAMPLER_KEYS)
        {'guidance_scale': 1.5, 'steps': 25}
    """
    return {renamed.get(key, key): value for key, value in options.items()}


def notes_with_new_names(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the notes of a checkpoint with the current names of its sampler's and its objective's options."""
    tables = {"sampler": SAMPLER_KEYS, "trained_for": OBJECTIVE_KEYS}
    return {
        key: with_new_names(value, tables[key]) if key in tables and isinstance(value, Mapping) else value
        for key, value in notes.items()
    }
