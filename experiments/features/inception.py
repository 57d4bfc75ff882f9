"""Inception v3 of 2015, as torch-fidelity converted it: the features of the Fréchet Inception distance.

    features        the last pooling layer, 2,048 numbers, for FID, KID, precision and recall
    spatial         the first 7 channels of a layer of 17 x 17 positions, 2,023 numbers, for sFID
    probabilities   of 1,008 classes, without the bias of the last layer, for the Inception score

The spatial layer is called `mixed_6/conv` in the graph of 2015 and `Mixed_6d.branch1x1` in torch-fidelity; it is read
after its ReLU.

The network takes uint8 images of 299 x 299 and three channels. There are two ways to resize images to that size:

    tensorflow1   bilinear as in the graph of 2015, without antialiasing and without rounding, by torch-fidelity; the
                  resize of published numbers and of torch-fidelity
    antialias     `diffusion_core.images.resize`: bilinear with antialiasing, rounded to uint8; it is part of the name
                  of a number, "FID, antialiased resize"

The weights are a file of the project torch-fidelity, identified by the hash in its name. Other weights are accepted (a
test needs them), but then a score is not called FID.

References:
    GANs trained by a two time-scale update rule converge to a local Nash equilibrium
    (Heusel et al., 2017), https://arxiv.org/abs/1706.08500
    Generating images with sparse representations (Nash et al., 2021), https://arxiv.org/abs/2103.03841
    Diffusion models beat GANs on image synthesis (Dhariwal and Nichol, 2021), https://arxiv.org/abs/2105.05233, whose
    evaluation, https://github.com/openai/guided-diffusion, uses these layers
    torch-fidelity (Obukhov et al., 2020), https://github.com/toshas/torch-fidelity
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import DEVICES
from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.images.resize import resize as antialiased
from diffusion_core.metrics.metric import FeatureKind
from diffusion_core.networks.weights import describe_non_finite
from experiments.features.kind import Features, MissingWeights, as_colour

__all__ = ["DOWNLOAD", "RESIZES", "features"]

SIZE, LAYERS, SPATIAL_CHANNELS = 299, ("2048", "logits_unbiased"), 7
# The ways to resize, each with its suffix to the names of numbers.
RESIZES = {"tensorflow1": "", "antialias": "antialiased resize"}
# The value of `weights` that downloads the file.
DOWNLOAD = "download"


def features(*, weights: str | None = None, resize: str = "tensorflow1", device: str = "auto") -> Features:
    """Return the layers of Inception v3.

    Args:
        weights: torch-fidelity's file of weights; ``"download"`` downloads it as torch-fidelity does, into the folder
            where PyTorch stores such files, or uses the file that is there.
        resize: how images are resized to 299 x 299, one of `RESIZES`.
        device: as `diffusion_core.backend.interface.BackendConfig.device`.

    Raises:
        MissingWeights: no weights were given.
        DuetError: torch-fidelity is not installed, or an option or the file is invalid.
    """
    for what, value, allowed in (("resize", resize, RESIZES), ("device", device, DEVICES)):
        check_choice(f"inception: {what}", value, allowed)
    if not weights:
        raise MissingWeights(
            f"inception: no weights were given; give torch-fidelity's file with features.weights=FILE.pth, "
            f"or download it with features.weights={DOWNLOAD}"
        )
    try:
        import torch
        from torch_fidelity import feature_extractor_inceptionv3 as source

        from backends.torch.files import read_arrays
    except ImportError as error:
        raise DuetError(
            f"inception: it needs PyTorch and torch-fidelity, which are not installed here ({error}); "
            "run it with: python3 -m duet evaluate backend=torch ..."
        ) from error
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise DuetError("inception: device cuda was given, but PyTorch finds no CUDA device; use cpu or auto")
    torch_device = torch.device("cuda" if has_cuda and device != "cpu" else "cpu")
    name = source.URL_INCEPTION_V3.rsplit("/", 1)[1]
    published = name.rsplit("-", 1)[1].removesuffix(".pth")
    path = _downloaded(source.URL_INCEPTION_V3, name, published) if weights == DOWNLOAD else Path(weights)
    arrays = read_arrays(path)
    if bad := describe_non_finite(arrays):
        raise DuetError(f"{path}: these arrays hold NaN or infinity: {bad}; use the published {name}")
    state = {key: torch.from_numpy(value) for key, value in arrays.items()}
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    # torch-fidelity unpickles its file, which can run code. So give it a file that was written here, from arrays.
    safe = io.BytesIO()
    torch.save(state, safe)
    safe.seek(0)
    try:
        network = source.FeatureExtractorInceptionV3("inception", list(LAYERS), feature_extractor_weights_path=safe)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise DuetError(f"{path}: it does not hold the weights of Inception v3; use {name} ({reason})") from error
    network = network.to(torch_device)
    spatial_outputs: list[Any] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: spatial_outputs.append(output))

    @torch.inference_mode()
    def compute(images: NDArray[np.uint8]) -> dict[str, NDArray]:
        images = as_colour(images)
        if resize == "antialias":
            images = antialiased(images, SIZE)
        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(torch_device)
        # TF32 would round to ten bits of mantissa.
        with torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
            pool, logits = network(x)
        spatial = spatial_outputs.pop()[:, :SPATIAL_CHANNELS].flatten(1)
        probabilities = logits.double().softmax(dim=1)
        layers = {"features": pool, "spatial": spatial, "probabilities": probabilities}
        return {name: layer.cpu().numpy() for name, layer in layers.items()}

    facts = {"kind": "inception", "resize": resize, "weights_sha256": sha256, "quantised": "uint8"}
    is_published = sha256.startswith(published)
    name = "Inception" if is_published else f"Inception {sha256[:8]}"
    return Features(FeatureKind(name, facts, is_published, RESIZES[resize]), compute, _versions())


def _downloaded(url: str, name: str, sha256: str) -> Path:
    """Return the published file in PyTorch's folder of such files; download it if it is missing."""
    from torch import hub

    path = Path(hub.get_dir()) / "checkpoints" / name
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=False)
        except (OSError, RuntimeError) as error:
            raise DuetError(
                f"inception: {url} cannot be downloaded ({error}); copy {name} here and give features.weights=FILE"
            ) from error
    return path


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "torch-fidelity")}
