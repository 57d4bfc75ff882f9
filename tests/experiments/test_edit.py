"""Editing by command: known parts of images are kept in every mode, and options that do not fit are refused.

The reference takes the place of a framework.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from commands import enter

import duet
from diffusion_core.backend import reference
from diffusion_core.backend.interface import BackendConfig, Description, TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.data import load_dataset
from diffusion_core.images.render import save_png
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec
from diffusion_core.networks.weights import initial_weights
from diffusion_core.parity import cases
from diffusion_core.runs.checkpoint import Checkpoint, save_checkpoint
from diffusion_core.runs.run_directory import read_samples, write_samples
from diffusion_core.sampling.linear_operators import blur, downsample
from experiments.runtime.backends import BackendSetup, sampling_calls

SPEC = UNetSpec(8, 1, 1, 4, (1,), 1, (), middle_attention=False, norm_groups=2, num_classes=10, zero_init=False)
MODEL = DiffusionModel(SPEC, {"name": "linear", "T": 1000}, "v")


class Reference:
    """The NumPy reference with the interface of a backend."""

    config = BackendConfig(precision="float64")

    def __init__(self):
        self.drawn = []

    def describe(self):
        return Description("reference", "cpu", "float64", 1, "eager")

    def network(self, program, weights):
        return SimpleNamespace(program=program, weights=weights)

    def sample(self, network, plan, start, label, noise, callback=None, guidance=None):
        guidance.check(plan)
        self.drawn.append((plan, len(start)))
        led = {"mask": guidance.mask, "known": guidance.known, "measurement": guidance.measurement}
        if guidance.guide:
            led["guide"] = partial(reference.forward, guidance.guide.program, guidance.guide.weights)
        if guidance.classifier:
            led["grad_log_prob"] = lambda x, t, label: np.ones_like(x)  # any gradient will do
        return reference.sample(network.program, network.weights, plan, start, label, noise, callback, **led)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = TrainerState.fresh(initial_weights(MODEL.program, 0, np.float32))
    path = tmp_path_factory.mktemp("run")
    save_checkpoint(path / "checkpoints", Checkpoint(128, MODEL, 0, state, {}))
    return path


def edited(run: Path, out: Path, *words: str) -> tuple[np.ndarray, np.ndarray]:
    """Run a command; return the images and labels that it writes."""
    words = [f"checkpoint={run}", f"out={out}", "sampler.steps=4", *words]
    backend, asked = Reference(), []
    with mock.patch.object(BackendSetup, "open", lambda setup, calls: asked.append(calls) or backend):
        enter("edit", *words)
    # The number of calls that chose the mode is the number of calls that were made.
    assert asked == [sampling_calls(backend.drawn, 64)]
    images, labels, _ = read_samples(out / "edited.npz")
    assert (out / "edited.png").is_file()
    return images, labels


def test_the_calls_of_several_plans_are_averaged():
    few, many = (MODEL.plan("ddim", steps=steps) for steps in (4, 12))
    assert sampling_calls([(few, 3)], 2) == 8
    assert sampling_calls([(few, 3), (many, 5)], 2) == (8 + 36) // 2
    assert sampling_calls([(few.with_guidance(2.0), 3)], 2) == 8  # one call of twice the batch


def test_inpainting_keeps_the_known_part(run, tmp_path):
    digits = load_dataset("digits", part="train")
    words = ["data=digits", "images=[3,8]", "mode=inpaint", "mode.known=top", "variants=2", "sampler=repaint"]
    images, labels = edited(run, tmp_path / "a", *words, "sampler.jump=1", "sampler.resamples=2")
    wanted = np.repeat(digits.images[[3, 8]], 2, axis=0)
    np.testing.assert_array_equal(images[:, :4], wanted[:, :4])
    assert np.any(images[:, 4:] != wanted[:, 4:]) and np.any(images[0] != images[1])
    np.testing.assert_array_equal(labels, np.repeat(digits.labels[[3, 8]], 2))
    # The same part given by a mask image, for images in a file.
    white = np.zeros((8, 8, 1), np.uint8)
    white[:4] = 255
    save_png(tmp_path / "mask.png", white)
    write_samples(tmp_path / "images.npz", digits.images[[3, 8]], digits.labels[[3, 8]])
    words[:4] = [f"path={tmp_path / 'images.npz'}", "images=[0,1]", "mode=inpaint", f"mode.known={tmp_path}/mask.png"]
    again, _ = edited(run, tmp_path / "b", *words, "sampler.jump=1", "sampler.resamples=2")
    np.testing.assert_array_equal(again, images)


def test_an_interpolation_of_inverted_images_ends_near_them(run, tmp_path, capsys):
    words = ["data=digits", "images=[3,8]", "mode=interpolate", "mode.count=3", "mode.strength=0.25"]
    images, labels = edited(run, tmp_path / "a", *words, "sampler.spacing=[700,300,100,10]")
    wanted = load_dataset("digits", part="train").images[[3, 8]].astype(int)
    assert np.abs(images[[0, 2]] - wanted).max() <= 6  # one row of little noise there and back
    assert images.shape == (3, 8, 8, 1) and list(labels) == [10, 10, 10]
    assert "1 of 1 pair join two classes and are drawn without a class" in capsys.readouterr().out
    words += ["labels=7", "mode.encode=noise", "sampler.spacing=[700,300,100,10]"]
    noisy, labels = edited(run, tmp_path / "b", *words)
    assert list(labels) == [7, 7, 7] and "classes" not in capsys.readouterr().out
    assert np.abs(noisy[[0, 2]] - wanted).max() > 6


def test_it_is_printed_how_a_file_is_cropped_and_resized(run, tmp_path, capsys):
    rows, columns = np.mgrid[:16, :24]
    save_png(tmp_path / "wide.png", np.where((columns >= 4) & (columns < 20), 255, 0)[..., None].astype(np.uint8))
    save_png(tmp_path / "mask.png", np.where(rows[:, :16] < 8, 255, 0)[..., None].astype(np.uint8))
    save_png(tmp_path / "fits.png", np.full((8, 8, 1), 9, np.uint8))
    words = ["mode=inpaint", "labels=7", f"mode.known={tmp_path}/mask.png"]
    images, _ = edited(run, tmp_path / "a", f"path={tmp_path}/wide.png", *words)
    said = capsys.readouterr().out
    assert f"{tmp_path}/wide.png: of 24 x 16 pixels, cut to its central square of 16 and resized to 8 x 8 (Lanc" in said
    assert f"{tmp_path}/mask.png: of 16 x 16 pixels, resized to 8 x 8 (Lanczos)" in said
    assert np.all(images[0, :4] > 240)
    edited(run, tmp_path / "b", f"path={tmp_path}/fits.png", *words[:2])
    assert "pixels" not in capsys.readouterr().out


def test_a_folder_of_images_is_edited_by_the_rules_of_every_folder(run, tmp_path, capsys):
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    for name, value in (("2.png", 20), ("10.png", 100), ("b/1.png", 200)):
        save_png(folder / name, np.full((8, 8, 1), value, np.uint8))
    (folder / "2.png").rename(folder / "2.JPG")  # its content tells what it is
    (folder / "notes.txt").write_text("no image")
    words = (f"path={folder}", "images=[0,1,2]", "labels=3", "mode=inpaint", "mode.known=left")
    made, labels = edited(run, tmp_path / "out", *words)
    np.testing.assert_array_equal(made[:, 0, 0, 0], [20, 100, 200])
    assert labels.tolist() == [3, 3, 3]
    assert "left out: files that are no images: 1 (notes.txt)" in capsys.readouterr().out


def test_a_step_of_several_rows_is_not_split(run, tmp_path):
    words = ["data=digits", "images=[3]", "mode=image_to_image"]
    images, _ = edited(run, tmp_path, *words, "sampler=restart", "sampler.steps=18")
    assert images.shape == (1, 8, 8, 1)


def test_a_guide_acts_on_a_multistep_solver_that_starts_at_a_later_noise_level(run, tmp_path):
    words = ["data=digits", "images=[3,8]", "mode=image_to_image", "sampler=dpm_solver", "sampler.guidance_scale=2"]
    plain, _ = edited(run, tmp_path / "a", *words)
    # Guided away from itself, a network ends where it would end with its class alone.
    led, _ = edited(run, tmp_path / "b", *words, f"guide={run}")
    alone, _ = edited(run, tmp_path / "c", *words[:-1])
    np.testing.assert_array_equal(led, alone)
    assert np.any(led != plain)


def test_a_classifier_guides_sampling_but_not_inversion(run, tmp_path):
    model = DiffusionModel(cases.CLASSIFIER, {"name": "linear", "T": 1000}, "v")
    state = TrainerState.fresh(cases.scattered_weights(model.program))
    save_checkpoint(tmp_path / "judge" / "checkpoints", Checkpoint(128, model, 0, state, {}))
    words = ["data=digits", "images=[3,8]", "labels=7", "mode=interpolate", "mode.count=2"]
    plain, _ = edited(run, tmp_path / "a", *words)
    led, labels = edited(run, tmp_path / "b", *words, f"classifier={tmp_path / 'judge'}", "sampler.classifier=20")
    assert list(labels) == [7, 7] and np.any(led != plain)


BLURRED = "mode.operator=[{name:blur,width:0.6},{name:downsample,factor:2}]"


def test_posterior_samples_agree_with_the_measurement_of_images_and_of_a_file(run, tmp_path):
    digits = load_dataset("digits", part="train")
    words = ["mode=posterior", BLURRED, "mode.noise=0", "labels=3", "sampler.clip=null"]
    images, labels = edited(run, tmp_path / "a", *words, "data=digits", "images=[3,8]", "variants=2")
    assert images.shape == (4, 8, 8, 1) and list(labels) == [3, 3, 3, 3]
    operator = downsample((8, 8, 1), 2) @ blur((8, 8, 1), 0.6)
    wanted = operator.measure(digits.images[[3, 3, 8, 8]] / 127.5 - 1)
    assert np.any(images[0] != images[1])
    # The same measurements from a file, without images; an image file holds them rounded to bytes.
    np.save(tmp_path / "y.npy", wanted[::2])
    again, _ = edited(run, tmp_path / "b", *words, f"mode.measurement={tmp_path}/y.npy", "variants=2")
    np.testing.assert_array_equal(again, images)
    save_png(tmp_path / "y.png", np.rint(127.5 * (wanted[0] + 1)).astype(np.uint8))
    rounded, _ = edited(run, tmp_path / "c", *words, f"mode.measurement={tmp_path}/y.png", "variants=2")
    assert np.abs(rounded.astype(int) - images[:2]).max() <= 8


def test_a_mask_is_an_operator_with_the_parts_of_inpainting(run, tmp_path):
    words = ["data=digits", "images=[3,8]", "mode=posterior", "mode.noise=0", "mode.method=pigdm", "sampler.steps=20"]
    images, _ = edited(run, tmp_path / "a", *words, "mode.operator={name:mask,known:top,keep:false}")
    wanted = load_dataset("digits", part="train").images[[3, 8]].astype(int)
    away = np.abs(images.astype(int) - wanted)
    assert np.median(away[:, 4:]) < 0.5 * np.median(away[:, :4])


def test_duet_edit_is_the_command(run, tmp_path, monkeypatch):
    digits = load_dataset("digits", part="train")
    words = ["data=digits", "images=[3,8]", "labels=3", "mode=inpaint", "mode.known=top", "variants=2", "sampler=ddpm"]
    wanted, _ = edited(run, tmp_path / "a", *words, "sampler.clip=1.0")
    monkeypatch.setattr("duet.api.editing.open_backend", lambda setup, calls: Reference())
    sampler = {"name": "ddpm", "steps": 4, "clip": 1.0}
    got = duet.edit(run, digits.images[[3, 8]], "inpaint", labels=3, variants=2, known="top", sampler=sampler)
    np.testing.assert_array_equal(got, wanted)
    for options, message in (
        ({"mode": "inpant"}, "mode: 'inpant' was given; it must be one of .* Did you mean 'inpaint'"),
        ({"mode": "posterior", "operatr": "blur"}, "Did you mean 'operator'"),
        ({"mode": "posterior", "operator": "blr"}, "operator: 'blr' was given"),
        ({"mode": "posterior", "operator": {"name": "blur", "wdth": 1}}, "Did you mean 'width'"),
        ({"mode": "posterior", "measurement": "y.npy"}, "a file was given together with images"),
        ({"images": digits.images[:2] / 255.0}, "images: float64 .* they must be uint8"),
    ):
        with pytest.raises(DuetError, match=message):
            duet.edit(run, **({"images": digits.images[:2]} | options))
