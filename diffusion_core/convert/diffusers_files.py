"""The files that diffusers keeps the weights of one model in: one file or shards, in several variants.

    diffusion_pytorch_model.safetensors                        one file
    diffusion_pytorch_model.fp16.safetensors                   of the variant fp16
    diffusion_pytorch_model-00001-of-00007.safetensors         shards, whose index
    diffusion_pytorch_model.safetensors.index.json             says which array is in which shard
    diffusion_pytorch_model.fp16-00001-of-00007.safetensors    shards of a variant; until 2024 .fp16 came at the end,
    diffusion_pytorch_model.safetensors.index.fp16.json        as it still does in the index

`.bin` files, which PyTorch reads, have the same names. Files without a variant are the model itself and are taken where
they exist; of several variants without them, the user chooses one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.convert.arrays import Reader, describe_folder, read_arrays
from diffusion_core.files.safe_read import read_json

__all__ = ["WeightFiles", "current_name", "find_weight_files"]

# The names of attention layers until 2023, and the present ones.
_FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# The second stem is that of models saved by other libraries of the same authors.
_FILE = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>[\w-]+?))?"
    r"(?:-(?P<number>\d{5})-of-(?P<count>\d{5}))?(?:\.(?P<late>[\w-]+))?\.(?P<kind>safetensors|bin)"
)
_INDEX = re.compile(r"(?P<stem>\w+)\.(?P<kind>safetensors|bin)\.index(?:\.(?P<variant>[\w-]+))?\.json")


@dataclass(frozen=True)
class WeightFiles:
    """The files of one variant.

    Args:
        folder: where they are.
        files: their names, in order.
        variant: as in "fp16"; empty for the model itself.
        others: the other variants of the folder.
        index: the name of the index of shards, or None.
    """

    folder: Path
    files: tuple[str, ...]
    variant: str
    others: tuple[str, ...]
    index: str | None

    @property
    def source(self) -> str:
        """What errors call them."""
        return str(self.folder / (self.files[0] if len(self.files) == 1 else self.index or self.files[0]))

    @property
    def note(self) -> str:
        """Which files were taken, for the terminal; empty for the only file."""
        parts = [f"variant {self.variant}"] if self.variant else []
        parts += [f"{len(self.files)} shards"] if len(self.files) > 1 else []
        names = [name or "''" for name in self.others]
        parts += [f"source.variant={' or '.join(names)} is there too"] if names else []
        return f" ({', '.join(parts)})" if parts else ""

    def read(self, read: Reader) -> dict[str, NDArray]:
        """Return the arrays of all files.

        Raises:
            DuetError: if a file cannot be read, an array is in two of them, or the index names one that is in none.
        """
        arrays: dict[str, NDArray] = {}
        for name in self.files:
            part = read_arrays(self.folder / name, read)
            if twice := next((array for array in part if array in arrays), None):
                raise DuetError(f"{self.folder / name}: {twice} is in another shard too")
            arrays |= part
        if self.index is not None:
            content = read_json(self.folder / self.index)
            wanted = content.get("weight_map") if isinstance(content, dict) else None
            if not isinstance(wanted, dict):
                raise DuetError(f"{self.folder / self.index}: it has no weight_map; it is the index of the shards")
            if missing := [array for array in wanted if array not in arrays]:
                more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
                raise DuetError(f"{self.folder / self.index}: {missing[0]} is in none of the shards{more}")
        return arrays


def find_weight_files(folder: Path, variant: str | None = None) -> WeightFiles:
    """Return the weight files of a folder; safetensors before `.bin`.

    Args:
        folder: of one model.
        variant: as in "fp16"; None takes the model itself, or its only variant.

    Raises:
        DuetError: if there are none, several variants of which none was chosen, or a shard is missing.
    """
    variants: dict[str, dict[str, list[tuple[str, re.Match[str]]]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(folder.iterdir()):
        if (match := _FILE.fullmatch(file.name)) and not file.is_dir():
            name = match["variant"] or match["late"] or ""
            variants[name][match["kind"]].append((file.name, match))
    if not variants:
        raise DuetError(f"{folder}: there are no weights, as in {_EXAMPLE}; {describe_folder(folder)}")
    if variant is not None and variant not in variants:
        if set(variants) == {""}:
            raise DuetError(f"source.variant: {variant!r} was given, but {folder} has no variants; leave it out")
        raise one_of("source.variant", variant, [name or "''" for name in variants])
    if variant is None and "" not in variants and len(variants) > 1:
        names = " or ".join(f"source.variant={name}" for name in variants)
        raise DuetError(f"{folder}: there are weights of {len(variants)} variants; choose one with {names}")
    chosen = variant if variant is not None else "" if "" in variants else next(iter(variants))
    kinds = variants[chosen]
    kind = "safetensors" if "safetensors" in kinds else "bin"
    whole = [name for name, match in kinds[kind] if match["number"] is None]
    others = tuple(name for name in variants if name != chosen)
    if whole:
        # A library may leave its own file of another stem there; the stem of diffusers comes first.
        return WeightFiles(folder, (min(whole, key=lambda name: (not name.startswith("diffusion"), name)),),
                           chosen, others, None)  # fmt: skip
    index = next(
        (
            file.name
            for file in sorted(folder.iterdir())
            if (match := _INDEX.fullmatch(file.name)) and (match["kind"], match["variant"] or "") == (kind, chosen)
        ),
        None,
    )
    return WeightFiles(folder, _shards(folder, [match for _, match in kinds[kind]]), chosen, others, index)


_EXAMPLE = "diffusion_pytorch_model.safetensors"


def _shards(folder: Path, matches: list[re.Match[str]]) -> tuple[str, ...]:
    """Return the names of all shards in order, after checking that none is missing."""
    count = int(matches[0]["count"])
    names = {int(match["number"]): match.string for match in matches if int(match["count"]) == count}
    if missing := [number for number in range(1, count + 1) if number not in names]:
        raise DuetError(
            f"{folder}: shard {missing[0]} of {count} is missing"
            f"{f' (and {len(missing) - 1} more)' if len(missing) > 1 else ''}; {describe_folder(folder)}"
        )
    return tuple(names[number] for number in range(1, count + 1))


def current_name(name: str) -> str:
    """Return the name that present versions of diffusers give an array."""
    *module, leaf, parameter = name.split(".") if name.count(".") > 1 else ("", "", name)
    return ".".join([*module, _FORMER[leaf], parameter]) if ".attentions." in name and leaf in _FORMER else name
