"""Training methods whose targets need the network, by configuration: a run, its resume, its teacher, its samples."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from commands import call, composed

import duet
from diffusion_core.common.errors import DuetError
from diffusion_core.files.safe_read import read_json
from diffusion_core.runs.checkpoint import find_checkpoint, load_checkpoint
from diffusion_core.runs.run_directory import read_metrics, read_samples
from diffusion_core.training.targets import METHODS
from experiments.config import build, from_run
from experiments.training import changes, resume

TINY = (
    "data=digits", "model=digits", "model.channels=4", "model.norm_groups=2", "model.attention_resolutions=[]",
    "model.channel_multipliers=[1]", "model.middle=false", "trainer.images=96", "trainer.batch=16",
    "trainer.log_images=16", "lr.warmup_images=0", "lr.decay=constant", "sample.count=4", "sample.batch=4",
    "sampler.guidance_scale=1", "features=none", "metrics=[]", "tracker=none", "backend.threads=1",
    "backend.device=cpu", "validation.part=none",
)  # fmt: skip
# The groups of each method; those with a teacher need one of this process.
GROUPS = {
    "consistency_training": ("process=consistency", "sampler=consistency"),
    "consistency_distillation": ("process=consistency", "sampler=consistency", "sampler.steps=2"),
    "improved_consistency_training": ("process=consistency", "sampler=consistency"),
    "easy_consistency_tuning": ("process=easy_consistency", "sampler=consistency", "sampler.steps=2"),
    "continuous_consistency_training": ("process=trigflow", "sampler=consistency", "process.uncertainty=true"),
    "continuous_consistency_distillation": ("process=trigflow", "sampler=consistency", "sampler.steps=2"),
    "mean_flow": ("process=mean_flow", "sampler=mean_flow", "model.second_time=true"),
    "shortcut": ("process=shortcut", "sampler=shortcut", "sampler.steps=4", "model.second_time=true"),
    "progressive_distillation": ("process=v_cosine_continuous", "sampler=ddim", "sampler.steps=4"),
}


def words(name: str, teacher: Path | None = None) -> tuple[str, ...]:
    """Return the words of the command line for a method."""
    return (*TINY, f"objective={name}", *GROUPS[name], *([f"objective.teacher={teacher}"] if teacher else []))


def train(run: Path, backend: str, *given: str) -> str:
    code, out, err = call("train", f"backend={backend}", f"hydra.run.dir={run}", *given)
    assert code == 0, err
    return out


@pytest.fixture(scope="module")
def teacher(backend_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher after two steps."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    train(run, backend_name, *TINY, "process=edm", "sampler=heun", "sampler.steps=2", "trainer.images=32")
    return run


def test_every_method_has_a_configuration_with_its_options(teacher):
    assert GROUPS.keys() == METHODS.keys()
    for name, method in METHODS.items():
        known = {"teacher", "teacher_weights", "start"} if method.needs_teacher or method.takes_teacher else set()
        cfg = composed("train", *words(name, teacher if method.needs_teacher else None))
        assert set(cfg.objective) == {"name", *method().options} | known
        defaults = method().options
        given = {key: cfg.objective[key] for key in defaults}
        assert {key: list(v) if isinstance(v, tuple) else v for key, v in defaults.items()} == given, name


@pytest.mark.backend
def test_a_distilled_student_starts_at_its_teacher_and_resumes_exactly(teacher, backend_name, tmp_path):
    """Its targets depend on the average and on the teacher; the checkpoint keeps one and the hash of the other."""
    given = words("consistency_distillation", teacher)
    setup = build.training_setup(composed("train", f"backend={backend_name}", *given))
    assert setup.averages == 2
    start = setup.teacher.start_weights(setup.model)
    assert all(np.array_equal(start[n], w) for n, w in load_checkpoint(teacher).state.ema.items())
    uncertain = build.training_setup(composed("train", *words("continuous_consistency_distillation", teacher),
                                              "process.uncertainty=true", "objective.start=teacher"))  # fmt: skip
    state = resume.starting_point(uncertain, tmp_path)[0].state.weights
    assert not state["uncertainty.dense.weight"].any() and state.keys() - start.keys() == {
        name for name in state if name.startswith("uncertainty.")
    }
    assert all(np.array_equal(state[name], np.asarray(w, np.float32)) for name, w in start.items())
    other = build.training_setup(composed("train", *words("continuous_consistency_distillation", teacher)))
    assert other.teacher.start_weights(other.model) is None  # trigflow has the opposite sign of edm
    train(tmp_path / "whole", backend_name, *given, "trainer.checkpoint_images=48", "trainer.keep_checkpoints=null")
    half = tmp_path / "whole" / "checkpoints" / f"{48:012d}"
    train(tmp_path / "parts", backend_name, *given, f"resume={half}")
    whole, parts = (load_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    for name, part in whole.state.parts.items():
        for key, value in part.items():
            np.testing.assert_array_equal(parts.state.parts[name][key], value, err_msg=f"{name} {key}")
    metrics = list(read_metrics(tmp_path / "whole" / "metrics.jsonl"))
    assert metrics[-1]["ema1_decay"] == 0.95
    noted = whole.notes["trained_for"]["objective"]
    assert noted["name"] == "consistency_distillation" and noted["teacher"] == setup.teacher.network.sha256
    samples, _ = read_samples(next((tmp_path / "whole" / "samples").glob("samples*.npz")))[:2]
    assert samples.shape == (4, 8, 8, 1)


@pytest.mark.either  # the backends' parts are held by tests/backend
def test_the_validation_loss_of_a_run_is_that_of_its_evaluation(teacher, backend_name, tmp_path):
    given = (*words("consistency_distillation", teacher), "data.options.part=train", "validation.part=auto")
    sizes = "validation.count=8", "validation.batch=4", "trainer.images=32"
    train(tmp_path / "run", backend_name, *given, *sizes)
    logged = list(read_metrics(tmp_path / "run" / "metrics.jsonl"))[-1]
    assert {"validation_loss", "validation_loss_ema", "validation_loss_ema1", "validation_loss_level4"} <= logged.keys()
    words_of = (
        "evaluate", f"backend={backend_name}", f"checkpoint={tmp_path / 'run'}", "data=digits", "weights=ema",
        "data.options.part=held_out", "loss=validation", "loss.count=8", "loss.batch=4", "features=none", "metrics=[]",
        "backend.threads=1", "backend.device=cpu", f"out={tmp_path / 'out'}",
    )  # fmt: skip
    code, _, err = call(*words_of)
    assert code == 2 and "loss.teacher: nothing was given, but the checkpoint was trained with objective=consist" in err
    code, _, err = call(*words_of, f"loss.teacher={teacher}", "loss.teacher_weights=weights")
    assert code == 2 and "loss.teacher_weights" in err
    code, _, err = call(*words_of, f"loss.teacher={teacher}")
    assert code == 0, err
    found = read_json(tmp_path / "out" / "evaluation.json")["loss"]
    assert found["loss"] == pytest.approx(logged["validation_loss_ema"], rel=1e-6)


@pytest.mark.either  # the backends' parts are held by tests/backend
def test_a_step_that_is_not_finite_is_stored_and_replayed(teacher, backend_name, tmp_path):
    given = (
        *words("consistency_distillation", teacher),
        "lr.peak=1e200",
        "optimiser.clip=null",
    )
    code, _, err = call("train", f"backend={backend_name}", f"hydra.run.dir={tmp_path / 'run'}", *given)
    assert code == 2 and "to examine it: python3 -m duet replay" in err
    (bundle,) = (tmp_path / "run" / "non_finite").iterdir()
    code, said, err = call("replay", f"backend={backend_name}", f"bundle={bundle}", "backend.threads=1")
    assert code == 0 and "it happens again" in said, err
    report = read_json(bundle / f"replay-{backend_name}-float32.json")
    assert report["reproduced"] and report["first"]["kind"] != "batch"
    assert "reference" in said


@pytest.mark.backend
def test_a_network_of_two_times_trains_and_samples(backend_name, tmp_path):
    train(tmp_path / "run", backend_name, *words("mean_flow"), "process.label_dropout=0.2", "trainer.images=32")
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 2 and np.all(np.isfinite(losses))
    assert read_json(tmp_path / "run" / "result.json")["sampled"] == 4


def test_a_run_hands_its_objective_on(teacher, tmp_path):
    """from=RUN takes the method with all of its options, also of a run that Python code started."""
    objective = {"name": "easy_consistency_tuning", "q": 4.0, "teacher": str(teacher)}
    node = from_run._group_node("objective", objective)
    assert node["q"] == 4.0 and node["stages"] == 8 and node["start"] is None
    assert node["teacher"] == str(teacher)
    assert from_run._group_node("objective", {"name": "regression"}) == {"name": "regression"}
    assert "objective" in from_run.FROM["train"].groups


def test_another_objective_is_a_changed_objective(teacher):
    setups = [
        build.training_setup(composed("train", *words("improved_consistency_training"), f"objective.end_scales={n}"))
        for n in (640, 1280)
    ]
    notes = [changes.objective_note(setup) for setup in setups]
    assert notes[0] != notes[1] and notes[0]["end_scales"] == 640
    assert changes.objective_note(build.training_setup(composed("train", *TINY))) == {"name": "regression"}


@pytest.mark.parametrize(
    "given, match",
    [
        ((), "objective.teacher: no value was given"),
        (("objective.start=fresh",), "objective.start: fresh was given without a teacher"),
        (("objective.teacher={teacher}", "objective.start=teahcer"), "objective.start: 'teahcer' was given"),
        (("objective.teacher={teacher}", "objective.start=teacher", "model.channels=8"), "another; use fresh"),
        (("objective.teacher={teacher}", "objective.teacher_weights=ema9"), "objective.teacher_weights: 'ema9'"),
    ],
)
def test_what_does_not_fit_is_refused(given, match, teacher):
    given = [word.format(teacher=teacher) for word in given]
    objective = "easy_consistency_tuning" if given else "consistency_distillation"
    with pytest.raises(Exception, match=re.escape(match)):
        build.training_setup(composed("train", *words(objective), *given))


def test_a_mistake_is_one_line(teacher, tmp_path):
    for given, match in (
        ((*TINY, f"objective.teacher={teacher}"), "objective.teacher"),
        (
            (*words("consistency_training"), "objective.rhoo=1"),
            "objective.rhoo: there is no such key. Did you mean objective.rho?",
        ),
        (words("consistency_distillation"), "objective.teacher: no value was given"),
    ):
        code, _, err = call("train", f"hydra.run.dir={tmp_path / 'run'}", *given)
        lines = [line for line in err.splitlines() if line.strip()]
        assert code == 2 and len(lines) == 1 and match in lines[0], err


@pytest.mark.backend
def test_python_trains_with_an_objective_and_a_teacher(teacher, backend_name, tmp_path):
    model = load_checkpoint(teacher).model
    student = duet.Model(model.spec, {"name": "edm"}, "edm", boundary=0.002, time_scale=1000.0)
    data = duet.load_dataset("digits")
    run = duet.train(
        student, data, images=16, batch=16, teacher=teacher, backend=backend_name, device="cpu", threads=1, quiet=True,
        objective={"name": "consistency_distillation", "solver": "euler"}, sampler="consistency",
    )  # fmt: skip
    assert len(run.state.averages) == 2
    assert duet.sample(run, 2, backend=backend_name, device="cpu").shape == (2, 8, 8, 1)
    with pytest.raises(DuetError, match=r"objective.teacher: nothing was given; .*teacher=RUN"):
        duet.train(student, data, images=16, batch=16, objective={"name": "consistency_distillation"})
    assert find_checkpoint(teacher).exists()
