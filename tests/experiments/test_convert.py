"""Importing and exporting weights by command, in formats that need no framework."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import composed, enter

from diffusion_core.backend.interface import TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.convert import ddpm_tf
from diffusion_core.convert.names import write_weights
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec, lower
from diffusion_core.networks.weights import initial_weights
from diffusion_core.runs.checkpoint import (
    Checkpoint,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from experiments.config import build
from experiments.export import targets
from experiments.training.resume import starting_point

SPEC = UNetSpec(
    8, channels=8, channel_multipliers=(1, 2), blocks_per_resolution=1, norm_groups=4, num_classes=3, null_class="zero"
)
MODEL = DiffusionModel(SPEC, {"name": "linear", "T": 20}, "v")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run whose weights and moving average differ."""
    weights, ema = (initial_weights(MODEL.program, seed, np.float32) for seed in (0, 1))
    state = replace(TrainerState.fresh(weights), averages=(ema,))
    save_checkpoint(tmp_path / "run" / "checkpoints", Checkpoint(256, MODEL, 0, state, {}))
    return tmp_path / "run"


@pytest.mark.parametrize("which", ["ema", "weights"])
def test_exported_weights_are_imported_unchanged(which, trained, tmp_path, capsys):
    enter("export_weights", "target=diffusers", f"checkpoint={trained}", f"out={tmp_path / 'out'}", f"weights={which}")
    assert "a UNet2DModel with classes" in capsys.readouterr().out
    enter("import_weights", "source=diffusers", f"path={tmp_path / 'out'}", f"out={tmp_path / 'back'}")
    said = capsys.readouterr().out
    assert f"checkpoint={tmp_path / 'back'}" in said
    assert "process: linear, 20 levels, beta_start 0.0001, beta_end 0.02, v prediction, images in" in said
    assert said.splitlines()[1].endswith("(that of the source)")
    found = load_checkpoint(tmp_path / "back")
    assert found.model.program.sha256 == MODEL.program.sha256
    assert (found.model.prediction, found.model.process.schedule.steps) == ("v", 20)
    assert (found.images_seen, found.state.updates, found.notes["source"]) == (0, 0, "diffusers")
    for name, value in getattr(load_checkpoint(trained).state, which).items():
        np.testing.assert_array_equal(found.state.weights[name], value)
        np.testing.assert_array_equal(found.state.ema[name], value)


def test_a_given_process_replaces_that_of_the_source(trained, tmp_path):
    enter("export_weights", "target=diffusers", f"checkpoint={trained}", f"out={tmp_path / 'out'}")
    words = ("process=x0_cosine", "process.schedule.T=50", "source.null_class=last")
    enter("import_weights", "source=diffusers", f"path={tmp_path / 'out'}", f"out={tmp_path / 'back'}", *words)
    model = load_checkpoint(tmp_path / "back").model
    assert (model.prediction, model.schedule) == ("x0", {"name": "cosine", "T": 50})
    assert (model.spec.num_classes, model.spec.null_class) == (2, "last")
    assert (model.value_range, model.time_scale) == ((-1.0, 1.0), 1.0)
    # The options of a process that concern training only are ignored.
    words = ("process=edm", "source.null_class=last")
    enter("import_weights", "source=diffusers", f"path={tmp_path / 'out'}", f"out={tmp_path / 'edm'}", *words)
    assert load_checkpoint(tmp_path / "edm").model.prediction == "edm"


def test_the_value_range_and_time_scale_of_a_given_process_are_kept(trained, tmp_path, capsys):
    enter("export_weights", "target=diffusers", f"checkpoint={trained}", f"out={tmp_path / 'out'}")
    words = ("process=x0_cosine", "+process.value_range=[0,1]", "+process.time_scale=0.25")
    enter("import_weights", "source=diffusers", f"path={tmp_path / 'out'}", f"out={tmp_path / 'back'}", *words)
    model = load_checkpoint(tmp_path / "back").model
    assert (model.value_range, model.time_scale) == ((0.0, 1.0), 0.25)
    assert "x0 prediction, images in [0.0, 1.0], time_scale 0.25 (set by the user)" in capsys.readouterr().out


@pytest.mark.parametrize("module, words, named", [
    ("import_weights", ["source=diffuser"], "source: 'diffuser' was given"),
    ("import_weights", ["source=edm", "path=edm.pkl"], "edm.pkl: reading a pickle runs code"),
    ("import_weights", ["source=edm", "path=edm.npz"], "path: 'edm.npz' was given, which does not exist"),
    ("import_weights", ["source=edm", "path=edm.npz", "source.heads=3"], "source.heads: there is no such key"),
    ("import_weights", ["source=ddpm_tf", "path=a.npz"], "'ddpm_tf': no image_size was given; it takes image_size"),
    ("import_weights", ["source=ddpm_tf", "path=a.npz", "source.image_size=8px"], "8px"),
    ("import_weights", ["source=edm", "path="], "path: nothing was given"),
    ("import_weights", ["source=diffusers", "path=OUT", "+process.prediction=v"], "process.schedule: no value was"),
    ("import_weights", ["source=diffusers", "path=OUT", "process=v_cosine", "+process.lr=3"], "'lr' was given"),
    ("import_weights", ["source=diffusers", "path=OUT", "process=v_cosin"], "process: 'v_cosin' was given"),
    ("export_weights", ["target=diffusers", "target.clip=-1"], "target.clip: -1.0 was given"),
    ("export_weights", ["target=native"], "backend: no value was given"),
    ("export_weights", ["target=diffusers", "weights=emaa"], "weights: 'emaa' was given"),
    ("export_weights", ["target=state_dict", "target.project=edm"], "out: '"),
    ("export_weights", ["target=state_dict"], "target.project: no value was given; add target.project=VALUE"),
    ("export_weights", ["target=flax"], "target: 'flax' was given"),
    ("export_weights", ["target=diffusers", "target.variance=learned"], "target.variance: 'learned' was given"),
])  # fmt: skip
def test_invalid_input_is_a_one_line_error_and_leaves_no_files(module, words, named, trained, tmp_path, capsys):
    enter("export_weights", "target=diffusers", f"checkpoint={trained}", f"out={tmp_path / 'pipeline'}")
    where = {"import_weights": ["path=nowhere"], "export_weights": [f"checkpoint={trained}"]}[module]
    words = [word.replace("OUT", str(tmp_path / "pipeline")) for word in words]
    with pytest.raises(SystemExit) as left:
        enter(module, *where, *words, f"out={tmp_path / 'out'}")
    line = capsys.readouterr().err
    assert left.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1
    assert named in line
    assert not (tmp_path / "out").exists()


def test_a_state_dict_under_the_names_of_a_project_is_imported_again(tmp_path, capsys):
    spec = replace(SPEC, num_classes=0, null_class="last", down_padding=(0, 1))
    model = DiffusionModel(spec, {"name": "linear", "T": 20}, "v")
    state = TrainerState.fresh(initial_weights(model.program, 0, np.float32))
    save_checkpoint(tmp_path / "run" / "checkpoints", Checkpoint(256, model, 0, state, {}))
    file = tmp_path / "ddpm.safetensors"
    enter(
        "export_weights", "target=state_dict", "target.project=ddpm_tf", f"checkpoint={tmp_path / 'run'}", f"out={file}"
    )
    assert "a state dict of ddpm_tf" in capsys.readouterr().out
    words = ("source.image_size=8", "source.norm_groups=4")
    enter("import_weights", "source=ddpm_tf", f"path={file}", f"out={tmp_path / 'back'}", *words)
    found = load_checkpoint(tmp_path / "back")
    for name, value in state.weights.items():
        np.testing.assert_array_equal(found.state.weights[name], value)


def test_no_file_is_overwritten(trained, tmp_path, capsys):
    enter("export_weights", "target=diffusers", f"checkpoint={trained}", f"out={tmp_path / 'out'}")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for module, words, line in (
        ("export_weights", ["target=diffusers", f"checkpoint={trained}", f"out={tmp_path / 'out'}"],
         f"out: '{tmp_path / 'out'}' was given and exists already; give another path"),
        ("import_weights", ["source=diffusers", f"path={tmp_path / 'out'}", f"out={trained}"],
         f"out: '{trained}' was given and holds checkpoints already; give another directory"),
        ("export_weights", ["target=diffusers", f"checkpoint={trained}", "out="],
         "out: nothing was given; it is the path to write"),
        ("import_weights", ["source=diffusers", f"path={tmp_path / 'out'}", "out="],
         "out: nothing was given; it is the directory to write"),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            enter(module, *words)
        assert capsys.readouterr().err == f"error: {line}\n"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert len(list_checkpoints(trained / "checkpoints")) == 1


def test_a_pipeline_is_written_completely_or_not_at_all(trained, tmp_path, capsys, monkeypatch):
    written = []

    def write(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    monkeypatch.setattr(targets, "write_atomically", write)
    with pytest.raises(SystemExit):
        enter("export_weights", "target=diffusers", f"checkpoint={trained}", f"out={tmp_path / 'new' / 'out'}")
    assert "it cannot be written (No space left on device)" in capsys.readouterr().err
    assert len(written) == 3 and list((tmp_path / "new").iterdir()) == []


def test_training_continues_from_an_import_with_its_dropout_given(tmp_path, capsys):
    spec = replace(SPEC, num_classes=0, null_class="last", in_channels=1, out_channels=1, down_padding=(0, 1),
                   dropout=0.25)  # fmt: skip
    program = lower(spec)
    weights = initial_weights(program, 0, np.float32)
    np.savez(tmp_path / "model.npz", **write_weights(ddpm_tf.make_name_map(spec, program), weights))
    words = ("source=ddpm_tf", f"path={tmp_path / 'model.npz'}", "source.image_size=8", "source.norm_groups=4")
    enter("import_weights", *words, f"out={tmp_path / 'plain'}")
    enter("import_weights", *words, f"out={tmp_path / 'dropout'}", "source.dropout=0.25")
    network = (
        "channels=8 channel_multipliers=[1,2] blocks_per_resolution=1 attention_resolutions=[] heads=1 qkv_bias=true "
        "norm_groups=4 norm_eps=1e-6 down_padding=[0,1] num_classes=0 dropout=0.25"
    )
    given = ["experiment=digits", "process=eps_linear", "process.label_dropout=0", "sampler.guidance_scale=1"]
    given += [f"model.{word}" for word in network.split()]
    setup = build.training_setup(composed("train", *given))
    start, source = starting_point(setup, tmp_path, str(tmp_path / "dropout"))
    assert source == find_checkpoint(tmp_path / "dropout")
    np.testing.assert_array_equal(start.state.weights["conv_in.weight"], weights["conv_in.weight"])
    with pytest.raises(DuetError, match=r"another network, with model.dropout 0.0 \(given: 0.25\)$"):
        starting_point(setup, tmp_path, str(tmp_path / "plain"))
