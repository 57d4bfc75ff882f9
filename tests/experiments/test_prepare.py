"""`experiments.prepare` as a person runs it, and what it prepared as training takes it. No framework is loaded."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from pathlib import Path
from unittest import mock

import archives
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from diffusion_core.data import Dataset
from diffusion_core.errors import DuetError
from experiments.common import load_data
from experiments.schema import register

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def run(*words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of the entry point, in this process to be quick."""
    main = importlib.import_module("experiments.prepare").main
    out, err = io.StringIO(), io.StringIO()
    GlobalHydra.instance().clear()
    with (
        mock.patch.object(sys, "argv", ["experiments.prepare", *words]),
        mock.patch.dict(os.environ),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as left:
            return left.code, out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def loaded(*words: str) -> Dataset:
    """The data set that training would take."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return load_data(compose("train", list(words)).data)


def test_an_archive_on_disk_is_prepared_without_network_and_trained_on(tmp_path, monkeypatch):
    monkeypatch.setenv("DUET_DATA", str(tmp_path))
    (tmp_path / "archives" / "cifar10").mkdir(parents=True)
    archives.cifar10(tmp_path / "archives" / "cifar10", archives.PICTURES["cifar10"])
    assert loaded("data=cifar10", "data.stand_in.count=2").name == "shapes, in place of cifar10"
    code, out, err = run("data=cifar10", "workers=1")
    assert (code, err) == (0, "") and f"prepared: {tmp_path / 'cifar10-32'}" in out
    train, test = (loaded("data=cifar10", f"data.options.part={part}") for part in ("train", "test"))
    np.testing.assert_array_equal(train.images, archives.PICTURES["cifar10"]["train"][0])
    np.testing.assert_array_equal(test.labels, archives.PICTURES["cifar10"]["test"][1])
    assert train.name == "cifar10" and train.sha256 in out
    direct = loaded("data=store", f"data.options.directory={tmp_path / 'cifar10-32'}", "data.options.part=train")
    assert direct.sha256 == train.sha256
    wanted = [train.class_names[k] for k in np.unique(train.labels)[:2]]
    chosen = loaded("data=cifar10", f"data.options.classes=[{','.join(wanted)}]")
    assert chosen.class_names == tuple(wanted)
    assert len(chosen) == np.isin(train.labels, np.unique(train.labels)[:2]).sum()
    with pytest.raises(DuetError, match=r"data\.options\.channels: 1 was given, but .* was prepared with 3"):
        loaded("data=cifar10", "data.options.channels=1")


def test_a_folder_is_split_and_trained_on(tmp_path):
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    for k in range(10):
        Image.fromarray(np.full((9, 12), k, np.uint8)).save(tmp_path / "pictures" / "a" / f"{k}.png")
    where = f"data.store={tmp_path / 'store'}"
    words = ["data=image_folder", "data.options.size=8", "data.options.channels=1", where]
    code, _, err = run(*words, f"data.options.path={tmp_path / 'pictures'}", "workers=1", "split=stream")
    assert (code, err) == (0, "")
    parts = [loaded(*words, f"data.options.part={part}") for part in ("all", "held_out")]
    assert [len(part) for part in parts] == [9, 1]
    assert sorted(int(image.mean()) for part in parts for image in part.images) == list(range(10))
    with pytest.raises(DuetError, match="no part was named; it holds all, held_out"):
        loaded(*words)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["data=digits"], ["data to prepare", "digits", "cifar10"]),
        (["data=mnist", "download=false"], ["holds no train-images-idx3-ubyte.gz", "bring it there", "path=FOLDER"]),
        (["data=celeba"], ["img_align_celeba.zip", "to people alone", "mmlab", "path=FOLDER"]),
        (["data=image_folder"], ["data.options.path", "no value was given"]),
        (["data=mnist", "data.options.path=nowhere"], ["nowhere", "holds no train-images-idx3-ubyte.gz"]),
        (["data=mnist", "data.options.crop=center"], ["crop", "center", "Did you mean 'centre'"]),
        (["data=mnist", "data.options.sise=3"], ["data.options.sise", "data.options.size"]),
        (["data=mnist", "split=strem"], ["strem", "Did you mean 'stream'"]),
        (["data=mnist", "out="], ["out: nothing was given"]),
        (["data=mnist", "workers=0", "data.options.path=FILES"], ["workers: 0"]),
        (["data=mnist", "tolerance=1", "data.options.path=FILES"], ["tolerance: 1"]),
        (["data=mnist", "split=stream", "split.fraction=2", "data.options.path=FILES"], ["split", "between 0 and 1"]),
        (["data=mnist", "split=file", "split.path=x", "data.options.path=FILES"], ["split", "have no names"]),
        (["data=mnist", "data.options.classes=[12]", "data.options.path=FILES"], ["class 12", "0..9"]),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, monkeypatch, words, named):
    monkeypatch.setenv("DUET_DATA", str(tmp_path / "data"))
    (tmp_path / "files").mkdir()
    archives.mnist(tmp_path / "files", archives.PICTURES["mnist"])
    code, out, err = run(*[word.replace("FILES", str(tmp_path / "files")) for word in words])
    assert (code, out) == (2, "") and len(err.strip().splitlines()) == 1
    assert all(name in err for name in named), err
    assert not (tmp_path / "data").exists()
