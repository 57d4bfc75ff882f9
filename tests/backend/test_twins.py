"""The two backends mirror each other, and only backends load a framework. These tests need no framework."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import backends
from diffusion_core.backend import reference
from diffusion_core.convert import onnx
from diffusion_core.networks.registry import BLOCKS
from diffusion_core.parity import cases

FOLDERS = {name: Path(backends.__file__).parent / name for name in ("torch", "tf")}


def files(backend: str) -> list[str]:
    """Return the files with a twin, by their paths in the folder of a backend.

    The other files in `recorder` translate the operations of one framework, which the other has not.
    """
    found = [path.name for path in FOLDERS[backend].glob("*.py") if (backend, path.name) not in FILES_ALONE]
    return sorted([*found, "recorder/__init__.py"])


# Files that only one backend has, and why.
FILES_ALONE = {("tf", "own_variables.py")}  # PyTorch has one kind of module and one way to list its tensors
FILES = files("torch")

# Names that only one backend has, and why.
ALONE = {
    ("tf", "module.py", "canonical_order"),  # TensorFlow's kernels have other axes than the canonical ones
    ("tf", "module.py", "from_canonical"),
    ("tf", "module.py", "to_canonical"),
    ("tf", "compiler.py", "inlined_functions"),  # PyTorch differentiates through every function
    ("tf", "trainer.py", "Trainer.step"),  # one graph of all parts, where nothing is sent in between
    (
        "torch",
        "device.py",
        "capture_cuda_graph",
    ),  # XLA has a whole loop in one graph, torch.compile one call of a network
}
# Classes inside a file that follow how their framework reports operations.
INNER = {("recorder/__init__.py", "_Recorder"), ("recorder/__init__.py", "_Reader")}
# Functions with other parameters in each backend, and why.
CALLED_OTHERWISE = {
    (
        "device.py",
        "DeviceContext.mixed_precision",
    ),  # torch.autocast is a context; TensorFlow has none, so it takes tensors
    ("optimiser.py", "Updater.apply"),  # in a graph the numbers of an update are tensors
}


def public(backend: str, file: str) -> dict[str, tuple[str, ...]]:
    """Return the public functions, classes and methods of a file in order, with their parameters and defaults."""
    found: dict[str, tuple[str, ...]] = {}
    for node in ast.parse((FOLDERS[backend] / file).read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            found[node.name] = parameters(node)
        elif isinstance(node, ast.ClassDef) and (file, node.name) not in INNER:
            found[node.name] = ()
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and (item.name in SPECIAL or not item.name.startswith("_")):
                    # A torch module is called through `forward`, a TensorFlow one through `__call__`.
                    name = "forward" if item.name == "__call__" else item.name
                    found[f"{node.name}.{name}"] = parameters(item)
                elif isinstance(item, ast.AnnAssign):
                    found[f"{node.name}.{ast.unparse(item.target)}"] = ("field",)
    return {name: value for name, value in found.items() if (backend, file, name) not in ALONE}


SPECIAL = ("__init__", "__call__")


def parameters(function: ast.FunctionDef) -> tuple[str, ...]:
    arguments = function.args
    defaults = [ast.unparse(value) for value in arguments.defaults]
    named = [*arguments.posonlyargs, *arguments.args, *filter(None, [arguments.vararg]), *arguments.kwonlyargs]
    return (*(a.arg for a in named), *defaults)


def methods(backend: str) -> list[str]:
    """Return all methods of a trainer in order, including private ones."""
    body = ast.parse((FOLDERS[backend] / "trainer.py").read_text()).body
    (trainer,) = (node for node in body if isinstance(node, ast.ClassDef) and node.name == "Trainer")
    return [item.name for item in trainer.body if isinstance(item, ast.FunctionDef)]


def modules(backend: str) -> dict[str, tuple[str, ...]]:
    """Return the public names of all files that hold modules of block kinds."""
    files = ("network.py", "tokens.py", "magnitude.py", "own.py")
    return {name: given for file in files for name, given in public(backend, file).items()}


def test_a_step_of_training_has_the_same_parts_in_the_same_order():
    alone = {"_full_step", "_update_scalars", "step"}  # one graph of all parts, and the scalars that it reads
    assert [name for name in methods("tf") if name not in alone] == methods("torch")


def test_both_have_the_same_files():
    assert files("tf") == FILES
    assert {"network.py", "loss.py", "trainer.py", "sampler.py", "device.py"} < set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_both_define_the_same_names_in_the_same_order(file):
    assert list(public("torch", file)) == list(public("tf", file))


@pytest.mark.parametrize("file", FILES)
def test_both_take_the_same_parameters(file):
    torch, tf = public("torch", file), public("tf", file)
    otherwise = {name for name in torch if torch[name] != tf[name]}
    assert otherwise == {name for other, name in CALLED_OTHERWISE if other == file}


@pytest.mark.parametrize("file", FILES)
def test_both_list_the_same_names_for_import(file):
    def listed(backend: str) -> list[str]:
        for node in ast.parse((FOLDERS[backend] / file).read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                return [name for name in ast.literal_eval(node.value) if (backend, file, name) not in ALONE]
        return []

    assert listed("torch") == listed("tf") != []


def test_every_block_kind_has_every_rule():
    """The one place that names what is missing after a block kind was added."""
    classes = {backend: modules(backend) for backend in FOLDERS}
    cases_of = {node.kind for case in cases.BLOCKS for node in case.nodes}
    missing = []
    for kind in BLOCKS:
        missing += [f"{kind}: no reference function"] if kind not in reference.BLOCK_FUNCTIONS else []
        missing += [f"{kind}: no ONNX emitter"] if kind not in onnx.EMITTERS else []
        missing += [
            f"{kind}: no class in backends/{b}/network.py, tokens.py or magnitude.py"
            for b in FOLDERS
            if f"{kind}.forward" not in classes[b]
        ]
        # An own network exists in one framework only; test_own.py holds it to a program with the same weights.
        missing += [f"{kind}: no case in parity/cases/blocks.py"] if kind not in cases_of | {"Own"} else []
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_rule_of_a_block_kind_takes_the_same_inputs(kind):
    """The shape rule, the reference function, the ONNX emitter and the class of each backend."""
    count, mode = BLOCKS[kind].input_count(), BLOCKS[kind].has_training_mode
    own = (
        "weight", "bias", "frequencies", "mean", "variance", "memory", "table", "gain", "phases", "query", "key",
        "name",
    )  # fmt: skip

    def inputs(function) -> list[str]:
        return [name for name in inspect.signature(function).parameters if name not in own]

    assert len(inputs(onnx.EMITTERS[kind])) == 2 + count
    assert len(inputs(reference.BLOCK_FUNCTIONS[kind])) == 1 + count + mode
    assert ("training" in inputs(reference.BLOCK_FUNCTIONS[kind])) == mode
    for backend in FOLDERS:
        assert len(modules(backend)[f"{kind}.forward"]) == 1 + count + mode


LOAD_ALL = """
import importlib, pkgutil, sys
for name in {names}:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(module.name)
print([name for name in ("torch", "torchvision", "tensorflow", "keras", "jax") if name in sys.modules])
"""


@pytest.mark.parametrize("names", [["diffusion_core"], ["experiments"]], ids=lambda names: names[0])
def test_only_backends_load_a_framework(names):
    """Import every module of a package."""
    assert loaded(LOAD_ALL.format(names=names)) == "[]"


@pytest.mark.parametrize("package", ["backends", "experiments.features"])
def test_importing_backends_or_features_loads_no_framework(package):
    code = f"import {package}, sys; print([n for n in ('torch', 'tensorflow', 'onnxruntime') if n in sys.modules])"
    assert loaded(code) == "[]"


def loaded(code: str) -> str:
    """Return the last line that a new Python prints."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip().splitlines()[-1]
