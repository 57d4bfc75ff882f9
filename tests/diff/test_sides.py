"""How a side of `duet diff` is found, loaded and recorded in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.parity.diff.recording import read_recording
from duet.cli import sides as interpreters
from experiments.model_diff import sides
from experiments.model_diff.compare import Request, chosen_inputs
from experiments.model_diff.inputs import check_equal, difference, draw, forms, read_file
from experiments.model_diff.record_side import read_inputs, write_inputs

# --- which interpreter ---------------------------------------------------------------------------------------------


def needs(folder: Path, reference: str) -> set[str]:
    place, _, function = reference.rpartition(":")
    return interpreters.packages_of(place, function, folder) - interpreters.standard_library()


@pytest.fixture
def files(tmp_path):
    """Return a function that writes files into the folder of the author."""

    def written(**texts: str) -> Path:
        for name, text in texts.items():
            path = tmp_path.joinpath(*name.split("__")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path

    return written


def test_imports_of_the_file_and_of_files_beside_it_count(files):
    folder = files(
        a="import weights\nfrom blocks import Net\ndef build(): return Net()",
        blocks="import torch.nn as nn",
        weights="import numpy as np\ndef load_keras(): import keras",
    )
    assert needs(folder, "a.py:build") == {"torch"}


def test_an_import_within_a_function_counts_where_the_function_is_used(files):
    folder = files(
        pair="""
def layers():
    import keras
    return keras.layers
def keras_net(): return layers().Dense(3)
def torch_net():
    from torch import nn
    return nn.Linear(2, 3)
"""
    )
    assert needs(folder, "pair.py:keras_net") == {"keras"}
    assert needs(folder, "pair.py:torch_net") == {"torch"}


def test_a_package_is_read_by_relative_imports_and_from_the_working_directory(files):
    folder = files(
        nets____init__="", nets__model="from .parts import conv\nfrom . import more", nets__parts="import jax"
    )
    files(nets__more="import flax")
    for reference in ("nets.model:build", "nets/model.py:build"):
        assert needs(folder, reference) == {"jax", "flax"}
    assert needs(folder, "torchvision.models:resnet18") == {"torchvision"}


def test_an_optional_import_at_the_top_counts_and_a_broken_file_is_left_to_its_interpreter(files):
    folder = files(a="try:\n    import tensorflow as tf\nexcept ImportError:\n    tf = None", broken="def build(:")
    assert needs(folder, "a.py:build") == {"tensorflow"}
    assert needs(folder, "broken.py:build") == set()


@pytest.fixture
def environments(monkeypatch):
    """Two environments that exist, with packages of their own."""
    have = {"python-torch": {"torch", "diffusers"}, "python-tf": {"tensorflow", "keras"}}
    monkeypatch.setattr(interpreters, "environment_exists", lambda backend: True)
    monkeypatch.setattr(interpreters, "setup", lambda backend: f"python-{backend.name}")
    monkeypatch.setattr(interpreters, "any_environment", lambda: "python-any")
    monkeypatch.setattr(interpreters, "lacking", lambda python, names: [n for n in names if n not in have[python]])


def chosen(monkeypatch, folder: Path, reference: str) -> tuple[str, str]:
    monkeypatch.chdir(folder)
    return tuple(interpreters.find_interpreter("A", reference))


def test_the_environment_follows_from_the_imports(files, environments, monkeypatch):
    folder = files(t="import torch", k="import keras", d="import diffusers", n="import numpy, math", j="import jax")
    files(both="import torch, tensorflow")
    assert chosen(monkeypatch, folder, "t.py:build") == ("python-torch", "torch")
    assert chosen(monkeypatch, folder, "k.py:build") == ("python-tf", "tf")
    assert chosen(monkeypatch, folder, "d.py:build") == ("python-torch", "")
    assert chosen(monkeypatch, folder, "n.py:build") == ("python-any", "")
    with pytest.raises(interpreters.Stop, match=r"jax, which no environment has.*--a-python"):
        chosen(monkeypatch, folder, "j.py:build")
    with pytest.raises(interpreters.Stop, match=r"torch and tensorflow.*--a-python"):
        chosen(monkeypatch, folder, "both.py:build")


def test_the_environment_of_a_file_follows_from_its_kind(environments, monkeypatch, tmp_path):
    run = Path(__file__).parents[1] / "data/run_v1"
    assert chosen(monkeypatch, tmp_path, "net.keras") == ("python-tf", "tf")
    assert chosen(monkeypatch, tmp_path, str(run))[1] in ("torch", "tf")
    with pytest.raises(interpreters.Stop, match="onnxruntime"):
        chosen(monkeypatch, tmp_path, "net.onnx")


def test_the_name_of_a_backend_stands_for_its_environment(environments, monkeypatch, files):
    monkeypatch.setattr(interpreters.shutil, "which", lambda name: name)
    files(d="import diffusers")
    assert interpreters.find_interpreter("A", "d.py:build", "tf") == ("python-tf", "")
    run = str(Path(__file__).parents[1] / "data/run_v1")
    assert interpreters.find_interpreter("B", run, "tf") == ("python-tf", "tf")


def test_an_interpreter_that_does_not_exist_is_refused():
    with pytest.raises(interpreters.Stop, match=r"--b-python: 'no/python' was given.* torch, tf for its environment"):
        interpreters.find_interpreter("B", "a.py:build", "no/python")


# --- inputs --------------------------------------------------------------------------------------------------------


def test_inputs_may_be_in_another_order_of_axes_but_not_others():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    t = np.array([3, 7])
    check_equal((x, t), (np.moveaxis(x, 1, -1), t.astype(np.float32)), 0)
    check_equal({"x": x, "t": t}, {"t": t, "x": x.reshape(2, 3, 4, 5, 1)}, 0)
    assert difference(x, x.astype(np.float64)) == ""
    assert "another order" in difference(x, np.roll(x, 1, axis=3))
    with pytest.raises(DuetError, match=r"inputs\(4\)\[1\]: .*other numbers"):
        check_equal((x, t), (x, t + 1), 4)
    with pytest.raises(DuetError, match="A returns 2 arrays and B 1"):
        check_equal((x, t), (x,), 0)


def test_images_are_written_in_the_layout_of_the_other_side():
    x, s, t = np.zeros((2, 3, 8, 8), np.float32), np.zeros((2, 5, 6), np.float32), np.zeros((2, 3, 3, 3), np.int64)
    several = forms((x, s, t), "channels_first", "channels_last")
    shapes = [[array.shape for array in arrays] for arrays, _ in several]
    assert shapes == [
        [(2, 8, 8, 3), (2, 5, 6), (2, 3, 3, 3)],
        [(2, 8, 8, 3), (2, 6, 5), (2, 3, 3, 3)],
        [(2, 3, 8, 8), (2, 5, 6), (2, 3, 3, 3)],
    ]
    declared = [{"name": "x", "shape": [None, 3, 8, 8], "dtype": "float32"}]
    assert forms((x,), "channels_first", "channels_last", declared)[0][0][0].shape == x.shape
    assert forms({"x": x}, "channels_first", "channels_first") == [({"x": x}, "")]


def test_inputs_of_an_author_win_over_those_drawn_for_a_file(tmp_path):
    def offer(number: float, written: bool) -> dict:
        path = tmp_path / f"{number}.npz"
        write_inputs((np.full(2, number),), path)
        return {"files": [str(path)], "written": written, "declared": None, "layout": "channels_last"}

    def chosen(*offers: dict) -> list[float]:
        files, _ = chosen_inputs(Request(sides.Side("a"), sides.Side("b")), list(offers), tmp_path)
        return [float(read_inputs(batches[0][0])[0][0]) for batches in files]

    assert chosen(offer(1, False), offer(2, True)) == [2, 2]
    assert chosen(offer(3, True), offer(4, False)) == [3, 3]
    assert chosen(offer(5, False), offer(6, False)) == [5, 5]
    with pytest.raises(DuetError, match="hold other numbers"):
        chosen(offer(7, True), offer(8, True))


def test_inputs_are_drawn_in_declared_shapes():
    declared = [
        {"name": "x", "shape": [None, 4, None], "dtype": "float32"},
        {"name": "i", "shape": [3], "dtype": "int64"},
    ]
    x, i = draw(declared, 0)
    assert (x.shape, i.shape, i.dtype) == ((2, 4, 16), (3,), np.int64)


def test_a_file_of_inputs_is_read_in_order_or_by_name(tmp_path):
    x, t = np.ones((2, 3)), np.arange(2)
    np.savez(tmp_path / "order.npz", x, t)
    np.savez(tmp_path / "names.npz", x=x, t=t)
    np.save(tmp_path / "one.npy", x)
    assert [array.shape for array in read_file(tmp_path / "order.npz")] == [(2, 3), (2,)]
    assert set(read_file(tmp_path / "names.npz")) == {"x", "t"}
    assert len(read_file(tmp_path / "one.npy")) == 1
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "text.npz").write_text("no")
    for name in ("objects.npy", "text.npz", "missing.npz"):
        with pytest.raises(DuetError, match="--inputs"):
            read_file(tmp_path / name)


@pytest.mark.parametrize("inputs", [(np.ones(3), np.zeros((2, 2), bool)), {"file": np.ones(3), "a b": np.arange(2)}])
def test_inputs_survive_their_file(tmp_path, inputs):
    write_inputs(inputs, tmp_path / "inputs")
    again = read_inputs(tmp_path / "inputs")
    assert type(again) is type(inputs) and list(again) == list(inputs) if isinstance(inputs, dict) else True
    pairs = zip(again.values(), inputs.values()) if isinstance(inputs, dict) else zip(again, inputs)  # noqa: B905
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


# --- processes -----------------------------------------------------------------------------------------------------

PLAIN = """
import numpy as np
print("what the author prints is no answer")
def build(scale=1.0, dtype="float32"):
    w = np.arange(6, dtype=dtype).reshape(3, 2)
    return lambda x: {"y": scale * x @ w.astype(x.dtype), "x": x}
def inputs(seed):
    return np.random.default_rng(seed).standard_normal((4, 3))
"""


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Return a function that starts a side in a process, which ends with the test."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log").mkdir()
    started = []

    def start(text: str, name: str = "build", **options: object) -> sides.SideProcess:
        (tmp_path / "side.py").write_text(text, encoding="utf-8")
        side = sides.Side(f"side.py:{name}", sys.executable, options=options)
        started.append(sides.open_side(side, "A", 0, tmp_path / "log"))
        started[-1].load()
        return started[-1]

    yield start
    for side in started:
        side.close()


def test_a_plain_function_is_recorded_with_its_inputs_and_outputs(opened, tmp_path):
    side = opened(PLAIN, scale=2)
    offer = side.offer(2, tmp_path / "given")
    assert (len(offer["files"]), offer["framework"], offer["declared"]) == (2, "plain", None)
    side.record(tmp_path / "made", [Path(offer["files"][0])], ["float32", "float64"], [], None)
    recording = read_recording(tmp_path / "made")
    x = np.random.default_rng(0).standard_normal((4, 3))
    for name in ("float32", "float64"):
        record = recording.passes[name]
        given = x.astype(name)
        assert np.array_equal(record.values[record.inputs[0]], given)
        assert np.array_equal(record.values[record.outputs["y"]], 2 * given @ np.arange(6, dtype=name).reshape(3, 2))


@pytest.mark.parametrize(
    ("text", "said", "traced"),
    [
        ("def build():\n    return helper()\ndef helper():\n    raise KeyError('gamma')", "KeyError.*line 4", "line 2"),
        ("import nothing_like_this", "no such package.*line 1", "line 1"),
        ("def build(:", "SyntaxError.*line 1", ""),
        ("def biuld(): pass", "nothing called 'build'; did you mean 'biuld'", ""),
        ("def build(): pass", "returned None", ""),
        ("import sys\nsys.exit(3)", "ended the program.*__main__", "line 2"),
        ("class build:\n    def __init__(self, width): pass", "needs width; give width=VALUE", ""),
        ("build = 'text'", "must be a function that returns the model", ""),
        ("def build(): return 3", "this is int; it must be a model", ""),
        ("import os\ndef build(): os.kill(os.getpid(), 9)", "SIGKILL.*while loading.*memory", ""),
    ],
)
def test_an_error_of_the_author_is_one_line_and_its_traceback_begins_in_their_code(
    opened, tmp_path, capfd, text, said, traced
):
    side = opened(text)
    with pytest.raises(DuetError, match=said) as error:
        side.offer(1, tmp_path / "given")
    assert str(error.value).startswith("A: side.py:build: ")
    told = capfd.readouterr().err
    assert traced in told and "side_recorder.py" not in told and "record_side.py" not in told


def test_a_script_that_reads_its_arguments_gets_none_and_may_go_elsewhere(opened, tmp_path):
    side = opened(
        "import argparse, os\nprint('loading')\nparser = argparse.ArgumentParser()\n"
        "parser.add_argument('--n', default=2)\nn = parser.parse_args().n\nos.chdir('/')\n"
        "def build(): return lambda x: n * x\ndef inputs(): return [1.0]"
    )
    offer = side.offer(1, tmp_path / "given")
    assert side.record(tmp_path / "made", [Path(offer["files"][0])], ["float32"], [], None) == 0


def test_an_unknown_option_names_those_that_exist(opened, tmp_path):
    side = opened(PLAIN, scael=2)
    with pytest.raises(DuetError, match="no argument 'scael'; its arguments are scale, dtype; did you mean 'scale'"):
        side.offer(1, tmp_path / "given")


def test_a_function_with_arguments_is_the_model_itself(opened, tmp_path):
    side = opened("def net(x, y=1):\n    return x * 2\ndef inputs(seed): return {'x': [1.0, 2.0]}", "net")
    offer = side.offer(1, tmp_path / "given")
    side.record(tmp_path / "made", [Path(offer["files"][0])], ["float64"], [], None)
    record = read_recording(tmp_path / "made").passes["float64"]
    assert record.values[record.outputs["0"]].tolist() == [2.0, 4.0]


def test_the_folder_of_the_file_comes_first_on_the_path(opened, tmp_path):
    (tmp_path / "report.py").write_text("VALUE = 7")
    side = opened("import report\ndef build(): return lambda x: x * report.VALUE\ndef inputs(): return [1.0]")
    assert side.offer(1, tmp_path / "given")["files"]


def test_a_model_that_refuses_one_form_of_the_inputs_gets_the_next(opened, tmp_path):
    side = opened("def build(): return net\ndef net(x):\n    assert x.shape[1] == 3, x.shape\n    return x")
    assert side.offer(1, tmp_path / "given")["files"] == []
    x = np.zeros((2, 5, 3))
    for i, array in enumerate((x, x.transpose(0, 2, 1))):
        write_inputs((array,), tmp_path / f"{i}.npz")
    paths = [tmp_path / "0.npz", tmp_path / "1.npz"]
    assert side.record(tmp_path / "made", paths, ["float32"], [], None) == 1


def test_what_float64_cannot_do_is_a_note(opened, tmp_path):
    side = opened(
        "import numpy as np\ndef net(x): return x.astype(np.float32)\ndef inputs(seed): return np.ones(3)", "net"
    )
    offer = side.offer(1, tmp_path / "given")
    side.record(tmp_path / "made", [Path(offer["files"][0])], ["float32", "float64", "train64"], [], None)
    recording = read_recording(tmp_path / "made")
    assert list(recording.passes) == ["float32"]
    assert any("float64 is not possible" in note for note in recording.notes)
    assert any("training mode" in note for note in recording.notes)


def test_a_reference_to_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text, said in (("missing.onnx", "no such file"), ("side.py", "no such file")):
        with pytest.raises(DuetError, match=said):
            sides.open_side(sides.Side(text), "A", 0, tmp_path)
