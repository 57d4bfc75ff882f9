"""Own networks on the command line: ``network=FILE:NAME``, in the environment of their framework."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import call

import duet
from diffusion_core.runs.checkpoint import find_checkpoint, load_checkpoint
from diffusion_core.runs.run_directory import read_samples

pytestmark = pytest.mark.backend

# The same network in both frameworks: a norm with running statistics, dropout and classes.
FILES = {
    "torch": """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4, rows=11):
        super().__init__()
        self.inwards, self.outwards = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)
        self.classes, self.norm, self.dropout = nn.Embedding(rows, width), nn.BatchNorm2d(width), nn.Dropout(0.1)

    def forward(self, x, t, label):
        h = self.norm(self.inwards(x)) + self.classes(label)[:, :, None, None] + torch.sin(t / 100)[:, None, None, None]
        return self.outwards(torch.relu(self.dropout(h)))

def build(width=4, rows=11):
    torch.manual_seed(0)
    return Net(width, rows)
""",
    "tf": """
import keras
from keras import layers

def build(width=4, rows=11):
    keras.utils.set_random_seed(0)
    x, t, label = keras.Input((8, 8, 1)), keras.Input(()), keras.Input((), dtype="int32")
    h = layers.BatchNormalization()(layers.Conv2D(width, 3, padding="same")(x))
    h = h + layers.Reshape((1, 1, width))(layers.Embedding(rows, width)(label))
    h = h + layers.Reshape((1, 1, 1))(keras.ops.sin(t / 100))
    h = layers.Dropout(0.1)(layers.Activation("relu")(h))
    return keras.Model([x, t, label], layers.Conv2D(1, 3, padding="same")(h))
""",
}
# The same with a second time.
TWO_TIMES = {
    "torch": """

class Flow(Net):
    def forward(self, x, t, label, h=None):
        return super().forward(x, t, label) + h[:, None, None, None] * x

def flow():
    torch.manual_seed(0)
    return Flow()
""",
    "tf": """

def flow():
    given, h = build(), keras.Input((), name="h")
    output = given.output + layers.Reshape((1, 1, 1))(h) * given.inputs[0]
    return keras.Model([*given.inputs, h], output)
""",
}
MORE = """

def broken():
    return undefined_name

def nothing():
    return None

def needs(width):
    return build(width)

text = "a text"
"""
WORDS = (
    "data=digits", "process=v_cosine", "process.label_dropout=0.1", "trainer.images=64", "trainer.batch=16",
    "trainer.checkpoint_images=32", "trainer.log_images=16", "sample.count=10", "sampler.steps=3",
    "backend.device=cpu", "validation.part=none",
)  # fmt: skip


@pytest.fixture(scope="module")
def user(tmp_path_factory, backend_name) -> Path:
    """The file of a user."""
    path = tmp_path_factory.mktemp("user") / "mine.py"
    path.write_text(FILES[backend_name] + TWO_TIMES[backend_name] + MORE)
    (path.parent / "syntax.py").write_text("\ndef build(:\n")
    (path.parent / "script.py").write_text("import sys\nsys.exit(3)\n")
    return path


def train(user: Path, backend_name: str, run: Path, *more: str) -> Path:
    done = call("train", f"backend={backend_name}", f"network={user}:build", *WORDS, f"hydra.run.dir={run}", *more)
    assert done.code == 0, done.err
    return run


@pytest.fixture(scope="module")
def run(user, backend_name, tmp_path_factory) -> Path:
    return train(user, backend_name, tmp_path_factory.mktemp("runs") / "run")


def state_of(run: Path) -> dict[str, np.ndarray]:
    parts = load_checkpoint(find_checkpoint(run)).state.parts
    return {f"{part}/{name}": array for part, arrays in parts.items() for name, array in arrays.items()}


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_label_dropout_needs_a_row_for_no_class(user, backend_name, tmp_path):
    network = (f"backend={backend_name}", f"network={user}:build", "network_options.rows=10")
    done = call("train", *network, *WORDS, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 2 and 'has 10 classes and "no class" for label_dropout; 11 are needed' in done.err
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_weights_and_the_name_of_the_network_and_no_code(run, user):
    checkpoint = load_checkpoint(find_checkpoint(run))
    assert checkpoint.model.spec.reference == f"{user}:build"
    files = {path.suffix for path in find_checkpoint(run).iterdir()}
    assert files == {".json", ".safetensors"} and "import" not in (find_checkpoint(run) / "state.json").read_text()
    names = {name.rpartition("moving_")[2].rpartition("running_")[2] for name in checkpoint.state.weights}
    assert {"mean", "variance"} <= names or {"mean", "var"} <= names, "the statistics of the norm are weights"
    assert np.std(read_samples(run / "samples/samples.npz")[0]) > 1


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(run, user, backend_name, tmp_path):
    rest = train(user, backend_name, tmp_path / "rest", f"resume={run}/checkpoints/{32:012d}")
    assert_equal(state_of(run), state_of(rest))


def test_a_stopped_run_continues_in_its_own_directory(run, user, backend_name, tmp_path):
    shutil.copytree(run, own := tmp_path / "own")
    shutil.rmtree(own / "checkpoints" / f"{64:012d}")
    done = call("train", f"backend={backend_name}", f"from={own}", "resume=latest", f"network={user}:build")
    assert done.code == 0, done.err
    assert_equal(state_of(run), state_of(own))


def test_the_command_and_python_train_the_same_weights(run, user, backend_name):
    trained = duet.train(
        f"{user}:build", duet.process("cosine", "v"), duet.load_dataset("digits", part="train"), images=64, batch=16,
        lr=1e-3, label_dropout=0.1, device="cpu", quiet=True,
    )  # fmt: skip
    assert_equal(
        {name: array for name, array in state_of(run).items() if name.startswith("weights/")},
        {f"weights/{name}": array for name, array in trained.state.weights.items()},
    )


def test_samples_need_the_network_and_are_those_of_the_run(run, user, backend_name, tmp_path):
    words = (f"backend={backend_name}", f"checkpoint={run}", "backend.device=cpu")
    refused = call("sample", *words, f"out={tmp_path / 'a'}")
    assert refused.code == 2 and f"add network={user}:build" in refused.err
    done = call("sample", *words, f"out={tmp_path / 'b'}", f"network={user}:build")
    assert done.code == 0, done.err
    np.testing.assert_array_equal(
        read_samples(tmp_path / "b/samples.npz")[0], read_samples(run / "samples/samples.npz")[0]
    )
    other = call("sample", *words, f"out={tmp_path / 'c'}", f"network={user}:build", "network_options.width=6")
    assert other.code == 2 and "the checkpoint is of another network" in other.err and "(8 differ)" not in other.out


def test_a_network_of_two_times_trains_and_samples_mean_flow(user, backend_name, tmp_path):
    run, network = tmp_path / "run", f"network={user}:flow"
    words = ("objective=mean_flow", "process=mean_flow", "sampler=mean_flow", "sampler.steps=1", "trainer.images=32")
    backend, more = f"backend={backend_name}", (*WORDS, *words)
    done = call("train", backend, network, *more, f"hydra.run.dir={run}")
    assert done.code == 0, done.err
    assert load_checkpoint(find_checkpoint(run)).model.spec.inputs == "x, t, label, second_time"
    done = call("sample", backend, f"checkpoint={run}", network, "sampler=mean_flow", f"out={tmp_path / 'out'}")
    assert done.code == 0, done.err
    done = call("train", backend, f"network={user}:build", *more, f"hydra.run.dir={tmp_path / 'no'}")
    assert done.code == 2 and "reads one time" in done.err and not (tmp_path / "no").exists()


def test_the_validation_loss_of_a_run_is_evaluated(run, user, backend_name, tmp_path):
    done = call(
        "evaluate", f"backend={backend_name}", f"checkpoint={run}", f"network={user}:build", "data=digits",
        "data.options.part=held_out", "loss=validation", "loss.count=32", f"out={tmp_path / 'e'}",
        "backend.device=cpu",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert 0 < json.loads((tmp_path / "e/evaluation.json").read_text())["loss"]["loss"] < 10


@pytest.mark.either
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["network={user}:biuld"], "'biuld' was given; it must be one of"),
        (["network={user}:broken"], "NameError: name 'undefined_name' is not defined"),
        (["network={user}:nothing"], "it returned None"),
        (["network={folder}/none.py:build"], "there is no file"),
        (["network={folder}/syntax.py:build"], "SyntaxError: invalid syntax ({folder}/syntax.py, line 2)"),
        (["network={folder}/script.py:build"], "its code ended the program ({folder}/script.py, line 2)"),
        (["network={user}:text"], "is a text; it must be a network"),
        (["network={user}:needs"], "a function of (width), taken as a network of numpy"),
        (["network=mine"], "code is named as network=mine:NAME"),
        (["network={user}:build", "network_option.width=3"], "Did you mean network_options.width?"),
        (["network=no_such_package.file:build"], "there is no module 'no_such_package'"),
        (["network={user}:build", "network_options.wdith=3"], "'wdith' was given"),
        (["network={user}:build", "network_call.input=x"], "'input' was given; it must be one of"),
        (["network={user}:build", "model=digits"], "model: it was given with network="),
        (["network={user}:build", "model.channels=8"], "model.channels: it was given with network="),
        (["model=own"], "name it: network=my_file:build"),
        (["network_options.width=3"], "without a network"),
        (["network={user}:build", "data=shapes"], "mine.py:build: "),
    ],
    ids=lambda given: given[-1].rpartition("/")[2] if isinstance(given, list) else "",
)
def test_mistakes_are_one_line_and_leave_nothing(user, backend_name, tmp_path, given, said):
    words = [word.format(user=user, folder=user.parent) for word in given]
    data = [] if any(word.startswith("data=") for word in words) else ["data=digits"]
    run = tmp_path / "run"
    done = call("train", f"backend={backend_name}", *data, *words, "trainer.images=128", f"hydra.run.dir={run}")
    said = said.replace("it returned", "returned").replace("{folder}", str(user.parent))
    assert done.code == 2 and said in done.err, done.err
    assert done.err.count("\n") <= 1 and not run.exists()


@pytest.mark.either
def test_code_that_only_a_run_names_is_not_run(run, backend_name, tmp_path):
    done = call("train", f"backend={backend_name}", f"from={run}", f"hydra.run.dir={tmp_path / 'x'}")
    assert done.code == 2 and "its code is run only if you name it" in done.err


@pytest.mark.either
def test_a_table_names_a_network_for_each_backend(user, backend_name, tmp_path):
    table = f'network={{{backend_name}: "{user}:build", other: "x:y"}}'
    done = call(
        "train", f"backend={backend_name}", table, *WORDS, "trainer.images=16", f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert done.code == 0, done.err
    done = call("train", f"backend={backend_name}", 'network={other: "x:y"}', *WORDS, f"hydra.run.dir={tmp_path / 'b'}")
    assert done.code == 2 and f"none for backend={backend_name}" in done.err


@pytest.mark.either
def test_what_needs_the_blocks_of_a_network_says_so(run, backend_name, tmp_path):
    done = call(
        "export_weights", f"backend={backend_name}", f"checkpoint={run}", "target=onnx", f"out={tmp_path / 'o'}"
    )
    assert done.code == 2 and "own network" in done.err and done.err.count("\n") == 1, done.err
