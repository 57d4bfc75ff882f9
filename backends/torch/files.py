"""Files that PyTorch reads or writes for use elsewhere: state dicts."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.torch import save

from backends.torch.device import DeviceContext
from backends.torch.network import Network
from diffusion_core.backend.interface import Forward
from diffusion_core.common.errors import DuetError
from diffusion_core.files.safe_read import open_regular
from diffusion_core.networks.program import Program

__all__ = ["export", "exported", "read_arrays"]


def read_arrays(path: str | Path) -> dict[str, NDArray]:
    """The arrays of a state dict that `torch.save` wrote, by name. Only tensors are unpickled, never code.

    Raises:
        DuetError: if it cannot be read, holds anything else than tensors and plain numbers, or is no mapping of names.
    """
    try:
        with open_regular(path) as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        hint = "; a checkpoint of TensorFlow is read with backend=tf" if Path(f"{path}.index").exists() else ""
        raise DuetError(f"{path}: it cannot be read ({error.strerror or error}){hint}") from error
    except pickle.UnpicklingError as error:  # its own text advises to read the file without this care
        raise DuetError(
            f"{path}: it is no state dict of PyTorch, or it holds more than weights, which would run code when read; "
            f"where you trust it, save its state dict alone, with torch.save or safetensors"
        ) from error
    except Exception as error:  # what a zip reader raises depends on the byte at which the file stops to make sense
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DuetError(f"{path}: it is no state dict of PyTorch ({reason})") from error
    if not isinstance(content, dict) or not content:
        raise DuetError(f"{path}: it holds a {type(content).__name__}; a state dict is a mapping of names to tensors")
    arrays = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise DuetError(f"{path}: {name!r} is a {type(value).__name__}; a state dict has a tensor for each name")
        # NumPy has no bfloat16.
        value = value.float() if value.dtype == torch.bfloat16 else value
        arrays[name] = np.ascontiguousarray(value.detach().numpy())
    return arrays


def export(network: Network, path: str | Path, shape: tuple[int, int, int]) -> None:
    """Write the state dict of a network as safetensors, under the names of the manifest.

    Args:
        path: the file.
        shape: of an image, (h, w, c); it is noted in the file's metadata.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    notes = {"program_sha256": network.program.sha256, "image_shape": ",".join(map(str, shape))}
    Path(path).write_bytes(save(tensors, notes))


def exported(program: Program, path: str | Path, context: DeviceContext) -> Forward:
    """The network in a file that `export` wrote, as a function that is called as `Network.forward` is."""
    return Network(program, load_file(path), context).forward
