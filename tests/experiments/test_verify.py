"""Runs are certified and verified: honest ones pass, whatever they train; changed ones are found and named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import call, composed
from tampering import CHANGES, CLAIMS, rehash, settle

from diffusion_core.networks.weights import hash_weights
from diffusion_core.runs.run_directory import plain_data
from experiments.config import verification
from experiments.training.manifest import setup_facts
from experiments.training.resume import first_state
from experiments.verification.verdict import BIT_EXACT, DIFFERS, Verdict
from experiments.verification.verify import Options, Rebuilt, open_record, verify

TINY = (
    "data=digits", "model=plain", "model.image_size=8", "model.in_channels=1", "model.out_channels=1",
    "model.channels=[4]", "model.bottleneck=4", "process=eps_linear", "trainer.batch=4", "trainer.images=32",
    "trainer.log_images=8", "trainer.checkpoint_images=8", "lr.warmup_images=16", "lr.decay=cosine", "sample.count=8",
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


@pytest.mark.slow
def test_two_hundred_changed_runs_are_found(honest, tmp_path, parts):
    for seed in range(1, 201):
        assert_found(honest, tmp_path / "run", list(CHANGES)[seed % len(CHANGES)], seed, parts)
