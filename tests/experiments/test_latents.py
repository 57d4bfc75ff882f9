"""A data set is encoded, a network is trained on its latents, and what it samples is decoded, in either framework."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import call

import duet
from diffusion_core.backend.interface import TrainerState
from diffusion_core.backend.numpy_backend import NumpyBackend
from diffusion_core.common.errors import DuetError
from diffusion_core.convert.autoencoder import export_autoencoder
from diffusion_core.data import load_dataset
from diffusion_core.data.latents import LatentRecord
from diffusion_core.data.store import open_store
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.model.latents import LatentCodec
from diffusion_core.networks import DiTSpec
from diffusion_core.networks.autoencoder import Autoencoder, AutoencoderSpec
from diffusion_core.parity import cases
from diffusion_core.runs.checkpoint import Checkpoint, save_checkpoint
from diffusion_core.runs.run_directory import read_samples
from experiments.runtime.latents import find_decoder

pytestmark = pytest.mark.backend

SPEC = AutoencoderSpec(
    in_channels=1, out_channels=1, latent_channels=2, channels=(4, 4), norm_groups=2, scaling_factor=0.5,
    shift_factor=0.1, image_size=8,
)  # fmt: skip
AUTOENCODER = Autoencoder(SPEC, *(cases.scattered_weights(program, 0.5) for program in (SPEC.encoder, SPEC.decoder)))
PICTURES = load_dataset("digits", part="held_out").images[:6]


def write_autoencoder(folder: Path, autoencoder: Autoencoder = AUTOENCODER) -> Path:
    folder.mkdir(parents=True)
    for name, content in export_autoencoder(autoencoder).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def latents(tmp_path_factory, backend_name, open_backend) -> Path:
    """Return the directory of the latents of the test digits, encoded in float64."""
    open_backend()  # TensorFlow takes its number of threads once
    folder = tmp_path_factory.mktemp("latents")
    vae = write_autoencoder(folder / "vae")
    done = prepared(vae, folder / "store", backend_name)
    assert done.code == 0, done.err
    shutil.rmtree(vae)  # the store keeps a copy
    return folder / "store"


def prepared(vae: Path, out: Path, backend_name: str, *words: str):
    options = ["data=digits", "data.options.part=held_out", f"backend={backend_name}", "backend.threads=1"]
    return call("prepare", *options, "precision=float64", f"autoencoder={vae}", f"out={out}", *words)


@pytest.fixture(scope="module")
def run(latents, backend_name, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    done = call(
        "train", "data=store", f"data.options.directory={latents}", "model=plain", "model.image_size=4",
        "model.in_channels=2", "model.out_channels=2", "model.channels=[4]", "model.bottleneck=8",
        "process=v_cosine", "sampler=ddim", "sampler.steps=2",
        "sampler.clip=null", "sample.count=6", "trainer.images=32", "trainer.batch=16", "validation.count=0",
        "precision=float64", "backend.threads=1", f"backend={backend_name}", f"hydra.run.dir={out}",
    )  # fmt: skip
    assert done.code == 0, done.err
    return out


def test_a_store_of_latents_holds_those_of_the_reference(latents):
    dataset = open_store(latents)
    wanted = LatentCodec(AUTOENCODER, NumpyBackend()).encode(PICTURES / 127.5 - 1)
    assert dataset.images.dtype == np.float32 and dataset.shape == (4, 4, 2)
    np.testing.assert_allclose(dataset.images[:6], wanted, rtol=1e-6, atol=1e-6)
    record = dataset.latents
    assert (record.scaling_factor, record.shift_factor, record.sampled) == (0.5, 0.1, False)
    assert record.sha256 == AUTOENCODER.sha256 and record.image_shape == (8, 8, 1)
    assert find_decoder(record).autoencoder.sha256 == AUTOENCODER.sha256
    card = json.loads((latents / "card.json").read_text())
    assert card["latents"]["sha256"] == AUTOENCODER.sha256 and "## Latents" in (latents / "README.md").read_text()


def test_the_samples_of_a_run_are_decoded(run, latents, backend_name, tmp_path):
    images, *_ = read_samples(run / "samples" / "samples.npz")
    with np.load(run / "samples" / "samples.npz") as file:
        values = file["latents"]
    assert images.shape == (6, 8, 8, 1) and values.shape == (6, 4, 4, 2)
    decoded = LatentCodec(AUTOENCODER, NumpyBackend()).decode(values)
    np.testing.assert_array_equal(images, np.clip(np.rint((decoded + 1) * 127.5), 0, 255).astype(np.uint8))
    again = duet.sample(run, 6, backend=backend_name, precision="float64", threads=1, compile=False)
    np.testing.assert_array_equal(again, images)
    # Where the autoencoder has gone, it is named; another one is refused.
    other = Autoencoder(SPEC, AUTOENCODER.encoder, {k: 2 * v for k, v in AUTOENCODER.decoder.items()})
    given = f"sample.autoencoder={write_autoencoder(tmp_path / 'other', other)}"
    words = [f"checkpoint={run}", f"out={tmp_path}/a", f"backend={backend_name}", "precision=float64"]
    line = call("sample", *words, given).err
    assert "has the hash" in line and "give that one" in line
    moved = (latents / "autoencoder").rename(latents / "elsewhere")
    try:
        line = call("sample", *words).err
        assert "autoencoder" in line and "is missing" in line
        done = call("sample", *words, f"sample.autoencoder={moved}", "backend.threads=1", "save_images=false")
        assert done.code == 0, done.err
    finally:
        moved.rename(latents / "autoencoder")
    np.testing.assert_array_equal(read_samples(tmp_path / "a" / "samples.npz")[0], images)


@pytest.mark.either
def test_a_run_on_latents_is_verified(run, backend_name):
    """Its samples are drawn and decoded again."""
    done = call("verify", f"run={run}", f"backend={backend_name}")
    assert done.code == 0 and "verdict: BIT-EXACT" in done.out and "final samples" in done.out, done.out + done.err


@pytest.mark.either
def test_a_learned_variance_is_trained_on_latents_as_by_the_code_of_dit(latents, backend_name, tmp_path):
    """It takes latents for bytes, in a bound with tanh; the exact bound is of bytes only."""
    words = [
        "train", "data=store", f"data.options.directory={latents}", "process=dit", "model=dit_s_2",
        "model.image_size=4", "model.in_channels=2", "model.out_channels=4", "model.channels=8", "model.depth=1",
        "model.heads=2", "model.num_classes=0", "process.label_dropout=0", "sampler=ddpm", "sampler.steps=[2]",
        "sampler.variance=learned_range", "sampler.clip=null", "sample.count=1", "trainer.images=8", "trainer.batch=8",
        "validation.count=0", "backend.threads=1", f"backend={backend_name}", f"hydra.run.dir={tmp_path}/run",
    ]  # fmt: skip
    line = call(*words, "process.bound_cdf=exact").err
    assert "its variational bound is that of bytes" in line and "use fixed, or process.bound_cdf=tanh" in line
    done = call(*words)
    assert done.code == 0, done.err


@pytest.mark.either
def test_decoded_samples_are_evaluated_as_images(run, tmp_path):
    words = [f"samples={run}", "data=digits", "data.options.part=held_out", f"out={tmp_path}/out", "sets=3"]
    done = call("evaluate", *words, "metrics=[colour]")
    assert done.code == 0 and "colour" in done.out, done.err


@pytest.mark.either
def test_editing_refuses_a_network_of_latents(run, backend_name, tmp_path):
    line = call("edit", f"checkpoint={run}", f"out={tmp_path}", "data=digits", f"backend={backend_name}").err
    assert "this network samples latents" in line


def test_pairs_of_a_network_of_latents_say_how_they_are_decoded(run, latents, backend_name):
    options = {"backend": backend_name, "precision": "float64", "threads": 1, "compile": False}
    pairs = duet.sample(run, 3, pairs=True, **options)
    assert pairs.shape == (4, 4, 2) and pairs.latents.sha256 == AUTOENCODER.sha256


def test_draws_of_the_posterior_are_those_of_a_named_stream_and_latents_are_written_once(
    latents, backend_name, tmp_path
):
    vae, out = latents / "autoencoder", tmp_path / "drawn"
    done = prepared(vae, out, backend_name, "latents.sample=true", "latents.seed=3", "latents.batch=5")
    assert done.code == 0, done.err
    wanted = LatentCodec(AUTOENCODER, NumpyBackend()).encode(PICTURES / 127.5 - 1, 3, np.arange(6))
    np.testing.assert_allclose(open_store(out).images[:6], wanted, rtol=1e-6, atol=1e-6)
    before = (out / "card.json").read_bytes()
    assert prepared(vae, out, backend_name, "latents.sample=true", "latents.seed=3").code == 0
    assert (out / "card.json").read_bytes() == before
    assert "of other images, of another autoencoder or other draws" in prepared(vae, out, backend_name).err


def test_latents_of_edm2_are_encoded_and_decoded_as_the_store_says(latents, backend_name, tmp_path):
    vae, out = latents / "autoencoder", tmp_path / "edm2"
    words = ["latents.sample=always", "latents.mean=[1,-2]", "latents.std=[2,3]", "latents.scaling_factor=0.5",
             "latents.image_range=[0,1]"]  # fmt: skip
    done = prepared(vae, out, backend_name, *words)
    assert done.code == 0, done.err
    dataset, codec = open_store(out), LatentCodec(AUTOENCODER, NumpyBackend())
    mean, std = codec.moments(PICTURES / 255.0)
    np.testing.assert_allclose(dataset.images[:6], 0.5 * (mean - [1, -2]) / [2, 3], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dataset.std[:6], 0.5 * std / [2, 3], rtol=1e-5)
    record = dataset.latents
    assert (record.latents_mean, record.latents_std, record.image_range) == ((1, -2), (2, 3), (0, 1))
    assert "0.5 (z - m) / s" in (out / "README.md").read_text()
    # The record decides how latents are decoded, not the folder that is named.
    spec = find_decoder(record, str(vae)).autoencoder.spec
    assert spec == find_decoder(record).autoencoder.spec
    np.testing.assert_allclose(spec.from_latents(dataset.images[:6]), mean, rtol=1e-4, atol=1e-5)
    assert "choose another directory" in prepared(vae, out, backend_name, *words[:-1]).err
    before = (out / "card.json").read_bytes()
    assert prepared(vae, out, backend_name, *words).code == 0 and (out / "card.json").read_bytes() == before
    run = tmp_path / "run"
    done = call(
        "train", "data=store", f"data.options.directory={out}", "model=plain", "model.image_size=4",
        "model.in_channels=2", "model.out_channels=2", "model.channels=[4]", "model.bottleneck=8", "process=edm",
        "sampler=heun", "sampler.steps=2", "sampler.clip=null", "sample.count=1", "trainer.images=16",
        "trainer.batch=16", "validation.part=none", "precision=float64", "backend.threads=1",
        f"backend={backend_name}", f"hydra.run.dir={run}",
    )  # fmt: skip
    assert done.code == 0, done.err
    with np.load(run / "samples" / "samples.npz") as file:
        values = file["latents"]
    wanted = LatentCodec(AUTOENCODER.scaled(**record.scaling), NumpyBackend()).decode(values)
    images = read_samples(run / "samples" / "samples.npz")[0]
    np.testing.assert_array_equal(images, np.clip(np.rint((wanted + 1) * 127.5), 0, 255).astype(np.uint8))


def test_python_encodes_as_the_command_and_decodes_what_a_network_samples(latents, backend_name):
    options = {"backend": backend_name, "precision": "float64", "threads": 1}
    vae, digits = latents / "autoencoder", load_dataset("digits", part="held_out").select(np.arange(6))
    made = duet.encode(digits, vae, sample="always", batch=4, **options)
    np.testing.assert_allclose(made.images, open_store(latents).images[:6], rtol=1e-6, atol=1e-6)
    _, std = LatentCodec(AUTOENCODER, NumpyBackend()).posterior(PICTURES / 127.5 - 1)
    np.testing.assert_allclose(made.std, std, rtol=1e-5)
    codec = LatentCodec(AUTOENCODER, NumpyBackend())
    wanted = np.clip(np.rint((codec.decode(made.images) + 1) * 127.5), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(duet.decode(made, **options), wanted)
    np.testing.assert_array_equal(duet.decode(made.images, vae, **options), wanted)
    spec = duet.network("plain", image_size=4, in_channels=2, out_channels=2, channels=[4], bottleneck=8)
    sampler = {"name": "ddim", "steps": 1, "clip": None}
    run = duet.train(
        duet.Model(spec, duet.process("cosine", "v")), made, images=8, batch=8, sampler=sampler, samples=1, quiet=True,
        compile=False, **options,
    )  # fmt: skip
    images = run.sample(2, compile=False, **options)
    assert images.shape == (2, 8, 8, 1) and images.dtype == np.uint8
    for wrong, message in (
        (lambda: duet.encode(digits, vae, sample="often", **options), "latents.sample: 'often'"),
        (lambda: duet.encode(made, vae, **options), "holds no pictures"),
        (lambda: duet.decode(made.images, **options), "autoencoder: nothing was given"),
        (lambda: duet.decode(made.images[0], vae, **options), "must be .N, h, w, channels."),
        (lambda: duet.decode(made.images[..., :1], vae, **options), "latents have 2 channels"),
    ):
        with pytest.raises(DuetError, match=message):
            wrong()


def test_records_of_before_have_one_factor_and_one_shift():
    old = {"autoencoder": "a", "sha256": "b", "scaling_factor": 0.5, "shift_factor": 0.1, "sampled": False, "seed": 0,
           "image_shape": [8, 8, 1]}  # fmt: skip
    record = LatentRecord.from_dict(old, "a file")
    assert record.scaling == {"scaling_factor": 0.5, "shift_factor": 0.1, "latents_mean": (), "latents_std": (),
                              "image_range": (-1.0, 1.0)}  # fmt: skip
    assert LatentRecord.from_dict(record.to_dict(), "a file") == record


REFUSED = {
    "a scaling of other channels": (
        ["data=digits", "autoencoder=VAE", "out=OUT", "latents.scaling=edm2", "BACKEND"],
        "of this autoencoder have 2",
    ),
    "an unknown scaling": (["data=digits", "autoencoder=VAE", "out=OUT", "latents.scaling=edm", "BACKEND"], "'edm2'?"),
    "a mean alone": (["data=digits", "autoencoder=VAE", "out=OUT", "latents.mean=[1,2]", "BACKEND"], "latents.std"),
    "a deviation of 0": (
        ["data=digits", "autoencoder=VAE", "out=OUT", "latents.mean=[1,2]", "latents.std=[1,0]", "BACKEND"],
        "positive",
    ),
    "an unknown draw": (["data=digits", "autoencoder=VAE", "out=OUT", "latents.sample=twice", "BACKEND"], "always"),
    "no backend": (["data=digits", "autoencoder=VAE", "out=OUT"], "backend: none was given"),
    "no autoencoder": (["data=digits", "latents.sample=true", "out=OUT"], "latents: options were given without"),
    "no folder": (["data=digits", "autoencoder=NOWHERE", "out=OUT", "BACKEND"], "must be the folder of an Autoencoder"),
    "no directory": (["data=digits", "autoencoder=VAE", "BACKEND"], "out: nothing was given"),
    "colours": (["data=shapes", "autoencoder=VAE", "out=OUT", "BACKEND"], "3 channels, but the autoencoder takes 1"),
    "no batch": (["data=digits", "autoencoder=VAE", "out=OUT", "latents.batch=0", "BACKEND"], "latents.batch: 0"),
    "a mistyped option": (["data=digits", "autoencoder=VAE", "latents.smaple=true"], "latents.sample"),
}


@pytest.mark.either
@pytest.mark.parametrize("words, message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_encoded_is_refused_in_one_line(latents, backend_name, tmp_path, words, message):
    names = {"VAE": str(latents / "autoencoder"), "OUT": str(tmp_path / "out"), "BACKEND": f"backend={backend_name}"}
    names["NOWHERE"] = str(tmp_path / "nowhere")
    for name, value in names.items():
        words = [word.replace(name, value) for word in words]
    done = call("prepare", *words)
    assert done.code == 2 and message in done.err, done.err
    assert not (tmp_path / "out").exists()


def test_images_of_a_run_on_pixels_are_not_decoded():
    assert find_decoder(None) is None and find_decoder({}) is None
    with pytest.raises(DuetError, match="was not trained on latents"):
        find_decoder(None, "vae")
    with pytest.raises(DuetError, match="latent_scaling: edm2 was given, but no autoencoder decodes the samples"):
        find_decoder(None, None, 4, "edm2")


def test_imported_weights_are_decoded_by_the_autoencoder_that_is_named(tmp_path, backend_name):
    """Their file says nothing of their data; the autoencoder must have as many channels."""
    vae = write_autoencoder(tmp_path / "vae")
    spec = DiTSpec(4, 2, 2, num_classes=3, patch_size=2, channels=8, depth=1, heads=2)
    model = DiffusionModel(spec, "cosine", "v")
    state = TrainerState.fresh(cases.scattered_weights(model.program, dtype=np.float32))
    save_checkpoint(tmp_path / "run/checkpoints", Checkpoint(0, model, 0, state, {}))
    given = ["sampler=ddim", "sampler.steps=2", "sampler.clip=null", "sample.count=2", "precision=float64",
             f"backend={backend_name}", "backend.threads=1", f"checkpoint={tmp_path / 'run'}"]  # fmt: skip
    done = call("sample", *given, f"sample.autoencoder={vae}", f"out={tmp_path / 'samples'}")
    assert done.code == 0, done.err
    images, _, _ = read_samples(tmp_path / "samples/samples.npz")
    assert images.shape == (2, 8, 8, 1) and images.dtype == np.uint8
    with pytest.raises(DuetError, match="latents have 2 channels, but the network samples 4; give the autoencoder of"):
        find_decoder(None, str(vae), 4)
    spec4 = replace(SPEC, latent_channels=4, shift_factor=0.0)
    weights = (cases.scattered_weights(program) for program in (spec4.encoder, spec4.decoder))
    vae4 = write_autoencoder(tmp_path / "vae4", Autoencoder(spec4, *weights))
    assert find_decoder(None, str(vae4), 4, "edm2").autoencoder.spec.latents_std == (4.17, 4.62, 3.71, 3.28)
