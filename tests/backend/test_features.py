"""Features of pictures: the same numbers as torch-fidelity and onnxruntime give, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffusion_core.data.digits import digits
from diffusion_core.errors import DuetError
from diffusion_core.metrics.digits import fit_judge
from diffusion_core.metrics.frechet import frechet_distance
from diffusion_core.metrics.resize import resize
from diffusion_core.registry import build
from features import FEATURES, Features, extract


def pictures(count: int, size: int = 12, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Noise with structure, so that means and covariances of features differ between seeds."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 3, 3, channels)).astype(np.uint8)
    return resize(coarse, size) // (1 + seed)


def made(name: str, **options: object) -> Features:
    return build("frechet", FEATURES, name, options)


def stand_in(width: int = 6, size: int = 8):
    """A small network of features as a torch module: uint8 b c h w to float32 b f."""
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


def test_the_same_features_give_torch_fidelitys_number():
    """Its own function from pictures to FID, with a small network of features in the place of Inception."""
    import torch
    from torch_fidelity import calculate_metrics, register_feature_extractor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    network = stand_in()

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

    class Pictures(torch.utils.data.Dataset):
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            return torch.from_numpy(self.images[index].transpose(2, 0, 1).copy())

    register_feature_extractor("small", Small)
    a, b = pictures(40, 8), pictures(50, 8, seed=1)
    theirs = calculate_metrics(
        input1=Pictures(a), input2=Pictures(b), fid=True, feature_extractor="small", cuda=False, verbose=False,
        cache=False, save_cpu_ram=True,
    )["frechet_inception_distance"]  # fmt: skip

    def of(images):
        return network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).double().numpy()

    ours = Features("of a small network", of, {})
    found = frechet_distance(extract(ours, a, 16), extract(ours, b, 7))
    assert theirs > 0.1
    assert found == pytest.approx(theirs, rel=1e-6)
    # It can fail: a covariance divided by N instead of N - 1.
    given = extract(ours, a, 16)
    narrow = given.mean(axis=0) + (given - given.mean(axis=0)) * np.sqrt((len(a) - 1) / len(a))
    assert frechet_distance(narrow, extract(ours, b, 7)) != pytest.approx(theirs, rel=1e-6)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Weights of Inception v3 drawn at random, in a file of the format that torch-fidelity publishes."""
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as source

    # Its constructor always reads a file.
    class Unread(source.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict, *args, **kwargs):
            return None

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty.pth")
    network = Unread("inception", ["2048"], feature_extractor_weights_path=folder / "empty.pth")
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(0.3)  # else what is left of the pictures after a hundred layers is small
    torch.save(network.state_dict(), folder / "random.pth")
    return folder / "random.pth"


@pytest.fixture(scope="module")
def theirs(weights):
    """torch-fidelity's own network with those weights: uint8 b h w c to (b, 2048)."""
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as source

    network = source.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=weights)

    def of(images):
        with torch.inference_mode():
            return network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))[0].double().numpy()

    return of


@pytest.fixture(scope="module")
def inception(weights) -> Features:
    return made("inception", weights=str(weights), device="cpu")


def test_inception_is_torch_fidelitys_network_on_pictures_resized_with_antialiasing(inception, theirs):
    images = pictures(2)
    found = extract(inception, images, 2)
    assert found.shape == (2, 2048) and found.dtype == np.float64
    scale = np.abs(found).max()
    assert np.abs(found[0] - found[1]).max() > 0.05 * scale
    np.testing.assert_allclose(found[:1], theirs(resize(images[:1], 299)), atol=1e-5 * scale)
    # Not what torch-fidelity does with a small picture.
    assert np.abs(found[:1] - theirs(images[:1])).max() > 1e-2 * scale
    assert inception.facts["resize"] == "antialias" and len(inception.facts["weights_sha256"]) == 64


def test_inception_resizes_as_torch_fidelity_where_asked_and_takes_grey_pictures_as_colour(weights, theirs):
    features = made("inception", weights=str(weights), resize="tensorflow1", device="cpu")
    images = pictures(1, channels=1)
    expected = theirs(np.repeat(images, 3, axis=3))
    np.testing.assert_allclose(extract(features, images, 2), expected, atol=1e-5 * np.abs(expected).max())


def test_only_the_published_weights_give_a_score_called_fid(inception):
    assert "FID" not in inception.score and inception.score.startswith("Fréchet distance of Inception ")
    assert "FID" not in made("digits").score


def test_weights_that_carry_code_or_do_not_fit_are_refused(tmp_path, weights):
    import torch

    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"fc.weight": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(DuetError, match=r"harmful\.pth: .* would run code"):
        made("inception", weights=str(tmp_path / "harmful.pth"))
    assert not (tmp_path / "ran").exists()
    state = torch.load(weights, weights_only=True)
    del state["Mixed_5b.branch1x1.conv.weight"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(DuetError, match=r"short\.pth: .*weights-inception-.*Mixed_5b\.branch1x1\.conv\.weight"):
        made("inception", weights=str(tmp_path / "short.pth"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no weights were given; name torch-fidelity's file with weights=FILE.pth"),
        ({"weights": "nowhere.pth"}, "nowhere.pth: it cannot be read"),
        ({"weights": "x.pth", "resize": "bicubic"}, "'bicubic' was given; it must be one of antialias, tensorflow1"),
        ({"weights": 3}, "weights: 3 was given; it must be text or null"),
    ],
)
def test_options_of_inception_that_do_not_fit_are_refused(options, message):
    with pytest.raises(DuetError, match=message):
        made("inception", **options)


def test_a_download_that_fails_says_what_file_to_bring(monkeypatch, tmp_path):
    from torch import hub

    def refused(url, target, **options):
        assert options["hash_prefix"] in url and target.startswith(str(tmp_path))
        raise OSError("no network")

    monkeypatch.setattr(hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(hub, "download_url_to_file", refused)
    with pytest.raises(DuetError, match=r"no network\); bring the file weights-inception-2015-12-05-\w+\.pth"):
        made("inception", weights="download")


# Digits and ONNX


def test_the_digits_features_are_those_of_the_judge():
    judge, images = fit_judge(), digits().images[:20]
    np.testing.assert_allclose(extract(made("digits"), images, 8), judge.features(images), rtol=1e-12)


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
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("shape", [("b", 3, 6, 6), ("b", 6, 6, 3)])
def test_an_onnx_file_gets_pictures_of_its_size_layout_and_range(tmp_path, shape):
    path = onnx_file(tmp_path / "means.onnx", shape)
    images = pictures(5, 12)
    features = made("onnx", path=str(path), low=0.0, high=1.0, threads=1)
    small = resize(images, 6) / 255.0
    expected = np.concatenate([small[:, 0].mean(axis=1), small[:, :, 0].mean(axis=1)], axis=1)
    np.testing.assert_allclose(extract(features, images, 2), expected, atol=1e-6)
    signed = made("onnx", path=str(path), threads=1)
    np.testing.assert_allclose(extract(signed, images, 5), 2 * expected - 1, atol=1e-6)
    assert features.facts["size"] == 6 and features.score == "Fréchet distance of means.onnx"
    grey = images[..., :1]
    np.testing.assert_array_equal(extract(features, grey, 5), extract(features, np.repeat(grey, 3, axis=3), 5))


def test_an_onnx_file_that_does_not_fit_is_refused(tmp_path):
    path = onnx_file(tmp_path / "any.onnx", ("b", 3, "h", "w"))
    with pytest.raises(DuetError, match="size=PIXELS"):
        made("onnx", path=str(path))
    with pytest.raises(DuetError, match="10 was given, but it takes pictures of 6"):
        made("onnx", path=str(onnx_file(tmp_path / "six.onnx", ("b", 3, 6, 6))), size=10)
    with pytest.raises(DuetError, match="there must be one, of square float32 pictures"):
        made("onnx", path=str(onnx_file(tmp_path / "two.onnx", ("b", 2, 6, 6))))
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(DuetError, match=r"text\.onnx: onnxruntime cannot run it"):
        made("onnx", path=str(tmp_path / "text.onnx"))
    grey = made("onnx", path=str(onnx_file(tmp_path / "grey.onnx", ("b", 1, 6, 6))))
    with pytest.raises(DuetError, match="it takes grey ones"):
        grey.of(pictures(2))
