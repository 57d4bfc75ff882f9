"""Names, keys and texts on the command line.

A name that does not exist is refused with the nearest one, in every command, and a text is taken as it is.
"""

from __future__ import annotations

import inspect
import os
import shlex
from pathlib import Path

import pytest
import yaml
from commands import call, composed
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

import benchmarks.bench  # noqa: F401  (registers the schema of bench)
from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.synonyms import OPTIONS, VALUES
from diffusion_core.diffusion.schedule import CONTINUOUS, LISTED, SCHEDULES, transformed
from diffusion_core.sampling import SAMPLERS, make_plan
from duet.cli.experiments import experiments
from experiments.config import synonyms
from experiments.config.arguments import read_arguments
from experiments.config.entry import CONFIGS
from experiments.config.schema import SOURCES, TARGETS
from experiments.config.suggest import group_functions, key_hint, known_keys

COMMANDS = {name: command.module for name, command in experiments().items()}


def groups_of(command: str) -> dict[str, str | list[str] | None]:
    """Return the groups of a command with their defaults, as its file lists them."""
    entries = yaml.safe_load((CONFIGS / f"{command}.yaml").read_text())["defaults"]
    return {
        key: value for entry in entries if isinstance(entry, dict) for key, value in entry.items() if " " not in key
    }


CHOICES = [(command, group) for command in COMMANDS for group in groups_of(command)]
# A group of each kind: one that is empty by default, one with a default, a list, and one that must be chosen.
KINDS = (("train", "experiment"), ("train", "data"), ("evaluate", "metrics"), ("export_weights", "target"))


def refused(command: str, *words: str) -> str:
    """Check that a command refuses its arguments in one line with exit code 2; return the line."""
    code, out, err = call(COMMANDS.get(command, command), *words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    return err.removeprefix("error: ").rstrip()


@pytest.mark.parametrize(("command", "group"), CHOICES, ids=lambda value: value)
def test_a_choice_that_does_not_exist_is_refused_with_the_nearest_one(command: str, group: str) -> None:
    folder = group.partition("@")[0]
    known = sorted(path.stem for path in (CONFIGS / folder).glob("*.yaml")) or ["onnx", "diffusers"]
    near = max(known, key=lambda name: (len(name), name))
    required = {"source": "source=edm", "target": "target=onnx"}
    others = [required[other] for other, value in groups_of(command).items() if other in required and other != group]
    line = refused(command, f"{group}={near}q", *others)
    assert line.startswith(f"{folder}: ") and line.endswith(f"Did you mean {near!r}?"), line
    if (command, group) in KINDS:
        for word in (f"{group}={near.upper().replace('_', '-')}", f"+{group}={near}q"):
            assert refused(command, word, *others).endswith(f"Did you mean {near!r}?")
        assert "it must be one of" in refused(command, f"{group}=", *others)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("train metrics=[frechet,spatil]", "metrics: 'spatil' was given"),
        ("train experiment=[digits,digitz]", "experiment: 'digitz' was given"),
        ("train sampler=ddim,eulr", "sampler: 'eulr' was given"),
        ("train -m sampler=ddim,eulr", "sampler: 'eulr' was given"),
        ("train sampler=ddim,euler", "sampler: 'ddim,euler' was given, which is several choices; add -m"),
        ("train sampler=ddim sampler.sigmas=[9,1] sampler.steps=7", "sampler.steps: 7 was given with sampler.sigmas"),
        ("train sampler.sigmas=[9,1] sampler.spacing=karras", "sampler.spacing: karras was given with sampler.sigmas"),
        ("train sampler=null", "sampler: None was given; it must be one of"),
        ("train hydra/launcher=locl", "hydra/launcher: 'locl' was given"),
        ("train sampler@other=ddim", "sampler: train has no such group; did you mean sampler?"),
        ("train ema=0.999", "ema: '0.999' was given; it must be one of fixed"),
        ("train debug=true", "debug: 'true' was given; it must be one of fast"),
        ("train parallel=2", "parallel: '2' was given; it must be one of ddp"),
        ("train data={name: digits}", "data: '{name: digits}' was given"),
        (
            "train data=/home/me/pics",
            "which is no name but a path; write data=image_folder data.options.path=/home/me/pics",
        ),
        ("train metrics=frechet,kernel", "write metrics=[frechet,kernel] for all of them, or add -m to run each"),
        ("train digits", "digits: an option is KEY=VALUE; did you mean experiment=digits?"),
        ("train experiment = digits", "experiment: an option is KEY=VALUE, without spaces, as in experiment=VALUE"),
        ("sample outputs/demo/torch", "did you mean checkpoint=outputs/demo/torch?"),
        ("prepare image_folder", "did you mean data=image_folder?"),
        ("study demo", "did you mean study=demo?"),
        ("train lr=cosine", "did you mean lr.decay=cosine?"),
        ("train trainer.images=1e4", "'10000.0' was given; it must be a whole number; write 10000"),
        ("train out=runs/a", "out: there is no such key. Did you mean hydra.run.dir?"),
        ("evaluate run=a out=x", "run: there is no such key. Did you mean samples?"),
        ("replay", "bundle: no value was given; add bundle=RUN/non_finite/N to the command"),
        ("train +sampler=euler", "sampler: the command has a choice of this group already; give it without the +"),
        ("train ++sampler=euler", "sampler: a group is chosen without ++: sampler=euler"),
        ("train ~sampler=euler", "~sampler: the command has no such choice to remove"),
        ("train +device=cpu", "device: there is no such key. Did you mean backend.device?"),
        ("evaluate training=digits", "its file is chosen with data@training=digits"),
        ("inspect out=x", "data: nothing was chosen; add data=NAME, one of array, "),
        ("import_weights out=x path=y", "source: nothing was chosen; add source=NAME, one of ddpm_tf, "),
        ("train --config-name trian", "--config-name: 'trian' was given; it must be one of"),
        ("train --config-dir=nowhere", "nowhere' was given; there is no such folder"),
        ("train hydra.searchpath=[file:///nowhere] --multirun", "hydra.searchpath: '/nowhere' was given"),
        # A plus sign adds a key that nobody reads.
        ("train +batch=3", "batch: there is no such key. Did you mean trainer.batch?"),
        ("train ++trainer.btach=3", "trainer.btach: there is no such key. Did you mean trainer.batch?"),
        ("train +nonsense=1", "nonsense: there is no such key."),
        ("evaluate +data.optoins.size=8 out=x", "data.optoins: there is no such key"),
    ],
)
def test_a_name_that_would_be_ignored_is_refused(words: str, line: str, tmp_path: Path) -> None:
    command, *words = words.replace("{name: digits}", "{name:digits}").split()
    words = [word.replace("out=x", f"out={tmp_path / 'out'}").replace(":digits}", ": digits}") for word in words]
    own = [f"hydra.run.dir={tmp_path}", f"hydra.sweep.dir={tmp_path}"]
    assert line in refused(command, *words, *own)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("defaults: [{override /sampler: eulr}]", "sampler: 'eulr' was given"),
        ("defaults: [{override /metrics: [frechet, spatil]}]", "metrics: 'spatil' was given"),
        ("trainr: {images: 3}", "trainr: there is no such key. Did you mean trainer?"),
        (None, "experiment: a file of this group says where its keys belong"),
    ],
)
def test_a_name_within_a_file_of_the_user_is_refused(text: str | None, line: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    content = "trainer: {images: 3}" if text is None else f"# @package _global_\n{text}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(content)
    assert line in refused("train", f"--config-dir={tmp_path}", "experiment=mine", f"hydra.run.dir={tmp_path / 'run'}")
    if text is None:  # of every folder of the user
        words = (f"hydra.searchpath=[{tmp_path}]", f"hydra.run.dir={tmp_path / 'run'}")
        assert line in refused("train", *words, "experiment=mine")
        assert "Did you mean 'mine'?" in refused("train", f"--config-dir={tmp_path}", "experiment=minee")


def test_a_choice_of_an_optional_group_of_the_user_is_refused(tmp_path: Path) -> None:
    """Hydra leaves out an optional group whose option does not exist; only what was typed must exist."""
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "laptop.yaml").write_text("# @package _global_\nseed: 3\n")
    defaults = "defaults: [train, {optional local: default}, _self_]\n"
    (tmp_path / "mine.yaml").write_text(
        f"{defaults}trainer: {{images: 100}}\nhydra: {{run: {{dir: {tmp_path}/run}}}}\n"
    )
    flags = ["--config-dir", str(tmp_path), "--config-name", "mine"]
    assert "multiple of trainer.batch" in refused("train", *flags)
    assert "multiple of trainer.batch" in refused("train", *flags, "local=laptop")
    assert refused("train", *flags, "local=laptob").endswith("Did you mean 'laptop'?")


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("evaluate samples=X data=digits", "samples"),
        ("evaluate samples=[X,Y] data=digits", "samples"),
        ("evaluate samples=Y reference=X", "reference"),
        ("evaluate samples=X.npz data=digits", "samples"),
        ("prepare data=npz data.options.path=X.npz", "data.options.path"),
        ("prepare data=array data.options.path=X.npy", "data.options.path"),
        ("compare evaluations=[X,Y]", "evaluations"),
        ("compare traces=[X,Y]", "traces"),
    ],
)
def test_a_file_that_does_not_exist_is_named_with_its_key(words: str, key: str, tmp_path: Path) -> None:
    for name in ("samples", "samples.npz", "samples.npy"):
        (tmp_path / name).touch()
    command, *words = words.replace("X", f"{tmp_path}/sampels").replace("Y", f"{tmp_path}/other").split()
    line = refused(command, f"out={tmp_path / 'out'}", *words)
    assert line.startswith(f"{key}: '{tmp_path}/sampels") and "which does not exist. Did you mean" in line


def test_a_group_that_is_empty_by_default_may_be_left_empty() -> None:
    for command in ("train experiment=null debug=null", "evaluate data=null data@training=none", "sample sampler=null"):
        name, *words = command.split()
        assert read_arguments(words, name) == []


def test_flags_may_stand_anywhere() -> None:
    words = read_arguments(
        ["seed=1", "-m", "data=digits", "--config-dir", "~/x", "backend=tf", "--info", "plugins"], "train"
    )
    assert words == [
        "-m",
        "--config-dir",
        os.path.expanduser("~/x"),
        "--info",
        "plugins",
        "seed=1",
        "data=digits",
        "backend=tf",
    ]
    assert read_arguments(["--info", "seed=1"], "train") == ["--info", "seed=1"]


# --- hints --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (
            "train",
            "lr:lr.peak learning_rate:lr.peak epochs:trainer.images trainer.max_epochs:trainer.images "
            "steps:trainer.images batch_size:trainer.batch train_batch_size:trainer.batch "
            "gradient_accumulation_steps:trainer.micro_batch width:model.channels "
            "dim_mults:model.channel_multipliers num_res_blocks:model.blocks_per_resolution fid:features "
            "num_workers:data.workers image_size:model.image_size optimizer:optimiser scheduler:sampler "
            "weight_decay:optimiser.weight_decay max_grad_norm:optimiser.clip ema_decay:ema.decay "
            "dropout:model.dropout warmup_steps:lr.warmup_images lr_scheduler:lr.decay dataset:data "
            "data_dir:data.options.path fp16:precision beta_schedule:process.schedule "
            "num_train_timesteps:process.schedule prediction_type:process.prediction snr_gamma:process.weighting "
            "p_uncond:process.label_dropout cfg_scale:sampler.guidance_scale wandb:tracker "
            "output_dir:hydra.run.dir resume_from_checkpoint:resume gpu:backend.device "
            "torch_compile:backend.compile save_every:trainer.checkpoint_images log_every:trainer.log_images "
            "num_samples:sample.count xflip:data.flip num_classes:model.num_classes loss_type:process.distance "
            "learn_sigma:process.variance dtype:precision num_inference_steps:sampler.steps random_seed:seed "
            "mixed_precision:precision Batch-Size:trainer.batch",
        ),
        (
            "sample",
            "batch_size:sample.batch "
            "num_samples:sample.count steps:sampler.steps guidance_scale:sampler.guidance_scale "
            "outdir:out ckpt:checkpoint class_labels:sample.labels num_inference_steps:sampler.steps seed:sample.seed",
        ),
        ("evaluate", "fid:features real:reference fake:samples batch_size:likelihood.batch nll:likelihood out_dir:out"),
        ("edit", "batch_size:batch ckpt:checkpoint img:path"),
        ("gallery", "cfg:guidance_scale n_samples:sample.count"),
        ("prepare", "num_workers:workers dataset:data image_size:data.options.size"),
    ],
)
def test_a_key_of_another_library_is_answered_with_that_of_duet(command: str, names: str) -> None:
    for pair in names.split():
        name, meant = pair.split(":")
        if name not in ("lr", "img"):
            assert key_hint(name, command).startswith(f" Did you mean {meant}"), (name, key_hint(name, command))


def test_a_key_of_another_command_is_answered_with_the_commands_that_have_it() -> None:
    assert key_hint("sampler.steps", "evaluate") == " It is a key of edit, sample, train."
    assert key_hint("trainer.images", "sample") == " It is a key of train."
    assert key_hint("sample.count", "evaluate").startswith(" Did you mean count")


def test_every_key_that_a_hint_offers_exists() -> None:
    for command in ("sample", "edit", "evaluate", "prepare"):
        __import__(COMMANDS[command])  # registers the options of its groups
    known = {*known_keys(), "device", "compile"}
    meant = {key for meanings in synonyms._MEANINGS.values() for keys, _ in meanings for key in keys}
    assert not meant - known


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "train lr=1e-3",
            "it is a group of keys; give one of them, as in lr.NAME=VALUE; did you mean lr.peak=",
        ),
        ("train epochs=3", "Did you mean trainer.images (the length of a run is counted in images seen: epochs times"),
        ("train precision=bfloat16", "float64, float32, bf16. Did you mean 'bf16'?"),
        ("train backend.device=gpu", "Did you mean 'cuda'?"),
        ("train backend=tensorflow", "Did you mean 'tf'?"),
        ("train sampler=euler_a", "Did you mean 'euler_ancestral'?"),
        ("train data=ImageFolder", "Did you mean 'image_folder'?"),
        ("train metrics=[fid]", "Did you mean 'frechet'?"),
        ("train process.distance=mae", "Did you mean 'l1'?"),
        ("edit mode=img2img", "Did you mean 'image_to_image'?"),
    ],
)
def test_a_value_of_another_library_is_answered_with_that_of_duet(words: str, line: str, tmp_path: Path) -> None:
    command, *words = words.split()
    directory = "hydra.run.dir" if command == "train" else "out"
    assert line in refused(command, f"{directory}={tmp_path}", *words)


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("precision", "fp32", "float32"), ("precision", "half", "bf16"), ("precision", "16", "bf16"),
        ("precision", "double", "float64"), ("backend.device", "cuda:0", "cuda"), ("sampler", "dpm++", "dpm_solver"),
        ("tracker", "tensorboard", "none"), ("lr.decay", "CosineAnnealingLR", "cosine"),
    ],
)  # fmt: skip
def test_other_words_for_a_value_are_answered_with_it(key: str, value: str, meant: str) -> None:
    assert str(one_of(key, value, VALUES[key].values())).endswith(f"Did you mean {meant!r}?")


def test_every_value_that_a_hint_offers_exists() -> None:
    for key, names in VALUES.items():
        options = {path.stem for path in (CONFIGS / key).glob("*.yaml")} | {*SOURCES, *TARGETS}
        options |= SCHEDULES.keys() | CONTINUOUS.keys() | LISTED.keys() if key == "schedule" else set()
        if "." not in key and key != "precision":
            assert set(names.values()) <= options, key


def test_every_option_that_a_hint_offers_exists() -> None:
    functions = {
        "sampler": [make_plan, *SAMPLERS.values()],
        "schedule": [transformed, *group_functions("process.schedule")],
        "optimiser": group_functions("optimiser"),
    }
    for key, names in OPTIONS.items():
        known = {name for function in functions[key] for name in inspect.signature(function).parameters}
        assert set(names.values()) <= known, key


# --- texts --------------------------------------------------------------------------------------------------------

NAMES = [
    "pics (1)", "epoch=9.ckpt", "x#1", "a&b", "lr=0.1", "猫", "größe", "it's", 'say "x"', "[a]", "{a}", "a,b", "a;b",
    "a^b", "a!b", "100%", "a@b", "a+b", "a:b", "a*", "a$b", "1e3", "007", "true", "1_000", " a",
    "a\\b(", "~x", "<a>", "`a`",
]  # fmt: skip


def value_of(command: str, override: str, *flags: str) -> object:
    """Return what Hydra reads for one override."""
    (word,) = [word for word in read_arguments([override, *flags], command) if not word.startswith("-")]
    return OverridesParser.create().parse_override(word).value()


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_taken_as_it_is(name: str) -> None:
    assert value_of("train", f"data.options.path=dir/{name}") == f"dir/{name}"
    assert value_of("sample", f"checkpoint={name}") == name
    if "," not in name:
        assert value_of("compare", f"runs=[dir/{name},b]") == [f"dir/{name}", "b"]


def test_every_key_that_holds_a_path_takes_it_as_it_is() -> None:
    name = "it's a=b (1) {ü}"
    keys = {
        "train": ("data.options.path", "data.store", "hydra.run.dir", "features.weights", "from", "resume"),
        "sample": ("checkpoint", "out", "guide", "classifier"),
        "evaluate": ("samples", "reference", "training.options.path", "features.path"),
        "compare": ("title", "out"),
        "prepare": ("split.path", "archives", "out"),
        "import_weights": ("path", "source.key", "source.ema"),
    }
    for command, names in keys.items():
        for key in names:
            assert value_of(command, f"{key}=x/{name}") == f"x/{name}", key
    words = read_arguments([f"checkpoint=x/{name}", "out=o"], "sample")
    assert composed("sample", *words).checkpoint == f"x/{name}"


@settings(max_examples=25, deadline=None)
@given(st.text(min_size=1))
def test_every_text_is_taken_as_it_is(name: str) -> None:
    override = f"checkpoint=x{name}"
    if "${" not in name and "\\" not in name:
        assert value_of("sample", override) == f"x{name}"


def test_what_is_hydras_stays_hydras() -> None:
    for word in (
        "checkpoint='a (1)'", 'checkpoint="a (1)"', "out=${oc.env:HOME}/x (1)", "checkpoint=null", r"out=a\(1\)",
        "runs=['a','b']", "trainer.batch=32", "data.options={path: a}", "sampler.spacing={name: karras}",
        "~debug",
        "model.channel_multipliers=[1,2]", "sample.labels=3", "sample.count=3", "sample.labels=[1,-2]",
        "++data.options.size=8", "features.weights=download",
    ):  # fmt: skip
        assert read_arguments([word], "train" if "runs" not in word else "compare") == [word]


def test_classes_are_named_as_they_are() -> None:
    assert value_of("train", "sample.labels=[Coast,North (sea),Café,3]") == ["Coast", "North (sea)", "Café", 3]
    assert value_of("train", "sample.labels=North (sea)") == "North (sea)"


def test_in_a_sweep_commas_separate_texts(tmp_path: Path, monkeypatch, capsys) -> None:
    assert read_arguments(["-m", "out=a (1),b"], "sample") == ["-m", "out='a (1)',b"]
    assert read_arguments(["-m", "out=choice(a,b)"], "sample") == ["-m", "out=choice(a,b)"]
    assert read_arguments(["-m", "runs=[a (1),b],[c]"], "compare") == ["-m", "runs=['a (1)',b],[c]"]
    assert capsys.readouterr().err == ""
    (tmp_path / "a,b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_arguments(["-m", "checkpoint=a,b"], "sample") == ["-m", "checkpoint='a,b'"]
    assert capsys.readouterr().err == "checkpoint: 'a,b' exists, and is one value and not several\n"
    assert read_arguments(["checkpoint=a,b"], "sample") == ["checkpoint='a,b'"]
    assert capsys.readouterr().err == ""
    assert read_arguments(["out=c,d"], "sample") == ["out='c,d'"]
    assert capsys.readouterr().err == "out: 'c,d' is taken as one value; -m sweeps over several\n"


def test_the_home_directory_is_found_in_every_text(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for command, key in (("train", "data.options.path"), ("sample", "checkpoint"), ("train", "hydra.run.dir")):
        assert value_of(command, f"{key}=~/a b") == f"{tmp_path}/a b"
    assert value_of("compare", "runs=[~/a,~/b (1)]") == [f"{tmp_path}/a", f"{tmp_path}/b (1)"]
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndata: {name: image_folder, options: {path: ~/none}}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    words = [f"--config-dir={tmp_path}", "experiment=mine", f"hydra.run.dir={tmp_path / 'run'}", "data=image_folder"]
    assert f"{tmp_path}/none" in refused("train", *words)


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("sampler.spacing=lea(ding", "\"sampler.spacing='lea(ding'\""),
        ("trainer.batch=3=4", "\"trainer.batch='3=4'\""),
        ("+tracker.note=größe", "\"+tracker.note='größe'\""),
    ],
)
def test_a_value_that_cannot_be_read_is_shown_with_quotes(word: str, shown: str, tmp_path: Path) -> None:
    line = refused("train", word, f"hydra.run.dir={tmp_path}")
    assert line.endswith(shown) and "hydra.cc" not in line
    (typed,) = shlex.split(shown)
    assert OverridesParser.create().parse_override(typed).value() == word.split("=", 1)[1]


def test_an_argument_that_is_no_option_is_refused(tmp_path: Path) -> None:
    assert refused("train", "quickly") == "quickly: an option is KEY=VALUE"
    with pytest.raises(DuetError, match=r"options have no dashes: trainer\.batch=32"):
        read_arguments(["--batch", "32"], "train")
