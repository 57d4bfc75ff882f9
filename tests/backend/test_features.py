"""Features of images: equal to torch-fidelity and onnxruntime; invalid files and options are refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.common.registry import build
from diffusion_core.data.digits import digits
from diffusion_core.images.resize import resize
from diffusion_core.metrics import digits_training
from diffusion_core.metrics.digits import SHA256, layers
from diffusion_core.metrics.evaluate import METRICS
from diffusion_core.metrics.frechet import frechet_distance
from diffusion_core.metrics.kernel import kernel_distance
from diffusion_core.metrics.metric import Arrays, FeatureKind
from experiments.features import FEATURES, Features, extract


def make_images(count: int, size: int = 12, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Noise with structure, so that means and covariances of features differ between seeds."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 3, 3, channels)).astype(np.uint8)
    return resize(coarse, size) // (1 + seed)


def made(name: str, **options: object) -> Features:
    return build("frechet", FEATURES, name, options)


def fallback(width: int = 6, size: int = 8):
    """A small feature network as a torch module: uint8 b c h w to float32 b f."""
    import torch

    class StandIn(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.register_buffer("weight", torch.randn(width, 3 * size * size, generator=generator) / size)

        def forward(self, x):
            return torch.tanh((x.float() / 127.5 - 1.0).flatten(1) @ self.weight.T)

    return StandIn()


# torch-fidelity


def test_frechet_distance_equals_torch_fidelity():
    """Run torch-fidelity from images to FID, with a small feature network instead of Inception."""
    import torch
    from torch_fidelity import calculate_metrics, register_feature_extractor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    network = fallback()

    class Small(FeatureExtractorBase):
        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)

        def forward(self, x):
            return (network(x),)

        @staticmethod
        def get_provided_features_list():
            return ("small",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "small"

        @staticmethod
        def can_be_compiled():
            return False

    class Images(torch.utils.data.Dataset):
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            return torch.from_numpy(self.images[index].transpose(2, 0, 1).copy())

    register_feature_extractor("small", Small)
    a, b = make_images(40, 8), make_images(50, 8, seed=1)
    theirs = calculate_metrics(
        input1=Images(a), input2=Images(b), fid=True, feature_extractor="small", cuda=False, verbose=False,
        cache=False, save_cpu_ram=True,
    )["frechet_inception_distance"]  # fmt: skip

    def compute(images):
        return network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).double().numpy()

    ours = Features(FeatureKind("small", {}), lambda images: {"features": compute(images)})
    found = frechet_distance(extract(ours, a, 16)["features"], extract(ours, b, 7)["features"])
    assert theirs > 0.1
    assert found == pytest.approx(theirs, rel=1e-6)
    # The comparison can fail: a covariance divided by N instead of N - 1.
    given = compute(a)
    narrow = given.mean(axis=0) + (given - given.mean(axis=0)) * np.sqrt((len(a) - 1) / len(a))
    assert frechet_distance(narrow, compute(b)) != pytest.approx(theirs, rel=1e-6)


@pytest.fixture(scope="module")
def two_sets() -> tuple[np.ndarray, np.ndarray]:
    """Return float32 features of samples and of a reference."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((24, 24)) / 4
    sets = rng.standard_normal((150, 24)) @ mix + 0.2, rng.standard_normal((150, 24)) @ mix
    return tuple(x.astype(np.float32) for x in sets)


def measured(metric: str, samples: Arrays, reference: Arrays, **options: object) -> dict[str, float]:
    found = METRICS[metric].fit(reference, 0, **options)(samples)
    return {**found.numbers, **{f"{name} ±": error for name, error in found.errors.items()}}


def test_kernel_distance_equals_torch_fidelity(two_sets):
    """Compare on the whole sets, because the two draw subsets differently, and on one identical subset."""
    import torch
    from torch_fidelity.metric_kid import kernel_mmd, kid_features_to_metric

    fake, real = (x.astype(np.float64) for x in two_sets)
    theirs = kid_features_to_metric(
        torch.from_numpy(fake), torch.from_numpy(real), kid_subsets=2, kid_subset_size=150, verbose=False
    )["kernel_inception_distance_mean"]
    ours = measured("kernel", {"features": fake}, {"features": real})["distance"]
    assert ours == pytest.approx(theirs, rel=1e-6) and ours > 1e-3
    for some in (slice(0, 40), slice(90, 130)):
        x, y = fake[some], real[some]
        assert kernel_distance(x, y) == pytest.approx(kernel_mmd(x, y), rel=1e-9)
    assert kernel_distance(x + 1e-3, y) != pytest.approx(kernel_mmd(x, y), rel=1e-6)


def test_precision_and_recall_equal_torch_fidelity(two_sets):
    import torch
    from torch_fidelity.metric_prc import prc_features_to_metric

    fake, real = two_sets[0] * 1.1, two_sets[1]
    given = [torch.from_numpy(x).double() for x in (fake, real)]
    theirs = prc_features_to_metric(*given, prc_neighborhood=3, prc_batch_size=64, save_cpu_ram=True, verbose=False)
    ours = measured("manifold", {"features": fake}, {"features": real})
    assert (ours["precision"], ours["recall"]) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)
    assert 0.05 < min(ours["precision"], ours["recall"]) < max(ours["precision"], ours["recall"]) < 0.95
    other = measured("manifold", {"features": fake}, {"features": real}, nearest=4)
    assert other["precision"] != pytest.approx(theirs["precision"], abs=1e-6)


def test_inception_score_equals_torch_fidelity(two_sets):
    import torch
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 3 * two_sets[0]
    order = Stream(0, "metrics/score").permutation(len(logits))
    theirs = isc_features_to_metric(torch.from_numpy(logits[order]), splits=7, shuffle=False)
    given = {"probabilities": softmax(logits.astype(np.float64), axis=1)}
    ours = measured("score", given, {}, splits=7)
    assert ours["score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6) and ours["score"] > 1.5
    assert ours["score ±"] == pytest.approx(theirs["inception_score_std"], rel=1e-6)
    assert measured("score", given, {}, splits=6)["score"] != pytest.approx(theirs["inception_score_mean"], rel=1e-6)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Weights of Inception v3 drawn at random, in a file of the format that torch-fidelity publishes."""
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as source

    # The constructor always reads a file.
    class Unread(source.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict, *args, **kwargs):
            return None

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty.pth")
    network = Unread("inception", ["2048"], feature_extractor_weights_path=folder / "empty.pth")
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(0.3)  # otherwise the signal nearly vanishes after a hundred layers
    torch.save(network.state_dict(), folder / "random.pth")
    return folder / "random.pth"


@pytest.fixture(scope="module")
def network(weights):
    """torch-fidelity's own network with those weights: uint8 b c h w to features (b, 2048) and logits (b, 1008)."""
    from torch_fidelity import feature_extractor_inceptionv3 as source

    layers = ["2048", "logits_unbiased"]
    return source.FeatureExtractorInceptionV3("inception", layers, feature_extractor_weights_path=weights)


@pytest.fixture(scope="module")
def theirs(network):
    """The features of torch-fidelity's network: uint8 b h w c to (b, 2048)."""
    import torch

    def compute(images):
        with torch.inference_mode():
            return network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))[0].double().numpy()

    return compute


@pytest.fixture(scope="module")
def inception(weights) -> Features:
    return made("inception", weights=str(weights), resize="antialias", device="cpu")


def test_inception_with_antialiasing_is_torch_fidelitys_network_on_resized_images(inception, theirs):
    images = make_images(2)
    found = extract(inception, images, 2)["features"]
    assert found.shape == (2, 2048)
    scale = np.abs(found).max()
    assert np.abs(found[0] - found[1]).max() > 0.05 * scale
    np.testing.assert_allclose(found[:1], theirs(resize(images[:1], 299)), atol=1e-5 * scale)
    # torch-fidelity treats a small image differently.
    assert np.abs(found[:1] - theirs(images[:1])).max() > 1e-2 * scale
    assert inception.kind.facts["resize"] == "antialias" and len(inception.kind.facts["weights_sha256"]) == 64


def test_inception_returns_spatial_features_and_probabilities(inception, network):
    import torch

    images = make_images(1)
    # Recompute the layer from its input with functions of PyTorch.
    seen: dict[str, torch.Tensor] = {}
    hook = network.Mixed_6c.register_forward_hook(lambda module, inputs, output: seen.update(before=output))
    with torch.inference_mode():
        _, logits = network(torch.from_numpy(resize(images, 299).transpose(0, 3, 1, 2).copy()))
        hook.remove()
        layer = network.Mixed_6d.branch1x1
        raw = torch.nn.functional.conv2d(seen["before"], layer.conv.weight)
        normal = torch.nn.functional.batch_norm(
            raw, layer.bn.running_mean, layer.bn.running_var, layer.bn.weight, layer.bn.bias, eps=layer.bn.eps
        )
    found = extract(inception, images, 1)
    expected = torch.relu(normal)[:, :7].flatten(1).numpy()
    assert found["spatial"].shape == (1, 7 * 17 * 17) and expected.max() > 0
    np.testing.assert_allclose(found["spatial"], expected, atol=1e-5 * expected.max())
    np.testing.assert_allclose(found["probabilities"], logits.double().softmax(1).numpy(), rtol=1e-4)
    assert found["probabilities"].shape == (1, 1008) and found["probabilities"].sum() == pytest.approx(1)


def test_inception_resizes_as_torch_fidelity_by_default_and_converts_grey_images(weights, theirs):
    features = made("inception", weights=str(weights), device="cpu")
    assert features.kind.facts["resize"] == "tensorflow1"
    images = make_images(1, channels=1)
    expected = theirs(np.repeat(images, 3, axis=3))
    np.testing.assert_allclose(extract(features, images, 2)["features"], expected, atol=1e-5 * np.abs(expected).max())


def test_only_published_weights_give_a_score_called_fid(inception):
    assert not inception.kind.is_published and inception.kind.name.startswith("Inception ")
    assert inception.kind.departure == "antialiased resize"
    assert not made("digits").kind.is_published


def test_weights_with_code_or_of_another_network_are_refused(tmp_path, weights):
    import torch

    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"fc.weight": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(DuetError, match=r"harmful\.pth: .* run code"):
        made("inception", weights=str(tmp_path / "harmful.pth"))
    assert not (tmp_path / "ran").exists()
    torch.save({"fc.weight": torch.tensor([1.0, float("nan")])}, tmp_path / "nan.pth")
    with pytest.raises(DuetError, match=r"nan\.pth: these arrays hold NaN or infinity: fc.weight \(1 of 2 values\)"):
        made("inception", weights=str(tmp_path / "nan.pth"))
    state = torch.load(weights, weights_only=True)
    del state["Mixed_5b.branch1x1.conv.weight"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(DuetError, match=r"short\.pth: .*weights-inception-.*Mixed_5b\.branch1x1\.conv\.weight"):
        made("inception", weights=str(tmp_path / "short.pth"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no weights were given; give torch-fidelity's file with features.weights=FILE.pth"),
        ({"weights": "nowhere.pth"}, "nowhere.pth: it cannot be read"),
        ({"weights": "x.pth", "resize": "bicubic"}, "'bicubic' was given; it must be one of tensorflow1, antialias"),
        ({"weights": 3}, "weights: 3 was given; it must be text or null"),
    ],
)
def test_invalid_options_of_inception_are_refused(options, message):
    with pytest.raises(DuetError, match=message):
        made("inception", **options)


def test_failed_download_names_the_file_to_copy(monkeypatch, tmp_path):
    from torch import hub

    def refused(url, target, **options):
        assert options["hash_prefix"] in url and target.startswith(str(tmp_path))
        raise OSError("no network")

    monkeypatch.setattr(hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(hub, "download_url_to_file", refused)
    with pytest.raises(DuetError, match=r"no network\); copy weights-inception-2015-12-05-\w+\.pth"):
        made("inception", weights="download")


# Digits and ONNX


def test_digits_features_are_those_of_the_bundled_network_in_any_batch():
    images = digits().images[:20]
    found, expected = extract(made("digits"), images, 8), layers(images)
    assert found.keys() == expected.keys() == {"features", "spatial", "probabilities"}
    for part, values in expected.items():
        np.testing.assert_allclose(found[part], values, rtol=1e-6, atol=1e-9)


def test_training_reproduces_the_bundled_file_bit_for_bit():
    assert hashlib.sha256(digits_training.packed(digits_training.train())).hexdigest() == SHA256


def onnx_file(path: Path, shape: tuple[object, ...]) -> Path:
    """A file with the mean of each channel over the first row of pixels, and over the first column."""
    from onnx import TensorProto, helper

    across, down = (3, 2) if shape[1] in (1, 3) else (2, 1)
    nodes = []
    for name, (sliced, averaged) in {"row": (down, across), "column": (across, down)}.items():
        for what, value in (("zero", 0), ("one", 1), ("axis", sliced)):
            tensor = helper.make_tensor("", TensorProto.INT64, [1], [value])
            nodes.append(helper.make_node("Constant", [], [f"{name} {what}"], value=tensor))
        nodes.append(helper.make_node("Slice", ["x", *(f"{name} {w}" for w in ("zero", "one", "axis"))], [f"{name} 0"]))
        axes = helper.make_tensor("", TensorProto.INT64, [2], [sliced, averaged])
        nodes.append(helper.make_node("Constant", [], [f"{name} axes"], value=axes))
        nodes.append(helper.make_node("ReduceMean", [f"{name} 0", f"{name} axes"], [name], keepdims=0))
    nodes.append(helper.make_node("Concat", ["row", "column"], ["y"], axis=1))
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "row", "column")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("shape", [("b", 3, 6, 6), ("b", 6, 6, 3)])
def test_onnx_file_receives_images_in_its_size_layout_and_range(tmp_path, shape):
    path = onnx_file(tmp_path / "means.onnx", shape)
    images = make_images(5, 12)
    features = made("onnx", path=str(path), low=0.0, high=1.0, threads=1)
    small = resize(images, 6) / 255.0
    expected = np.concatenate([small[:, 0].mean(axis=1), small[:, :, 0].mean(axis=1)], axis=1)
    np.testing.assert_allclose(extract(features, images, 2)["features"], expected, atol=1e-6)
    signed = made("onnx", path=str(path), threads=1)
    np.testing.assert_allclose(extract(signed, images, 5)["features"], 2 * expected - 1, atol=1e-6)
    assert features.kind.facts["size"] == 6 and features.kind.name == "means.onnx"
    grey = images[..., :1]
    both = [extract(features, x, 5)["features"] for x in (grey, np.repeat(grey, 3, axis=3))]
    np.testing.assert_array_equal(*both)
    every = made("onnx", path=str(path), low=0.0, high=1.0, threads=1, output="row", spatial="y", logits="column")
    found = extract(every, images, 5)
    np.testing.assert_allclose(found["features"], expected[:, :3], atol=1e-6)
    np.testing.assert_allclose(found["spatial"], expected, atol=1e-6)
    np.testing.assert_allclose(found["probabilities"], softmax(expected[:, 3:], axis=1), atol=1e-6)
    with pytest.raises(DuetError, match="'rows' was given; it must be one of y, row, column"):
        made("onnx", path=str(path), output="rows")
    with pytest.raises(DuetError, match=r"probabilities and features\.logits were given"):
        made("onnx", path=str(path), probabilities="row", logits="row")


def test_invalid_onnx_file_is_refused(tmp_path):
    path = onnx_file(tmp_path / "any.onnx", ("b", 3, "h", "w"))
    with pytest.raises(DuetError, match="size=PIXELS"):
        made("onnx", path=str(path))
    with pytest.raises(DuetError, match="10 was given, but its input has 6 pixels"):
        made("onnx", path=str(onnx_file(tmp_path / "six.onnx", ("b", 3, 6, 6))), size=10)
    with pytest.raises(DuetError, match="there must be one input, of square float32 images"):
        made("onnx", path=str(onnx_file(tmp_path / "two.onnx", ("b", 2, 6, 6))))
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(DuetError, match=r"text\.onnx: onnxruntime cannot run it"):
        made("onnx", path=str(tmp_path / "text.onnx"))
    grey = made("onnx", path=str(onnx_file(tmp_path / "grey.onnx", ("b", 1, 6, 6))))
    with pytest.raises(DuetError, match="its input is grey"):
        grey.compute(make_images(2))
