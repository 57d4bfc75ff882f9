"""Corrupt files by the thousand, and judge what a reader makes of them.

    python tests/core/mutations.py 2000 [SEED] [NAME ...]

Every mutation is a function of (seed, number), so one that breaks something is found again by its number. It is applied
to a fresh copy of files that Duet wrote. The reader may answer in two ways only::

    refused     a DuetError of one line that names the file
    equal       exactly the content that was written

or, where no hash covers the changed bytes, or the mutation also corrected the hash, in a third way::

    sound       other content of the right kind: finite weights of the network's shapes, uint8 images with labels

Everything else is a fault: another exception, a message of several lines or without the file name, content of the wrong
kind, a file written or a program started. Needing more than `MEMORY` bytes or `SECONDS` seconds is a fault as well; the
system then ends the process, and the last line printed names the mutation.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_core.backend import reference
from diffusion_core.backend.interface import TrainBatch, TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.convert.arrays import read_arrays, read_config
from diffusion_core.data import Dataset, Loader
from diffusion_core.data.archives import read_packed, read_tar_members
from diffusion_core.data.sources.arrays import array, npz
from diffusion_core.data.store import open_store, read_names, save_store
from diffusion_core.diffusion.timestep_sampling import LossHistory
from diffusion_core.files.atomic import pack_safetensors
from diffusion_core.files.safe_read import read_json
from diffusion_core.metrics.files import read_sample_set
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec
from diffusion_core.optim import make_profile
from diffusion_core.optim.adam import Adam
from diffusion_core.parity.compare import load_arrays, load_checks
from diffusion_core.runs import checkpoint as checkpoints
from diffusion_core.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from diffusion_core.runs.ema_snapshots import find_snapshots, save_snapshots
from diffusion_core.runs.failure_bundle import load_bundle, save_bundle
from diffusion_core.runs.run_directory import read_metrics, read_samples, write_json, write_samples
from diffusion_core.training.events import NonFiniteStep
from diffusion_core.training.loop import make_batch
from diffusion_core.training.objective import Objective

SECONDS, MEMORY = 20, 1 << 30
MODEL = DiffusionModel(
    UNetSpec(4, 1, 1, 4, (1,), 1, (), middle_attention=False, norm_groups=2), {"name": "linear", "T": 10}, "eps"
)


@dataclass(frozen=True)
class Target:
    """Files that Duet writes and reads back.

    Args:
        make: writes them into an empty directory.
        read: reads that directory and returns plain data and arrays.
        sound: returns whether content other than what was written is of the right kind.
        sealed: whether hashes or checksums cover the whole content.
        reseal: corrects the hashes of a directory whose content was changed, as an attacker would.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    sound: Callable[[Any], bool]
    sealed: bool = False
    reseal: Callable[[Path], None] = lambda root: None


_LABELS = np.arange(6, dtype=np.int32) % 3

# Files to corrupt: how each is written and read.


@cache
def _weights(part: str) -> dict[str, np.ndarray]:
    drawn = {p.name: Stream(0, f"{part}/{p.name}").normal([0], p.shape)[0] for p in MODEL.program.parameters}
    return {name: np.abs(value).astype(np.float32) for name, value in drawn.items()}


def _state() -> TrainerState:
    return TrainerState(
        _weights("weights"), (_weights("ema"),), {part: _weights(part) for part in ("moment1", "moment2")}, 10
    )


def _make_checkpoint(root: Path) -> None:
    history = LossHistory(np.ones((10, 2)), np.full(10, 2, np.int64))
    save_checkpoint(root, Checkpoint(1280, MODEL, 3, _state(), {"backend": "torch"}, history))


def _read_checkpoint(root: Path) -> Any:
    found = load_checkpoint(root)
    return found.images_seen, found.seed, found.state.updates, found.model, dict(found.notes), found.state.parts


def _sound_checkpoint(found: Any) -> bool:
    images_seen, seed, updates, model, _, parts = found
    shapes = {p.name: p.shape for p in model.program.parameters}
    counts = all(type(x) is int and x >= 0 for x in (images_seen, seed, updates))
    return counts and all(
        {name: value.shape for name, value in part.items()} == shapes
        and all(np.isfinite(value).all() and value.dtype.kind == "f" for value in part.values())
        for part in parts.values()
    )


def _reseal_checkpoint(root: Path) -> None:
    """Correct the hashes of the files, and that of state.json itself, as far as the files still exist."""
    for file in root.glob("*/state.json"):
        state = json.loads(file.read_text())
        state["files"] = {
            name: hashlib.sha256((file.parent / name).read_bytes()).hexdigest() for name in state["files"]
        }
        state["sha256"] = checkpoints.hash_entries(state)
        file.write_text(json.dumps(state))


def _make_bundle(root: Path) -> None:
    loader = Loader(Dataset(_images()[:, :4, :4, :1], np.zeros(6, int), ("a",), "toy"), seed=3)
    step = NonFiniteStep(1280, 4, 10, 1e-3, (0.9,), math.inf, math.nan)
    batch = make_batch(loader, Objective(MODEL.process, seed=3), 1280, 4)
    notes = {"backend": "torch", "precision": "float32"}
    save_bundle(root, step, MODEL, 3, _state(), batch, Adam(), "mse", notes)


def _read_bundle(root: Path) -> Any:
    (path,) = root.iterdir()
    found = load_bundle(path)
    moment, facts = found.moment, (found.optimiser, found.distance, found.lr, found.decays, found.loss, found.grad_norm)
    return moment.images_seen, moment.model, dict(moment.notes), moment.state.parts, found.batch.arrays, facts


def _sound_bundle(found: Any) -> bool:
    """Return whether the step of the bundle can be computed."""
    _, model, notes, parts, arrays, (_, distance, *_) = found
    with np.errstate(all="ignore"):
        values = reference.activations(model.program, parts["weights"], TrainBatch(**arrays), distance)
    return {type(notes[name]) for name in ("backend", "precision")} == {str} and values["losses"].shape == (4,)


def _reseal_bundle(root: Path) -> None:
    _reseal_checkpoint(root)
    for file in root.glob("*/step.json"):
        content, step = (file.parent / "batch.safetensors").read_bytes(), json.loads(file.read_text())
        step |= {"batch_sha256": hashlib.sha256(content).hexdigest(), "batch_bytes": len(content)}
        file.write_text(json.dumps(step | {"sha256": checkpoints.hash_entries(step)}))


def _make_snapshots(root: Path) -> None:
    profiles = (make_profile(name="power", sigma_rel=0.1),)
    for updates in (1, 2):
        state = replace(_state(), updates=updates)
        save_snapshots(root, 8 * updates, state, profiles, 8, MODEL, 3)


def _read_snapshots(root: Path) -> Any:
    return [(one.images_seen, one.updates, one.profile, one.seed, one.weights()) for one in find_snapshots(root)]


def _sound_snapshots(found: Any) -> bool:
    """Return whether every snapshot that is still found is complete; some may be missing."""
    return all(
        seen == 8 * updates and updates in (1, 2) and seed == 3 and plain(weights) == plain(_weights("ema"))
        for seen, updates, _, seed, weights in found
    )


def _images(count: int = 6) -> np.ndarray:
    return (Stream(0, "pictures").bits(range(count), 8 * 8 * 3) >> 24).reshape(count, 8, 8, 3).astype(np.uint8)


def _make_store(root: Path) -> None:
    save_store(Dataset(_images(), _LABELS, ("a", "b", "c"), "toy"), root / "store")
    (root / "store" / "names.txt").write_text("".join(f"image number {k}\n" for k in range(6)))


def _read_store(root: Path) -> Any:
    found = open_store(root / "store")
    names = read_names(root / "store", len(found))
    return np.array(found.images), found.labels, found.class_names, len(names) == len(found) and all(map(str, names))


def _sound_store(found: Any) -> bool:
    """Compare everything but the names of images, which the hash does not cover."""
    images, labels, class_names, names = found
    return names and plain([images, labels, class_names]) == plain([_images(), _LABELS, ("a", "b", "c")])


def _make_samples(root: Path) -> None:
    write_samples(root / "samples.npz", _images(), np.arange(6), plan="ddim", seed=1)


def _sound_samples(found: Any) -> bool:
    images, labels, facts = found
    return images.dtype == np.uint8 and images.ndim == 4 and len(labels) == len(images) and isinstance(facts, dict)


def _read_features(root: Path) -> Any:
    found = read_sample_set(root / "samples.npz")
    return dict(found.arrays)


def _make_trace(root: Path) -> None:
    np.savez_compressed(root / "float64.npz", **_weights("weights"), **{"a/b": np.arange(5.0), "text": np.array("x")})
    check = {"rung": 0, "name": "x", "precision": "float64", "backend": "b", "error": 0.0, "tolerance": 1.0, "unit": ""}
    write_json(root / "float64.json", {"checks": [check, check]})


def _make_metrics(root: Path) -> None:
    lines = [{"images_seen": 8 * k, "loss": 1 / (k + 1), "grad_norm": 0.5, "lr": 1e-3} for k in range(1, 9)]
    (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _sound_metrics(lines: Any) -> bool:
    return all(
        type(line["images_seen"]) is int and all(type(x) in (int, float) for x in line.values()) for line in lines
    )


def _make_facts(root: Path) -> None:
    write_json(root / "result.json", {"objective": 0.1, "evaluation": {"numbers": {}}, "list": [1, [2, {"x": None}]]})


def _make_config(root: Path) -> None:
    text = "seed: 0\nprecision: float32\nbackend: {name: torch, title: PyTorch}\nmodel:\n  classes: 10\n  rate: 1e-3\n"
    (root / "config.yaml").write_text(text)


def _read_stored(root: Path) -> Any:

    from experiments.config.safe_yaml import read_config

    return read_config(root / "config.yaml")


def _make_arrays(root: Path) -> None:
    (root / "a.safetensors").write_bytes(pack_safetensors(_weights("weights"), {"format": "pt"}))
    np.savez(root / "b.npz", **_weights("ema"))
    (root / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", "sample_size": 4, "act_fn": "silu"}))


def _read_foreign(root: Path) -> Any:
    def never(path: Path) -> Any:
        raise DuetError(f"{path}: no framework is available")

    return *(read_arrays(root / name, never) for name in ("a.safetensors", "b.npz")), read_config(root / "config.json")


def _make_data(root: Path) -> None:
    np.savez_compressed(root / "d.npz", images=_images(), labels=np.arange(6))
    np.save(root / "d.npy", _images())


def _read_data(root: Path) -> Any:
    sources = npz(root / "d.npz")["all"], array(root / "d.npy")["all"]
    return [(np.array(source.images), np.array(source.labels)) for source in sources]


def _make_archives(root: Path) -> None:
    import gzip
    import tarfile

    (root / "images.gz").write_bytes(gzip.compress(_images().tobytes(), mtime=0))
    with tarfile.open(root / "batches.tar.gz", "w:gz") as archive:
        for k in range(3):
            member = tarfile.TarInfo(f"folder/batch_{k}.bin")
            member.size = 1000
            archive.addfile(member, io.BytesIO(_images().tobytes()[1000 * k :][:1000].ljust(1000)))


def _read_archives(root: Path) -> Any:
    found, names = read_tar_members(
        "toy", root / "batches.tar.gz", lambda name: name.endswith(".bin"), "it must be an archive"
    )
    return read_packed("toy", root / "images.gz"), found, sorted(names)


def _always(found: Any) -> bool:
    return True


TARGETS = {
    "checkpoint": Target(_make_checkpoint, _read_checkpoint, _sound_checkpoint, True, _reseal_checkpoint),
    "bundle": Target(_make_bundle, _read_bundle, _sound_bundle, True, _reseal_bundle),
    "snapshots": Target(_make_snapshots, _read_snapshots, _sound_snapshots),
    "store": Target(_make_store, _read_store, _sound_store),
    "samples": Target(_make_samples, lambda root: read_samples(root / "samples.npz"), _sound_samples),
    "features": Target(_make_samples, _read_features, lambda arrays: arrays["images"].dtype == np.uint8),
    "trace": Target(
        _make_trace, lambda root: (load_arrays(root / "float64.npz"), load_checks(root / "float64.json")),
        lambda found: all(math.isfinite(c.tolerance) or c.tolerance > 0 for c in found[1]),
    ),
    "metrics": Target(_make_metrics, lambda root: list(read_metrics(root / "metrics.jsonl")), _sound_metrics),
    "facts": Target(_make_facts, lambda root: read_json(root / "result.json"), _always),
    "config": Target(_make_config, _read_stored, lambda found: isinstance(found, dict)),
    "foreign": Target(_make_arrays, _read_foreign, _always),
    "data": Target(_make_data, _read_data, lambda found: all(p.dtype == np.uint8 for p, _ in found)),
    "archives": Target(_make_archives, _read_archives, _always),
}  # fmt: skip


# Mutations: each changes a file by numbers of a stream. Malicious ones create the file `evil` if their code is run.

Draw = Callable[[int], int]  # returns a whole number below its argument

_LEAVES = (
    None, True, False, -1, 0, 3, 2**31, 2**63, 2**70, 1e308, -1e-300, math.nan, math.inf, "", "x",
    "../../../etc/passwd", "/etc/passwd", "a\0b", "line\nline", "\ud800", "é" * 300, "x" * 100_000, [], {},
    [[]], {"": {}}, [1] * 1000, "images-../../x.npy", "images-00000.npy", "weights", "1", 1.5, [-1],
    {"_target_": "os.system"}, "${oc.env:HOME}",
)  # fmt: skip
_BYTES = (
    b"", b"\0", b"\xff" * 8, b"\0" * 64, b"{" * 5000, b"[" * 100_000, b'{"a":' * 20_000, b"- " * 5000, b"\xef\xbb\xbf",
    b"&a [*a, *a]", b"!!python/object/apply:os.system ['touch {evil}']", b"? ? ? ", b"a: &a [x,x]\nb: *a\n", b"PK\3\4",
    b"\x93NUMPY\1\0", b"\x80\x04", b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"null", b"'", b'"', b"\\ud800", b"\n",
    b"\r", b",", b"}", b"]", b":", b"%", b"\x1f\x8b", b"\xff\xfe",
)  # fmt: skip


def _in_bytes(change: Callable[[bytes, Draw], bytes]) -> Callable[[Path, Draw, Path], None]:
    def mutate(file: Path, draw: Draw, evil: Path) -> None:
        file.write_bytes(change(file.read_bytes(), draw))

    return mutate


def _flip_bits(data: bytes, draw: Draw) -> bytes:
    changed = bytearray(data)
    for _ in range(1 + draw(3)):
        changed[draw(len(changed))] ^= 1 << draw(8)
    return bytes(changed)


def _change_head(data: bytes, draw: Draw) -> bytes:
    """Change bytes where headers are: at the start of a file, or at the end of a zip archive."""
    changed = bytearray(data)
    for _ in range(1 + draw(4)):
        position = draw(min(len(data), 400))
        changed[position if draw(2) else len(data) - 1 - position] = draw(256)
    return bytes(changed)


def _insert_bytes(data: bytes, draw: Draw) -> bytes:
    position, inserted = draw(len(data) + 1), _BYTES[draw(len(_BYTES))]
    return data[:position] + inserted + data[position + (draw(2) and draw(20)) :]


def _copy_range(data: bytes, draw: Draw) -> bytes:
    a, b, length = draw(len(data)), draw(len(data)), draw(64)
    return data[:a] + data[b : b + length] + data[a + length :]


def _in_json(file: Path, draw: Draw, evil: Path) -> None:
    """Change a value, or remove, rename or repeat a key somewhere in a JSON file."""
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    position = draw(len(lines))
    lines[position] = _change_json(lines[position], draw)
    file.write_text("\n".join(lines), errors="surrogatepass")


def _change_json(text: str, draw: Draw) -> str:
    data = json.loads(text)
    entries: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            entries.append((node, key))
            walk(node[key])

    walk(data)
    if not entries:
        return json.dumps(_LEAVES[draw(len(_LEAVES))])
    node, key = entries[draw(len(entries))]
    way = draw(8)
    if way == 0 and isinstance(node, dict):
        del node[key]
    elif way == 1 and isinstance(node, dict):
        node[f"{key} "] = node.pop(key)
    elif way == 2 and isinstance(node[key], int | float):
        node[key] = node[key] * (-1, 2, 10**6, 10**12)[draw(4)]
    elif way == 3 and isinstance(node, dict):
        return _repeat_key(json.dumps(data), str(key))
    else:
        node[key] = _LEAVES[draw(len(_LEAVES))]
    return json.dumps(data)


def _repeat_key(text: str, key: str) -> str:
    """Insert a key a second time, with another value, in front of its first occurrence."""
    word = json.dumps(key)
    return text.replace(f"{word}:", f"{word}: 0, {word}:", 1)


def _in_header(file: Path, draw: Draw, evil: Path) -> None:
    """Change shapes, types, offsets or the length in the header of a safetensors file."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    if not draw(5):
        file.write_bytes(struct.pack("<Q", (2**63, 2**40, 0, 1, length - 1, 99_999_999)[draw(6)]) + data[8:])
        return
    header = _change_json(data[8 : 8 + length].decode(), draw).encode("utf-8", "surrogatepass")
    file.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])


def _with_numbers(file: Path, draw: Draw, evil: Path) -> None:
    """Put NaN, infinities or wrong types into the arrays of an otherwise valid file."""
    from safetensors.numpy import load

    arrays = dict(np.load(file)) if file.suffix == ".npz" else load(file.read_bytes())
    names = sorted(arrays)
    name = names[draw(len(names))]
    value = arrays[name]
    way = draw(6)
    if value.dtype.kind == "f" and value.size and way < 3:
        value = value.copy()
        value.reshape(-1)[draw(value.size)] = (np.nan, np.inf, -np.inf)[way]
    elif value.dtype.kind in "fiu":
        value = value.astype((np.int8, np.float16, np.complex64 if file.suffix == ".npz" else np.int64)[way % 3])
    arrays[name] = value
    if not draw(4):
        arrays[names[draw(len(names))]] = np.zeros((0, 3), np.float32)
    if file.suffix == ".npz":
        np.savez(file, **arrays)
    else:
        file.write_bytes(pack_safetensors(arrays))


_DESCRIPTIONS = ("|O", "<f4", "|V0", "<U0", "|S0", "|b1", "<U1000000000", "<c16", "<M8[s]", "('f4', (100000,))", "x")
_SHAPES = ("(2**70,)", "(1099511627776,)", "(-1,)", "()", "(3, -3)", "(0, 1099511627776)", "'x'", "(1.5,)", "((1,),)")


def _header(draw: Draw) -> bytes:
    """Return an invalid header of an array."""
    order, key = ("True", "False", "1", "None")[draw(4)], ("shape", "'shape'")[bool(draw(9))]
    what, shape = _DESCRIPTIONS[draw(len(_DESCRIPTIONS))], _SHAPES[draw(len(_SHAPES))].replace("2**70", str(2**70))
    description = what if what.startswith("(") else f"'{what}'"
    text = f"{{'descr': {description}, 'fortran_order': {order}, {key}: {shape}, }}"
    if not draw(6):
        text = ("-" * 9000 + "1", "(" * 3000, "__import__('os').system('x')", "{" * 9000)[draw(4)]
    version = ((1, 0), (2, 0), (3, 0), (9, 9))[draw(4)]
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text) if draw(5) else 65_000)
    return b"\x93NUMPY" + bytes(version) + length + text.encode()


def _in_npz(file: Path, draw: Draw, evil: Path) -> None:
    """Give an archive of arrays invalid headers, pickles, repeated names, paths as names, or far too much content."""
    if file.suffix == ".npy":
        file.write_bytes((_header(draw) + b"\1" * draw(200)) if draw(4) else _malicious_array(evil))
        return
    with zipfile.ZipFile(file) as archive:
        inside = [(name, archive.read(name)) for name in archive.namelist()]
    position, way = draw(len(inside)), draw(8)
    name, data = inside[position]
    if way < 3:
        inside[position] = name, _header(draw) + data[draw(200) :]
    elif way == 3:
        inside[position] = name, _malicious_array(evil)
    elif way == 4:
        inside.append((name, data))
    elif way == 5:
        inside[position] = ("../../" + name, f"/{name}", name.upper(), "\0.npy", "a" * 5000)[draw(5)], data
    elif way == 6:
        inside[position] = name, b"text" * draw(100)
    method = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)[
        draw(4) if 3 < way < 7 else 1
    ]
    with zipfile.ZipFile(file, "w", method, compresslevel=1) as archive:
        for name, data in inside:
            archive.writestr(_member(name), data, method, 1)
        if way == 7:
            archive.writestr("bomb.npy" if draw(2) else inside[position][0], _bomb())


def _member(name: str) -> zipfile.ZipInfo:
    """Return an archive member with exactly this name, which `zipfile` itself would cut at a NUL."""
    member = zipfile.ZipInfo()
    member.filename = name
    return member


@cache
def _bomb() -> bytes:
    """Return an array of 272 MiB of zeros, which deflate compresses to about 1 MiB."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (17 << 24,)})
    return file.getvalue() + bytes(17 << 24)


class _Malice:
    def __init__(self, evil: Path) -> None:
        self.evil = evil

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.evil}",)


def _malicious_array(evil: Path) -> bytes:
    """Return an array of objects whose pickle creates the file `evil` when it is unpickled."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    return file.getvalue() + pickle.dumps(_Malice(evil))


def _replace_by_pickle(file: Path, draw: Draw, evil: Path) -> None:
    """Replace a file by a pickle."""
    file.write_bytes(pickle.dumps(_Malice(evil)))


def _replace_by_other_kind(file: Path, draw: Draw, evil: Path) -> None:
    """Replace a file by a directory, a pipe, a link to another file, a file of a terabyte, or nothing."""
    way = draw(7)
    if way == 6:
        with open(file, "r+b") as opened:
            opened.truncate(1 << 40)
        return
    file.unlink()
    if way == 0:
        file.mkdir()
    elif way == 1:
        os.mkfifo(file)
    elif way in (2, 3, 4):
        file.symlink_to(("/dev/zero", "/etc/passwd", file.name)[way - 2])


def _swap_files(file: Path, draw: Draw, evil: Path) -> None:
    """Exchange two files."""
    others = sorted(path for path in file.parent.iterdir() if path.is_file())
    other = others[draw(len(others))]
    first, second = file.read_bytes(), other.read_bytes()
    file.write_bytes(second)
    other.write_bytes(first)


# By name: the suffixes of the files that the mutation applies to (empty for any file), and the function.
MUTATIONS: dict[str, tuple[tuple[str, ...], Callable[[Path, Draw, Path], None]]] = {
    "cut": ((), _in_bytes(lambda data, draw: data[: draw(len(data))])),
    "flip": ((), _in_bytes(_flip_bits)),
    "head": ((), _in_bytes(_change_head)),
    "splice": ((), _in_bytes(_insert_bytes)),
    "move": ((), _in_bytes(_copy_range)),
    "swap": ((), _swap_files),
    "json": ((".json", ".jsonl"), _in_json),
    "header": ((".safetensors",), _in_header),
    "numbers": ((".safetensors", ".npz"), _with_numbers),
    "npz": ((".npz", ".npy"), _in_npz),
    "pickle": ((), _replace_by_pickle),
    "thing": ((), _replace_by_other_kind),
}


# The judge.


def plain(value: Any) -> Any:
    """Return content in a form in which only bitwise equal content is equal."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return repr(value)


def judge(target: Target, root: Path, original: Any, resealed: bool, evil: Path) -> str:
    """Return how a reader answers to a corrupted directory: "refused", "equal", "sound", or a text from "fault" on."""
    before = sorted(str(path) for path in root.rglob("*"))
    answer = _answer(target, root, original, resealed)
    if evil.exists():
        return "fault: code was run"
    return answer if sorted(str(path) for path in root.rglob("*")) == before else "fault: files were written"


def _answer(target: Target, root: Path, original: Any, resealed: bool) -> str:
    try:
        found = target.read(root)
    except DuetError as error:
        message = str(error)
        if not message.isprintable() or str(root) not in message:
            return f"fault: its message is {message[:300]!r}"
        return f"fault: unbounded ({message})" if "memory" in message else "refused"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"fault: {type(error).__name__}: {str(error)[:300]}"
    if plain(found) == original:
        return "equal"
    if target.sealed and not resealed:
        return "fault: it is not the content that was written"
    return "sound" if target.sound(found) else "fault: it is of the wrong kind"


def run(targets: dict[str, Target], numbers: Iterable[int], seed: int, report: Callable[[str], None]) -> Counter[str]:
    """Apply and judge the mutations with these numbers; return the count of each answer."""
    answers: Counter[str] = Counter()
    names, kinds = list(targets), list(MUTATIONS)
    with tempfile.TemporaryDirectory() as scratch:
        evil, work, made = Path(scratch) / "evil", Path(scratch) / "work", Path(scratch) / "made"
        originals = {}
        for name, target in targets.items():
            (made / name).mkdir(parents=True)
            target.make(made / name)
            originals[name] = plain(target.read(made / name))
        for number in numbers:
            name, kind = names[number % len(names)], kinds[number // len(names) % len(kinds)]
            target, words = targets[name], iter(Stream(seed, "harms").bits([number], 4096)[0].tolist())
            shutil.copytree(made / name, work)

            def draw(below: int, words: Any = words) -> int:
                return next(words) % max(1, below)

            report(f"mutation {number}: {kind} of {name}")
            files = sorted(path for path in work.rglob("*") if path.is_file())
            suffixes, mutate = MUTATIONS[kind]
            fit = [path for path in files if not suffixes or path.suffix in suffixes]
            file, mutate = (fit[draw(len(fit))], mutate) if fit else (files[draw(len(files))], MUTATIONS["splice"][1])
            mutate(file, draw, evil)
            resealed = False
            if target.sealed and draw(2) and all(path.is_file() for path in files):  # reading a pipe would not end
                try:
                    target.reseal(work)
                    resealed = True
                except Exception:  # too corrupted to correct its hashes
                    pass
            signal.alarm(SECONDS)
            answer = judge(target, work, originals[name], resealed, evil)
            signal.alarm(0)
            answers[answer.split(":")[0]] += 1
            if answer.startswith("fault"):
                report(f"mutation {number}: {kind} of {name}{' resealed' * resealed}: {answer}")
            shutil.rmtree(work)
    return answers


def main(count: int, seed: int = 0, *names: str) -> int:
    """Apply and judge `count` mutations in bounded memory; print the faults, then the count of each answer."""
    faults = []
    with open(os.devnull, "w") as null:

        def report(line: str) -> None:
            print(line, file=sys.stderr if ": fault" in line else null, flush=True)
            if ": fault" in line:
                faults.append(line)
            else:
                last[:] = [line]

        last: list[str] = []
        targets = {name: TARGETS[name] for name in names or TARGETS}
        _bomb()
        warnings.simplefilter("ignore")  # zipfile warns of repeated names
        base = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (base + MEMORY, base + MEMORY))
        answers = run(targets, range(count), seed, report)
    print(json.dumps(dict(answers)))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3]), *sys.argv[3:]))
