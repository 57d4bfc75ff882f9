"""A directory that is named by the time belongs to one run, also when several start in the same second."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
from commands import call

from experiments.config.output_dirs import claim_directory

# A run that is refused after its directory was made: none of these tests needs to train.
REFUSED = ("--run", "trainer.images=100")


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the directory of a refused run, which `train` would delete."""
    monkeypatch.setattr("experiments.train.removed_if_refused", lambda directory: nullcontext())


def test_every_one_of_many_claims_at_the_same_time_gets_a_directory_of_its_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: claim_directory(tmp_path / "runs" / "now"), range(40)))
    assert len(set(paths)) == 40 and all(path.is_dir() for path in paths)
    assert {path.name for path in paths} == {"now", *(f"now-{k}" for k in range(2, 41))}


def test_a_claimed_name_may_end_in_a_number(tmp_path: Path) -> None:
    assert [claim_directory(tmp_path / "run-2").name for _ in range(2)] == ["run-2", "run-2-2"]


@pytest.mark.parametrize("mode", ["run", "sweep"])
def test_runs_of_the_same_second_have_directories_of_their_own(tmp_path: Path, mode: str) -> None:
    words = [f"hydra.{mode}.dir={tmp_path}/${{now:%Y}}", *REFUSED]  # a year, so that both want the same name
    if mode == "sweep":
        words = ["-m", *words[:1], "hydra/launcher=basic", "trainer.images=100"]
    for _ in range(2):
        assert call("train", *words).code == 2
    first, second = sorted(tmp_path.iterdir())
    assert second.name == f"{first.name}-2"
    for path in (first, second):
        assert {file.name for file in path.iterdir()} >= ({"0"} if mode == "sweep" else set())


def test_the_default_directory_of_training_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hydra.core.utils.datetime", FixedTime)
    for _ in range(3):
        assert "multiple of trainer.batch" in call("train", *REFUSED).err
    names = sorted(path.name for path in (tmp_path / "outputs" / "train").iterdir())
    assert names == [f"2026-01-02_03-04-05-torch-seed0{end}" for end in ("", "-2", "-3")]


def test_a_directory_that_the_user_names_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for _ in range(2):
        call("train", "hydra.run.dir=~/mine", *REFUSED)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_directory_out_that_is_named_by_the_time_is_claimed(tmp_path: Path) -> None:
    for _ in range(2):
        assert "checkpoint" in call("sample", "--run", f"out={tmp_path}/${{now:%Y}}", "checkpoint=nowhere").err
    first, second = sorted(tmp_path.iterdir())
    assert second.name == f"{first.name}-2"


def test_of_several_processes_of_one_run_the_first_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    call("train", f"hydra.run.dir={tmp_path}/${{now:%Y}}", "parallel=ddp", *REFUSED)
    assert [path.name[4:] for path in tmp_path.iterdir()] == ["-rank1"]


class FixedTime:
    """A clock that stands still."""

    @staticmethod
    def now() -> object:
        from datetime import datetime

        return datetime(2026, 1, 2, 3, 4, 5)
