"""`from=RUN` starts a command from the configuration of a run; only what is typed changes it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import call, composed
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from diffusion_core.common.errors import DuetError
from diffusion_core.convert import dome272, export_pipeline
from diffusion_core.convert.names import write_weights
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec, lower
from diffusion_core.networks.double_conv import DoubleConvSpec
from diffusion_core.networks.weights import initial_weights
from diffusion_core.runs.checkpoint import load_checkpoint
from diffusion_core.runs.run_directory import read_samples
from diffusion_core.runtime.distributed import ProcessGroup
from duet.cli import experiments as cli_experiments
from duet.cli.experiments import chosen_backends, experiments
from experiments.config import build
from experiments.config.convert import plain
from experiments.config.from_run import FROM, describe_start, run_configuration
from experiments.config.resume_command import resume_command
from experiments.config.safe_yaml import read_config
from experiments.sampling.plans import choose_sampler
from experiments.training.run import RunRecord

RUN = Path(__file__).parent.parent / "data" / "run_v1"  # a run of an earlier version, with its old keys


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run of the digits network with a few values of its own, as its directory keeps it."""
    directory = tmp_path / "run"
    directory.mkdir()
    config = composed(
        "train", "experiment=digits", "data.options.part=held_out", "lr.peak=0.02", "seed=7", "ema=post_hoc",
        "sampler=heun", "sampler.steps=9", "metrics=[spread]", "sample.count=5",
    )  # fmt: skip
    (directory / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    return directory


def test_training_takes_every_value_of_the_run_and_resumes_from_it(run):
    config, own = plain(composed("train", f"from={run}")), run_configuration(run)
    given = {"resume", "from_run", "backend", "tracker", "parallel"}
    assert {key: value for key, value in config.items() if key not in given} == {
        key: value for key, value in own.items() if key not in given
    }
    assert config["resume"] == config["from_run"] == str(run)


def test_a_typed_group_replaces_that_of_the_run_except_the_guidance(run):
    config = plain(composed("train", f"from={run}", "data=shapes", "data.options.size=16", "sampler=ddpm"))
    assert (
        config["data"]["options"] == plain(composed("train", "data=shapes", "data.options.size=16"))["data"]["options"]
    )
    assert config["sampler"] == plain(composed("train", "sampler=ddpm", "sampler.guidance_scale=1.5"))["sampler"]
    assert config["lr"]["peak"] == 0.02


@pytest.mark.parametrize("command", ["train", "sample", "edit"])
def test_another_sampler_keeps_the_guidance_of_the_run(run, command):
    words = ("out=o",) if command != "train" else ()
    guided = composed(command, f"from={run}", *words, "sampler=euler").sampler
    assert (guided.name, guided.guidance_scale) == ("euler", 1.5)
    line = describe_start(composed(command, f"from={run}", *words, "sampler=euler"), command, ["sampler=euler"])
    assert "sampler.guidance_scale=1.5" in line
    typed = composed(command, f"from={run}", *words, "sampler=euler", "sampler.guidance_scale=1").sampler
    assert typed.guidance_scale == 1


def test_the_line_on_a_start_names_the_run_alone(run):
    line = describe_start(composed("inspect", f"from={run}", "out=o"), "inspect", ["out=o"])
    assert line == f"from {run}: data digits; typed: out=o"
    line = describe_start(composed("evaluate", f"from={run}", "out=o"), "evaluate", ["out=o"])
    assert line.startswith(f"from {run}: samples={run}, data digits")


def test_a_sampler_that_is_named_without_from_says_what_the_run_guides_with():
    checkpoint = load_checkpoint(RUN)
    assert "the run samples with sampler.guidance_scale=1.5" in choose_sampler({"name": "heun"}, checkpoint)[1]
    same = choose_sampler({"name": "heun", "guidance_scale": 1.5}, checkpoint)[1]
    assert same.endswith("(as given)")


def test_experiments_and_keys_come_after_the_run(run):
    config = composed("train", f"from={run}", "debug=fast", "seed=3", "sampler.steps=4")
    assert (config.trainer.images, config.seed, config.sampler.steps, config.sampler.name) == (640, 3, 4, "heun")


def test_a_misspelled_key_is_refused_as_without_a_run(run):
    done = call("train", f"from={run}", "model.channls=3")
    assert done.code == 2 and "no such key in architecture 'unet'. Did you mean model.channels?" in done.err


def test_latest_resumes_the_run_in_its_own_directory(run, tmp_path):
    assert composed("train", f"from={run}", "resume=latest", hydra=True).hydra.run.dir == str(run)
    other = tmp_path / "other"
    config = composed("train", f"from={run}", "resume=latest", f"hydra.run.dir={other}", hydra=True)
    assert config.hydra.run.dir == str(other)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("sample", "out=x"), "checkpoint"), (("edit", "out=x"), "checkpoint"), (("gallery", "out=x"), "checkpoint"),
        (("evaluate", "out=x"), "samples"), (("evaluate", "out=x", "likelihood=vlb"), "checkpoint"),
        (("export_weights", "out=x", "target=torch"), "checkpoint"), (("reconstruct_ema", "out=x"), "run"),
    ],
)  # fmt: skip
def test_other_commands_work_on_the_run(run, words, key):
    config = composed(*words[:1], f"from={run}", *words[1:])
    assert config[key] == str(run)
    if words[0] in ("edit", "evaluate"):
        assert config.data.options.part == "held_out"


@pytest.mark.parametrize("command", sorted(FROM))
def test_a_path_without_a_run_is_refused_in_every_command(command, tmp_path):
    for path, message in ((tmp_path / "no", "does not exist"), (tmp_path, "neither a run nor an import")):
        with pytest.raises(DuetError, match=f"from: .*{message}"):
            composed(command, f"from={path}")


def test_a_pipeline_is_offered_for_import(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(DuetError, match=r"neither a run nor an import; .* import_weights source=diffusers path="):
        composed("train", f"from={tmp_path}")


def test_a_command_that_starts_from_nothing_says_so():
    assert "from: prepare does not start from a run" in call("prepare", "data=digits", "from=x").err
    assert "from: no run was given" in call("train", "from=").err


def test_a_checkpoint_stands_for_its_run_and_old_keys_get_their_present_names():
    (checkpoint,) = (RUN / "checkpoints").iterdir()
    config = composed("train", f"from={checkpoint}")
    assert config.resume == str(checkpoint)
    assert (config.sampler.guidance_scale, config.process.label_dropout) == (1.5, 0.1)
    assert plain(config.model.channel_multipliers) == [1] and config.ema.extra[0].sigma_rel == 0.1


def test_the_command_to_resume_names_the_directory_that_holds_everything(run, tmp_path):
    config = composed("train", f"from={run}", "trainer.images=256000", hydra=True)
    HydraConfig.instance().set_config(config)
    line = resume_command(config.hydra, tmp_path / "new", ProcessGroup(), True)
    new = tmp_path / "new"
    assert line.endswith(f"train from={new} trainer.images=256000 resume=latest hydra.run.dir={new}")
    assert f"from={run} trainer.images=256000" in resume_command(config.hydra, new, ProcessGroup(), False)


def test_the_command_line_starts_in_the_environment_of_the_run(run):
    command = experiments()["train"]
    assert [backend.name for backend in chosen_backends(command, [f"from={run}"])] == ["torch"]
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("name: torch", "name: tf"))
    assert [backend.name for backend in chosen_backends(command, [f"from={run}"])] == ["tf"]
    assert [backend.name for backend in chosen_backends(command, [f"from={run}", "backend=torch"])] == ["torch"]


def test_samples_of_a_tensorflow_run_are_evaluated_where_inception_can_be_opened(run, monkeypatch):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("name: torch", "name: tf"))
    command = experiments()["evaluate"]

    def environment(*words: str) -> str:
        (backend,) = chosen_backends(command, [f"from={run}", *words])
        return backend.name

    monkeypatch.setattr(cli_experiments, "environment_exists", lambda backend: True)
    assert environment("features=inception") == environment("likelihood=none") == "torch"
    assert environment("likelihood=vlb") == environment("backend=tf") == "tf"
    monkeypatch.setattr(cli_experiments, "environment_exists", lambda backend: False)
    assert environment("features=digits") == "tf"  # nothing is installed for samples alone


@pytest.mark.backend
@pytest.mark.either
def test_a_run_is_trained_further_and_sampled_by_one_word_each(tmp_path, backend_name):
    old, new = shutil.copytree(RUN, tmp_path / "old"), tmp_path / "new"
    words = (f"backend={backend_name}", "backend.threads=1", "backend.device=cpu")
    done = call("train", f"from={old}", *words, "trainer.images=320", "sample.count=2", "lr.total_images=320",
                "sampler.steps=4", "validation.count=8",
                f"hydra.run.dir={new}")  # fmt: skip
    assert done.code == 0, done.err
    assert load_checkpoint(new).images_seen == 320 and "sampler ddim" in done.out
    done = call("sample", f"from={new}", *words, f"out={tmp_path / 'samples'}")
    assert done.code == 0 and f"from {new}: checkpoint={new}" in done.out, done.err
    assert (
        "samples: 2, every class in turn, seed 0, weights ema (count, labels, seed, weights: from the run)" in done.out
    )
    assert read_config(tmp_path / "samples" / "config.yaml")["sample"]["count"] == 2
    # A run is sampled as it was configured: these are the samples of the run itself.
    (ours, labels, _), (theirs, own_labels, _) = (
        read_samples(folder / "samples.npz") for folder in (tmp_path / "samples", new / "samples")
    )
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(labels, own_labels)


def test_an_import_is_a_run_without_data(tmp_path):
    """Its network, process and sampler are those of training and sampling; its data must be named."""
    spec = UNetSpec(
        8, 1, 1, num_classes=10, channels=8, channel_multipliers=(1,), blocks_per_resolution=1, norm_groups=4,
        null_class="zero",
    )  # fmt: skip
    model = DiffusionModel(spec, {"name": "linear", "T": 20}, "v")
    weights = initial_weights(model.program, 0, np.float32)
    for name, content in export_pipeline(model, weights, "fixed_large", 2.5).items():
        (tmp_path / "pipeline" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pipeline" / name).write_bytes(content)
    out = tmp_path / "imported"
    done = call("import_weights", "source=diffusers", f"path={tmp_path / 'pipeline'}", f"out={out}")
    assert done.code == 0 and "sampler: ddpm, steps null, variance fixed_large, spacing leading, clip 2.5" in done.out
    done = call("train", f"from={out}")
    assert done.code == 2 and "data: nothing was chosen; add data=NAME" in done.err
    config = composed("train", f"from={out}", "data=digits")
    setup = build.training_setup(config)
    assert (
        setup.model.program.sha256 == model.program.sha256
        and setup.model.schedule == load_checkpoint(out).model.schedule
    )
    assert (config.sampler.name, config.sampler.variance, config.sampler.clip) == ("ddpm", "fixed_large", 2.5)
    assert load_checkpoint(out).notes["sampler"] == plain(config.sampler)


def test_a_run_that_python_code_started_names_no_data(tmp_path):
    """Its data were an object, so they must be named; everything else is taken."""
    setup = build.training_setup(composed("train", "experiment=digits", "ema=post_hoc", "lr.peak=0.02"))
    (tmp_path / "config.yaml").write_text(RunRecord.from_setup(setup).config)
    done = call("train", f"from={tmp_path}")
    assert done.code == 2 and "data: nothing was chosen; add data=NAME" in done.err
    taken = build.training_setup(composed("train", f"from={tmp_path}", "data=digits", "resume=null"))
    for name in ("optimiser", "learning_rate", "ema", "sampler", "sample", "training_config", "seed"):
        assert getattr(taken, name) == getattr(setup, name)


def test_a_command_whose_reader_has_gone_ends_without_a_traceback():
    """As in `duet train ... | head -1`."""
    words = ("inspect", "--help")
    code = f"import sys; sys.argv = {list(words)!r}; from experiments.inspect import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.wait()


def test_an_import_is_fine_tuned_with_the_objective_of_its_project(tmp_path):
    """The networks of dome272 were trained with t from 1, and with a tenth of the labels dropped."""
    spec = DoubleConvSpec(8, num_classes=10, null_class="zero", init="torch", channels=4, embedding=8)
    program = lower(spec)
    arrays = write_weights(dome272.make_name_map(spec, program), initial_weights(program, 0, np.float32))
    np.savez(tmp_path / "weights.npz", **arrays)
    out = tmp_path / "imported"
    words = ("source=dome272", f"path={tmp_path / 'weights.npz'}", "source.image_size=8")
    done = call("import_weights", *words, f"out={out}")
    assert done.code == 0, done.err
    config = composed("train", f"from={out}", "data=shapes")
    assert (config.process.first_t, config.process.label_dropout) == (1, 0.1)
