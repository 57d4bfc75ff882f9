"""Runs that somebody changed afterwards, with every hash made again, so that their records contradict nothing.

A change is found by computing the run again, and by nothing else. `CHANGES` has a function for each kind of change; it
takes the copy of a run and a random generator, and returns what it did.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file, save_file

from diffusion_core.runs.checkpoint import hash_entries, list_checkpoints
from diffusion_core.runs.manifest import MANIFEST, file_hash, metrics_hash

Generator = np.random.Generator


def rehash(run: Path) -> None:
    """Make every hash of a run again: of files, of checkpoints and metrics in the chain, and of the chain."""
    for path in list_checkpoints(run / "checkpoints"):
        state = json.loads((path / "state.json").read_text())
        state["files"] = {name: file_hash(path / name) for name in state["files"]}
        state["sha256"] = hash_entries(state)
        (path / "state.json").write_text(json.dumps(state, indent=2))
    entries, before, previous = read_entries(run), 0, None
    for number, entry in enumerate(entries):
        seen, folder = entry["images_seen"], run / "checkpoints" / f"{entry['images_seen']:012d}"
        state = entry if entry["kind"] == "checkpoint" else entry.get("state", {})
        if "files" in state and entry["kind"] != "end" and folder.is_dir():
            stored = json.loads((folder / "state.json").read_text())
            state.update(files=stored["files"], state_sha256=stored["sha256"], updates=stored["updates"])
        if entry["kind"] == "end":
            entry["files"] = {name: file_hash(run / name) for name in entry["files"]}
            entry["result"] = json.loads((run / "result.json").read_text())
        if "config" in entry and number == max(k for k, one in enumerate(entries) if "config" in one):
            entry["config"] = (run / "config.yaml").read_text()
            entry["environment"] = json.loads((run / "environment.json").read_text())
        entry["metrics"] = metrics_hash(run / "metrics.jsonl", before, seen)
        entry["number"], entry["previous"], before = number, previous, seen
        previous = entry["sha256"] = hash_entries(entry)
    write_entries(run, entries)


def read_entries(run: Path) -> list[dict[str, Any]]:
    """Return the entries of a manifest as plain data."""
    return [json.loads(line) for line in (run / MANIFEST).read_text().splitlines()]


def write_entries(run: Path, entries: list[dict[str, Any]]) -> None:
    """Write the entries of a manifest."""
    (run / MANIFEST).write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def _change_array(run: Path, random: Generator, parts: tuple[str, ...], scale: float | None = None) -> str:
    path = random.choice(list_checkpoints(run / "checkpoints"))
    file = path / f"{random.choice([p for p in parts if (path / f'{p}.safetensors').exists()])}.safetensors"
    arrays = load_file(file)
    name = random.choice(sorted(name for name, value in arrays.items() if value.size and value.dtype.kind == "f"))
    place = int(random.integers(arrays[name].size))
    value = arrays[name].reshape(-1)[place]
    moved = np.nextafter(value, np.inf, dtype=value.dtype) if scale is None else value + scale * (abs(value) + 1)
    arrays[name] = arrays[name].copy()
    arrays[name].reshape(-1)[place] = moved
    save_file(arrays, file)
    return f"{path.name}/{file.name}, {name}[{place}]: {value} to {moved}"


def change_a_weight(run: Path, random: Generator) -> str:
    """Change one weight of one checkpoint visibly."""
    return _change_array(run, random, ("weights",), 0.01)


def change_a_weight_by_one_unit(run: Path, random: Generator) -> str:
    """Change one weight of one checkpoint by one unit in the last place."""
    return _change_array(run, random, ("weights",))


def change_an_average(run: Path, random: Generator) -> str:
    """Change one number of a moving average, which samples are drawn with."""
    return _change_array(run, random, ("ema", "ema1"), 0.01)


def change_the_optimiser(run: Path, random: Generator) -> str:
    """Change one number that the optimiser keeps."""
    return _change_array(run, random, ("moment1", "moment2"), 0.01)


def change_a_metric(run: Path, random: Generator) -> str:
    """Make one logged number a little better."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    line = lines[int(random.integers(len(lines)))]
    name = str(random.choice(sorted(name for name, value in line.items() if isinstance(value, float))))
    line[name] *= 0.999
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return f"{name} at {line['images_seen']} images"


def skip_a_step(run: Path, random: Generator) -> str:
    """Leave one step out of the metrics."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    left = lines.pop(int(random.integers(len(lines))))
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return left


def exchange_checkpoints(run: Path, random: Generator) -> str:
    """Exchange the arrays of two checkpoints."""
    first, second = random.choice(list_checkpoints(run / "checkpoints"), 2, replace=False)
    for file in sorted(first.glob("*.safetensors")):
        one, other = file.read_bytes(), (second / file.name).read_bytes()
        file.write_bytes(other)
        (second / file.name).write_bytes(one)
    return f"{first.name} and {second.name}"


def put_an_earlier_checkpoint(run: Path, random: Generator) -> str:
    """Put the weights of one checkpoint in the place of those of another."""
    first, second = random.choice(list_checkpoints(run / "checkpoints"), 2, replace=False)
    (second / "weights.safetensors").write_bytes((first / "weights.safetensors").read_bytes())
    return f"weights of {first.name} in {second.name}"


def change_configuration(run: Path, values: dict[str, Any]) -> str:
    """Change keys of the configuration, and whatever of the record follows from them."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    for key, value in values.items():
        *path, last = key.split(".")
        node = config
        for name in path:
            node = node[name]
        node[last] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return str(values)


def claim_another_seed(run: Path, random: Generator) -> str:
    """Claim that the run had another seed."""
    return change_configuration(run, {"seed": int(random.integers(1, 1000))})


def claim_another_rate(run: Path, random: Generator) -> str:
    """Claim that the run had another learning rate."""
    return change_configuration(run, {"lr.peak": float(random.choice([5e-4, 1.1e-3, 2e-3]))})


def claim_other_data(run: Path, random: Generator) -> str:
    """Claim that the run was trained on other data of the same shape."""
    return change_configuration(run, {"data.options.classes": sorted(random.choice(10, 9, replace=False).tolist())})


def claim_another_option(run: Path, random: Generator) -> str:
    """Claim that the run had another option of its objective, optimiser or average."""
    options = (
        {"process.prediction": "v"}, {"optimiser.beta1": 0.95}, {"ema.decay": 0.1}, {"data.flip": True},
        {"process.weighting": {"name": "min_snr"}}, {"optimiser.clip": 0.1}, {"process.first_t": 1},
    )  # fmt: skip
    return change_configuration(run, options[int(random.integers(len(options)))])


CHANGES: dict[str, Callable[[Path, Generator], str]] = {
    change.__name__: change
    for change in (
        change_a_weight, change_a_weight_by_one_unit, change_an_average, change_the_optimiser, change_a_metric,
        skip_a_step, exchange_checkpoints, put_an_earlier_checkpoint, claim_another_seed, claim_another_rate,
        claim_other_data, claim_another_option,
    )
}  # fmt: skip
# After these, the record says of its parts what the changed configuration makes.
CLAIMS = {name for name in CHANGES if name.startswith("claim")}


def settle(run: Path, setup_facts: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Let a record agree with its changed configuration, and make every hash again.

    Args:
        run: the copy.
        setup_facts: returns what `experiments.training.manifest` says of a configuration: the facts, the hash of the
            first weights, the hash of the data.
    """
    entries = read_entries(run)
    made = setup_facts((run / "config.yaml").read_text())
    environment = json.loads((run / "environment.json").read_text())
    environment |= {"seed": made["setup"]["seed"], "program_sha256": made["setup"]["program_sha256"]}
    environment["data"]["sha256"] = made["setup"]["training"]["data"]["sha256"]
    (run / "environment.json").write_text(json.dumps(environment))
    for entry in entries:
        if "setup" in entry:
            entry["setup"] = made["setup"]
            if entry["kind"] == "start":
                entry["state"]["weights_sha256"] = made["weights_sha256"]
    write_entries(run, entries)
    for path in list_checkpoints(run / "checkpoints"):
        state = json.loads((path / "state.json").read_text())
        state["seed"] = made["setup"]["seed"]
        training = json.loads(json.dumps(made["setup"]["training"]))
        state["training"] = training | {"dropped_labels": state["training"]["dropped_labels"]}
        state["notes"]["trained_for"] = made["setup"]["trained_for"]
        state["notes"]["averages"] = training["averages"]
        state["problem"], state["program_sha256"] = made["problem"], made["setup"]["program_sha256"]
        (path / "state.json").write_text(json.dumps(state, indent=2))
    rehash(run)
