"""Check that pairs of models are sound, without `duet diff`: what is clean agrees, and each fault changes what it says.

A pair is a folder with torch_model.py, keras_model.py, weights.py and faults.json. Each side runs in its own
environment and writes its numbers to a file; the comparison reads both files:

    python tests/diff/sound_pairs.py run torch OUT.npz PAIR ...     (in the environment of torch; keras likewise)
    python tests/diff/sound_pairs.py compare TORCH.npz KERAS.npz PAIR ...
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "pairs"
STEPS = 5


def cases(pair: Path, side: str):
    """Yield (name, fault or None, variant or None) of one side."""
    content = json.loads((pair / "faults.json").read_text(encoding="utf-8"))
    yield "clean", None, None
    for item in content["variants"]:
        if item["side"] == side:
            yield item["id"], None, item["id"]
    for item in content["faults"]:
        if item["side"] == side:
            yield item["id"], item["id"], None


def load(pair: Path, side: str):
    """Import the model file of one side with its folder first on the path."""
    sys.modules.pop("weights", None)
    sys.path.insert(0, str(pair))
    try:
        spec = importlib.util.spec_from_file_location(f"{pair.name}_{side}", pair / f"{side}_model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(pair))
    return module


def flat(outputs) -> list:
    """Return the arrays of an output in order."""
    if isinstance(outputs, dict):
        return [leaf for key in sorted(outputs) for leaf in flat(outputs[key])]
    return [leaf for item in outputs for leaf in flat(item)] if isinstance(outputs, list | tuple) else [outputs]


def run_torch(module, model, inputs, steps):
    import torch

    kind = torch.float64

    def tensor(x):
        x = torch.from_numpy(np.array(x))
        return x.to(kind) if x.is_floating_point() else x

    def loss(outputs):
        return sum((y**2 / 2 + torch.sin(2 * y) / 4).mean() for y in flat(outputs) if y.is_floating_point())

    found = {}
    arguments = [tensor(x) for x in inputs]
    outputs = model(*arguments)
    found["forward"] = [y.detach().numpy() for y in flat(outputs)]
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss(outputs), parameters, allow_unused=True)
    found["gradient"] = [np.zeros(1) if g is None else g.numpy() for g in gradients]
    if "train" in steps:
        model.train()
        with torch.no_grad():
            model(*arguments)
            found["buffers"] = [b.numpy().copy() for b in model.buffers() if b.is_floating_point()]
            model(*arguments)
            found["training"] = [b.numpy().copy() for b in model.buffers() if b.is_floating_point()]
            torch.manual_seed(1)
            found["dropped"] = [y.numpy() for y in flat(model(*arguments))]
    if "steps" in steps:
        step = one_step(module, model, lambda: torch_step(module, model, loss))
        results = [step(*arguments) for _ in range(STEPS)]
        found["optimiser"] = [np.array([float(r["loss"] if isinstance(r, dict) else r) for r in results])]
        found["averages"] = averages(results)
    return found


def torch_step(module, model, default):
    optimizer = module.optimizer(model)
    loss = getattr(module, "loss", lambda outputs, *inputs: default(outputs))

    def step(*inputs):
        optimizer.zero_grad()
        value = loss(model(*inputs), *inputs)
        value.backward()
        optimizer.step()
        return value.item()

    return step


def run_keras(module, model, inputs, steps):
    import tensorflow as tf

    def tensor(x):
        x = np.array(x)
        return tf.constant(x.astype("float64") if x.dtype.kind == "f" else x)

    def loss(outputs):
        parts = (tf.reduce_mean(y**2 / 2 + tf.sin(2 * y) / 4) for y in flat(outputs) if y.dtype.is_floating)
        return tf.add_n([tf.cast(part, tf.float64) for part in parts])

    def call(**options):
        several = hasattr(model, "inputs") and len(model.inputs or ()) > 1
        return model(list(arguments), **options) if several else model(*arguments, **options)

    found = {}
    arguments = [tensor(x) for x in inputs]
    with tf.GradientTape() as tape:
        outputs = call()
        value = loss(outputs)
    found["forward"] = [y.numpy() for y in flat(outputs)]
    gradients = tape.gradient(value, model.trainable_variables)
    gradients = [None if g is None else tf.convert_to_tensor(g) for g in gradients]
    found["gradient"] = [np.zeros(1) if g is None else g.numpy() for g in gradients]
    if "train" in steps:
        call(training=True)
        found["buffers"] = [v.numpy() for v in model.non_trainable_variables if "seed" not in v.path]
        call(training=True)
        found["training"] = [v.numpy() for v in model.non_trainable_variables if "seed" not in v.path]
        tf.random.set_seed(1)
        found["dropped"] = [y.numpy() for y in flat(call(training=True))]
    if "steps" in steps:
        step = one_step(module, model, lambda: keras_step(module, model, loss))
        results = [step(*arguments) for _ in range(STEPS)]
        found["optimiser"] = [np.array([float(r["loss"] if isinstance(r, dict) else r) for r in results])]
        found["averages"] = averages(results)
    return found


def keras_step(module, model, default):
    import tensorflow as tf

    optimizer = module.optimizer(model)
    loss = getattr(module, "loss", lambda outputs, *inputs: default(outputs))

    def step(*inputs):
        with tf.GradientTape() as tape:
            value = loss(model(*inputs), *inputs)
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(value, variables), variables, strict=True))
        return float(value)

    return step


def one_step(module, model, default):
    return module.training(model) if hasattr(module, "training") else default()


def averages(results):
    last = results[-1].get("averages", {}) if isinstance(results[-1], dict) else {}
    return [np.array([np.sum(np.abs(np.asarray(a)))]) for _, a in sorted(last.items())]


def run(side: str, out: Path, pairs: list[Path]) -> None:
    arrays = {}
    for pair in pairs:
        content = json.loads((pair / "faults.json").read_text(encoding="utf-8"))
        steps = [what for what, key in (("train", "training"), ("steps", "optimiser")) if content[key]]
        module = load(pair, side)
        for name, fault, variant in cases(pair, side):
            model = module.build(fault=fault, variant=variant, dtype="float64")
            found = (run_torch if side == "torch" else run_keras)(module, model, module.inputs(3), steps)
            for kind, items in found.items():
                arrays.update({f"{pair.name}/{name}/{kind}/{i}": item for i, item in enumerate(items)})
    np.savez(out, **arrays)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the relative difference of two arrays up to the order of their axes."""
    best = np.inf
    for axes in itertools.permutations(range(b.ndim)) if b.ndim < 6 else [range(b.ndim)]:
        if a.shape == (moved := b.transpose(axes)).shape:
            best = min(best, float(np.abs(a - moved).max(initial=0) / max(np.abs(a).max(initial=0), 1e-30)))
    return best


def compare(torch_file: Path, keras_file: Path, pairs: list[Path]) -> list[str]:
    """Return what is not sound, one line each."""
    files = {"torch": np.load(torch_file), "keras": np.load(keras_file)}
    wrong = []

    def items(side, pair, name, kind):
        keys = [key for key in files[side].files if key.startswith(f"{pair}/{name}/{kind}/")]
        return [files[side][key] for key in keys]

    def differ(xs, ys):
        if len(xs) != len(ys):
            return np.inf
        return max((distance(x, y) for x, y in zip(xs, ys, strict=True)), default=0.0)

    for pair in pairs:
        content = json.loads((pair / "faults.json").read_text(encoding="utf-8"))
        bound = content.get("tolerance", 1e-10)
        for side, other in (("torch", "keras"), ("keras", "torch")):
            for name, fault, _ in cases(pair, side):
                if fault is None:
                    for kind in ("forward", "optimiser", "averages"):
                        gap = differ(items(other, pair.name, "clean", kind), items(side, pair.name, name, kind))
                        if not gap < (1e-5 if kind == "optimiser" and content.get("rounded_optimiser") else bound):
                            wrong.append(f"{pair.name} {side} {name}: clean, but {kind} differs by {gap:.1e}")
                    continue
                item = next(f for f in content["faults"] if f["id"] == fault)
                gaps = {
                    kind: differ(items(side, pair.name, "clean", kind), items(side, pair.name, name, kind))
                    for kind in ("forward", "gradient", "buffers", "training", "dropped", "optimiser", "averages")
                }
                shows = item["shows_in"]
                visible = {
                    "forward": gaps["forward"],
                    "gradient": gaps["gradient"],
                    "training": max(gaps["buffers"], gaps["training"], gaps["dropped"]),
                    "optimiser": max(gaps["optimiser"], gaps["averages"]),
                }[shows]
                least = 1e-10 if item.get("below_float32") else 1e-6
                if not visible > max(least, 3 * bound if shows == "forward" else 0):
                    wrong.append(f"{pair.name} {side} {fault}: {shows} differs by {visible:.1e} only")
                if not np.isfinite(gaps["forward"]) and shows != "forward":
                    wrong.append(f"{pair.name} {side} {fault}: another shape")
                if shows != "forward" and gaps["forward"] > 1e-12:
                    wrong.append(f"{pair.name} {side} {fault}: forward differs by {gaps['forward']:.1e}")
                frozen = item["kind"] == "bn_frozen"  # scale and shift of that layer have no gradient either
                if shows == "training" and not frozen and not gaps["gradient"] < 1e-9:
                    wrong.append(f"{pair.name} {side} {fault}: gradient differs by {gaps['gradient']:.1e}")
    return wrong


if __name__ == "__main__":
    what, first, second, *names = sys.argv[1:]
    folders = [Path(name) if "/" in name else HERE / name for name in names]
    folders = folders or sorted(p for p in HERE.iterdir() if (p / "faults.json").exists())
    if what == "run":
        run(first, Path(second), folders)
    else:
        lines = compare(Path(first), Path(second), folders)
        print("\n".join(lines) or f"{len(folders)} pairs are sound")
        sys.exit(bool(lines))
