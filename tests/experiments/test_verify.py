"""Runs are certified and verified: honest ones pass, whatever they train; changed ones are found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import call, composed
from tampering import CHANGES, CLAIMS, rehash, settle

import duet
from diffusion_core.common.errors import DuetError
from diffusion_core.files.safe_read import read_json
from diffusion_core.networks.weights import hash_weights
from diffusion_core.runs.manifest import MANIFEST
from diffusion_core.runs.run_directory import plain_data
from duet.cli.experiments import experiments, with_backend_of_run
from experiments.config import verification
from experiments.config.arguments import read_arguments
from experiments.training.manifest import setup_facts
from experiments.training.resume import first_state
from experiments.verification.compare import bit_differences
from experiments.verification.verdict import BIT_EXACT, DIFFERS, WITHIN, Verdict
from experiments.verification.verify import Options, Rebuilt, open_record, verify

TINY = (
    "data=digits", "model=plain", "model.image_size=8", "model.in_channels=1", "model.out_channels=1",
    "model.channels=[4]", "model.bottleneck=4", "process=eps_linear", "trainer.batch=8", "trainer.images=32",
    "trainer.log_images=8", "trainer.checkpoint_images=8", "lr.warmup_images=16", "lr.decay=cosine", "lr.floor=1e-4",
    "sample.count=8",
    "sample.batch=8", "sampler=ddim", "sampler.steps=2", "features=none", "metrics=[]", "validation.count=8",
    "trainer.validation_images=16", "backend.threads=1", "backend.device=cpu",
)  # fmt: skip

pytestmark = pytest.mark.either


def train(run: Path, backend: str, *words: str) -> Path:
    code, _, err = call("train", f"backend={backend}", f"hydra.run.dir={run}", *TINY, *words)
    assert code == 0, err
    return run


@pytest.fixture(scope="module")
def honest(backend_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four segments."""
    return train(tmp_path_factory.mktemp("verify") / "run", backend_name)


@pytest.fixture(scope="module")
def parts(backend_name: str) -> Callable[[str, str], Rebuilt]:
    """Return a function that makes the part of a run again, once for each configuration."""
    made: dict[str, Rebuilt] = {}

    def part(config: str, run: str) -> Rebuilt:
        if config not in made:
            cfg = composed("verify", f"run={run}", f"backend={backend_name}", "backend.threads=1", "backend.device=cpu")
            made[config] = verification.rebuild(config, run, cfg)
        return made[config]

    return part


def verified(run: Path, parts: Callable[[str, str], Rebuilt], **options: object) -> Verdict:
    """Verify a run in this process."""
    record, problems = open_record(run)
    given = Options(**{"segments": "all", "results": False} | options)
    return verify(record, lambda part: parts(part.content["config"], str(run)), given, problems)


def tampered(run: Path, honest: Path, name: str, seed: int, parts: Callable[[str, str], Rebuilt]) -> str:
    """Make a changed copy of a run whose record contradicts nothing; return what was changed."""
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(honest, run, ignore=shutil.ignore_patterns("verdicts", "report.html"))
    done = CHANGES[name](run, np.random.default_rng(seed))
    if name not in CLAIMS:
        rehash(run)
        return done

    def facts(config: str) -> dict[str, object]:
        setup = parts(config, str(run)).setup
        return {
            "setup": plain_data(setup_facts(setup)), "problem": setup.model.to_dict(),
            "weights_sha256": hash_weights(first_state(setup).state.weights),
        }  # fmt: skip

    settle(run, facts)
    return done


def assert_found(honest: Path, run: Path, name: str, seed: int, parts: Callable[[str, str], Rebuilt]) -> None:
    done = tampered(run, honest, name, seed, parts)
    verdict = verified(run, parts)
    assert verdict.verdict == DIFFERS and not verdict.is_success, (name, done)
    assert not verdict.problems, (name, done, verdict.problems)  # only computing it again shows the change
    assert any(result.first for result in verdict.results), (name, done)


def test_an_honest_run_has_equal_bits(honest, parts):
    verdict = verified(honest, parts, results=True)
    assert verdict.verdict == BIT_EXACT, "\n".join(verdict.lines())
    assert [result.number for result in verdict.results] == [1, 2, 3, 4, None]
    assert not verdict.unchecked and [row["found"] for row in verdict.detection] == [1.0, 1.0]


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_run_with_hashes_made_again_is_found(honest, tmp_path, parts, name):
    assert_found(honest, tmp_path / "run", name, 0, parts)


def test_a_drawn_segment_finds_a_change_in_it_and_no_other(honest, tmp_path, parts):
    """A changed metric of segment 2: whoever draws one of four segments finds it in a quarter of the draws."""
    run = shutil.copytree(honest, tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(
        "\n".join([lines[0], lines[1].replace('"loss": 1', '"loss": 2'), *lines[2:]]) + "\n"
    )
    rehash(run)
    found = {}
    for seed in range(8):
        verdict = verified(run, parts, segments=1, draw_seed=seed)
        assert verdict.draw.seed == seed and verdict.detection[0] == {"changed": 1, "of": 4, "found": 0.25}
        found.setdefault(verdict.replayed[0].number, set()).add(verdict.verdict)
    assert found.pop(2) == {DIFFERS} and set(map(tuple, found.values())) == {(BIT_EXACT,)}


def test_results_that_were_changed_are_found(honest, tmp_path, parts):
    """The mean loss follows from the metrics; the samples are drawn again from the final weights."""
    for name in ("objective", "samples"):
        run = shutil.copytree(honest, tmp_path / name)
        if name == "objective":
            result = read_json(run / "result.json")
            (run / "result.json").write_text(json.dumps(result | {"objective": result["objective"] * 0.99}))
        else:
            with np.load(run / "samples" / "samples.npz") as file:
                arrays = {key: file[key] for key in file.files}
            arrays["images"][0, 0, 0, 0] ^= 1
            np.savez(run / "samples" / "samples.npz", **arrays)
        rehash(run)
        verdict = verified(run, parts, segments=1, results=True)
        assert verdict.verdict == DIFFERS and not verdict.problems and verdict.results[0].verdict == BIT_EXACT
        assert verdict.results[1].first.what in ("mean loss of the last steps", "8 final samples")


def test_a_record_that_contradicts_itself_is_not_computed_again(honest, tmp_path, parts):
    def write(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
        return lambda run: (run / name).write_text(change((run / name).read_text())) and None

    checkpoint, state = "checkpoints/000000000016", "checkpoints/000000000016/state.json"
    changes = {
        "config.yaml": write("config.yaml", lambda text: text.replace("peak: 0.001", "peak: 0.002")),
        "environment.json": write("environment.json", lambda text: text.replace('"seed": 0', '"seed": 1')),
        "metrics.jsonl": write("metrics.jsonl", lambda text: text.replace('"loss": 0', '"loss": 1', 1) + "\n"),
        "manifest": write(MANIFEST, lambda text: text.replace('"images_seen": 16', '"images_seen": 24', 1)),
        "result.json": write("result.json", lambda text: text + " "),
        state: write(state, lambda text: text.replace('"seed": 0', '"seed": 1')),
        f"{checkpoint}/ema.safetensors": lambda run: (run / checkpoint / "ema.safetensors").write_bytes(b"x"),
        f"{checkpoint}/weights.safetensors": lambda run: (run / checkpoint / "weights.safetensors").unlink(),
        "samples/samples.npz": lambda run: (run / "samples" / "samples.npz").unlink(),
    }  # fmt: skip
    for what, change in changes.items():
        run = shutil.copytree(honest, tmp_path / what.replace("/", "-"))
        change(run)
        verdict = verified(run, parts)
        assert verdict.verdict == DIFFERS and not verdict.results, what
        assert what in [problem.what for problem in verdict.problems], (what, verdict.problems)
    (run / MANIFEST).write_text("")
    verdict = verified(run, parts)
    assert verdict.verdict == DIFFERS and verdict.head == ""


def test_where_bits_must_be_equal_a_negative_zero_is_a_difference():
    recorded, found = ({"weights": {"w": np.array([1.0, zero])}} for zero in (0.0, -0.0))
    (difference,) = bit_differences(found, recorded, 8, None)
    assert not difference.is_within and "1 of 2 numbers differ" in difference.detail


def test_in_another_environment_a_change_is_held_against_what_rounding_does(honest, tmp_path, parts):
    """The same bits are the same anywhere; one unit in the last place may be rounding there, and a percent may not."""

    def elsewhere(name: str, change: str | None) -> Verdict:
        run = shutil.copytree(honest, tmp_path / name)
        facts = read_json(run / "environment.json")
        (run / "environment.json").write_text(json.dumps(facts | {"processor": "another"}))
        if change:
            CHANGES[change](run, np.random.default_rng(3))
        rehash(run)
        return verified(run, parts)

    assert elsewhere("equal", None).verdict == BIT_EXACT
    near = elsewhere("near", "change_a_weight_by_one_unit")
    assert near.verdict == WITHIN and any("processor: another recorded" in line for line in near.lines())
    assert {result.verdict for result in near.results} == {BIT_EXACT, WITHIN}
    assert all(result.worst.size <= result.worst.bound < 1e-3 for result in near.results if result.worst)
    far = elsewhere("far", "change_a_weight")
    assert far.verdict == DIFFERS and any("the bound is" in line for line in far.lines())


def test_a_run_with_everything_is_verified_across_its_resumes(backend_name, tmp_path):
    """Label dropout, two averages, adaptive timesteps, deleted checkpoints, and another optimiser since the resume."""
    words = (
        "model=digits", "model.channels=4", "model.norm_groups=2", "model.attention_resolutions=[]", "model.heads=1",
        "model.channel_multipliers=[1]", "process.label_dropout=0.3", "+ema.extra=[{name: fixed, decay: 0.9}]",
        "process.timestep_sampling={name: loss_second_moment}", "trainer.keep_checkpoints=1", "data.flip=true",
        "validation.part=none",
    )  # fmt: skip
    left = ("model.bottleneck", "model.channels=[4]", "model=plain")
    tiny = tuple(word for word in TINY if not word.startswith(left))
    run = tmp_path / "run"
    for more in ((), ("trainer.images=48", "optimiser=lion", "change_objective=true", "resume=latest")):
        code, _, err = call("train", f"backend={backend_name}", f"hydra.run.dir={run}", *tiny, *words, *more)
        assert code == 0, err
    code, out, err = call("verify", f"run={run}", f"backend={backend_name}", "segments=all")
    assert code == 0 and "verdict: BIT-EXACT" in out, out + err
    assert "segment 1, 0 to 48 images" in out and "5 deleted checkpoints: their arrays were compared by hash" in out
    code, out, _ = call("certify", f"run={run}")
    assert code == 0 and "trained: 48 of 48 images, seed 0" in out
    code, out, _ = call("verify", f"run={run / 'certificate.json'}", f"backend={backend_name}")
    assert code == 0 and "verdict: BIT-EXACT" in out  # from the seed to the end, by hashes alone
    shutil.rmtree(run / "checkpoints")
    code, out, _ = call("verify", f"run={run}", f"backend={backend_name}")
    assert code == 0 and "not checked: the final samples and their evaluation: the final checkpoint is not here" in out


def test_a_checkpoint_that_a_kill_left_out_of_the_manifest_is_covered_by_the_resume(honest, backend_name, tmp_path):
    run = shutil.copytree(honest, tmp_path / "run")
    lines = (run / MANIFEST).read_text().splitlines(keepends=True)
    (run / MANIFEST).write_text("".join(lines[:-2]) + lines[-2][:40])
    train(run, backend_name, "trainer.images=40", "resume=latest")
    code, out, err = call("verify", f"run={run}", f"backend={backend_name}", "segments=all")
    assert code == 0 and "verdict: BIT-EXACT" in out and "replayed: 5 of 5 segments" in out, out + err


def test_wrong_requests_are_refused_in_one_line(honest, backend_name, tmp_path):
    given = (f"run={honest}", f"backend={backend_name}")
    for words, expected in (
        (("segments=0",), "segments: 0 was given; it must be a number of segments of at least 1, or all"),
        (("segments=some",), "segments: some was given"),
        (("twins=0",), "twins: 0 was given; it must be at least 1"),
        (("margin=0.5",), "margin: 0.5 was given; it must be a number of at least 1"),
        (("draw_seed=-1",), "draw_seed: -1 was given"),
        (("network=a:b",), "network: a:b was given, but"),
        ((f"out={honest / 'config.yaml'}",), "config.yaml exists"),
        (("segmens=3",), "segmens"),
        ((f"run={tmp_path / 'none'}",), "it does not exist"),
        ((f"run={honest / 'samples'}",), "it is not the directory of a run"),
        ((f"run={honest / 'config.yaml'}",), "it is no certificate"),
    ):
        code, _, err = call("verify", *given, *words)
        assert code == 2 and expected in err and len(err.strip().splitlines()) == 1, (words, err)
    old = Path(__file__).parent.parent / "data" / "run_v1"
    code, _, err = call("certify", f"run={old}")
    assert code == 2 and "it has no manifest.jsonl: an earlier version" in err


def test_the_command_verifies_in_the_environment_of_the_run(honest, tmp_path, backend_name):
    """A path may stand without its key; a run, its checkpoint's folder and a certificate name their backend."""
    command = experiments()["verify"]
    call("certify", f"run={honest}", f"out={tmp_path / 'paper.json'}")
    for words in ([str(honest)], [f"run={honest}"], [str(tmp_path / "paper.json")], ["segments=2", str(honest)]):
        assert with_backend_of_run(command, words) == [*words, f"backend={backend_name}"]
    assert with_backend_of_run(command, [str(honest), "backend=other"]) == [str(honest), "backend=other"]
    assert with_backend_of_run(command, ["--help"]) == ["--help"]
    assert read_arguments([str(honest), "segments=2"], "verify") == [f"run={honest}", "segments=2"]
    with pytest.raises(DuetError, match="verify takes one path"):
        read_arguments([str(honest), "other"], "verify")


def test_a_run_of_python_is_verified_by_the_arguments_of_its_training(backend_name, tmp_path):
    """Its data and its network are objects, which only their owner can give again."""
    data = duet.load_dataset(np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1)).astype(np.uint8))
    spec = duet.PlainSpec(image_size=8, in_channels=1, out_channels=1, channels=(4,), bottleneck=4)
    model = duet.Model(spec, schedule="cosine", prediction="v")
    arguments = {
        "images": 16,
        "batch": 8,
        "checkpoint_images": 8,
        "samples": 4,
        "sampler": {"name": "ddim", "steps": 2},
    }
    here = {"backend": backend_name, "threads": 1, "quiet": True}
    duet.train(model, data, out=tmp_path / "run", **arguments, **here)
    assert duet.certify(tmp_path / "run")["claims"]["images_seen"] == 16
    verdict = duet.verify(tmp_path / "run", model, data, **arguments, **here)
    assert verdict.verdict == BIT_EXACT and len(verdict.results) == 3, list(verdict.lines())
    verdict = duet.verify(tmp_path / "run", model, data, **arguments | {"batch": 4}, **here)
    assert verdict.verdict == DIFFERS and verdict.problems[0].what == "part 1, training.batch"
    code, _, err = call("verify", f"run={tmp_path / 'run'}", f"backend={backend_name}")
    assert code == 2 and "Python code started it" in err and "duet.verify" in err


@pytest.mark.slow
def test_two_hundred_changed_runs_are_found(honest, tmp_path, parts):
    for seed in range(1, 201):
        assert_found(honest, tmp_path / "run", list(CHANGES)[seed % len(CHANGES)], seed, parts)
