"""Files in TensorFlow's own formats: checkpoints, which are read, and the SavedModel, which is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from backends.tf.device import DeviceContext
from backends.tf.network import Network, to_host
from diffusion_core.backend.interface import Forward
from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import first_line
from diffusion_core.files.safe_read import open_regular
from diffusion_core.networks.program import Program

__all__ = ["export", "load_export", "load_network", "read_arrays"]


def read_arrays(path: str | Path) -> dict[str, NDArray]:
    """Return the variables of a TensorFlow checkpoint by name, with the shapes of the file.

    Args:
        path: its prefix, as in ``model.ckpt-790000``, or the directory that holds it.

    Raises:
        DuetError: if the checkpoint cannot be read.
    """
    try:
        for file in Path(path).parent.glob(f"{Path(path).name}.*"):
            open_regular(file).close()
        reader = tf.train.load_checkpoint(str(path))
        types = reader.get_variable_to_dtype_map()
        # Strings hold the object graph of the checkpoint, not variables.
        arrays = {name: np.asarray(reader.get_tensor(name)) for name in sorted(types) if types[name] != tf.string}
        # NumPy has no bfloat16 and no float8; TensorFlow gives them as types of another package.
        return {name: a.astype(np.float32) if a.dtype.kind == "V" else a for name, a in arrays.items()}
    except Exception as error:  # TensorFlow raises many types for a missing or corrupted file
        reason = first_line(error)
        hint = "; a file of PyTorch is read with backend=torch" if Path(path).suffix in (".pt", ".pth", ".bin") else ""
        raise DuetError(f"{path}: this is not a TensorFlow checkpoint ({reason}){hint}") from error


def export(network: Network, path: str | Path, shape: tuple[int, int, int]) -> None:
    """Write a network as a SavedModel whose batch dimension is free: ``(x, c_noise, label, features) -> F``.

    A self-conditioned network has the input ``estimate`` after them, a network of two times ``second_time``.

    Args:
        network: the network.
        path: the directory.
        shape: of an image, (h, w, c).
    """
    dtype = network.context.dtype
    inputs = (
        tf.TensorSpec([None, *shape], dtype, "x"),
        tf.TensorSpec([None], tf.float64, "c_noise"),
        tf.TensorSpec([None], tf.int32, "label"),
        tf.TensorSpec([None, network.program.features], dtype, "features"),
    )
    if network.program.self_conditioned:
        inputs += (tf.TensorSpec([None, *shape], dtype, "estimate"),)
    if network.program.two_times:
        inputs += (tf.TensorSpec([None], tf.float64, "second_time"),)
    names = [spec.name for spec in inputs]

    def forward(*given: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"F": network.apply_program(**dict(zip(names, given, strict=True)))}

    module = tf.Module()
    module.network = network
    module.forward = tf.function(forward, inputs, autograph=False)
    tf.saved_model.save(module, str(path), {"serving_default": module.forward})


def load_export(program: Program, path: str | Path, context: DeviceContext) -> Forward:
    """Return the network in a SavedModel that `export` wrote, as a function with the signature of `Network.forward`."""
    model = tf.saved_model.load(str(path))  # keep the model: its signature alone does not keep the variables alive

    def forward(
        x: NDArray,
        c_noise: NDArray,
        label: NDArray,
        features: NDArray | None = None,
        estimate: NDArray | None = None,
        second_time: NDArray | None = None,
    ) -> NDArray:
        inputs = {
            "x": context.images(x),
            "c_noise": context.tensor(c_noise, tf.float64),
            "label": context.tensor(label, tf.int32),
            "features": context.tensor(np.zeros((len(x), program.features)) if features is None else features),
        }
        if program.self_conditioned:
            inputs["estimate"] = tf.zeros_like(inputs["x"]) if estimate is None else context.images(estimate)
        if program.two_times:
            times = np.full(len(x), program.default_second_time) if second_time is None else second_time
            inputs["second_time"] = context.tensor(times, tf.float64)
        return to_host(model.signatures["serving_default"](**inputs)["F"])

    return forward


def load_network(path: str | Path) -> Any:
    """Return the network in a SavedModel directory or a ``.keras`` file; code that a ``.keras`` file holds is refused.

    Raises:
        DuetError: if it cannot be read.
    """
    try:
        if Path(path).suffix == ".keras":
            import keras

            return keras.saving.load_model(path, compile=False, safe_mode=True)
        return tf.saved_model.load(str(path))
    except Exception as error:  # both readers raise many types
        raise DuetError(f"network: {path} cannot be read ({first_line(error)})") from error
