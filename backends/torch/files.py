"""Files in PyTorch's own formats, read and written: state dicts."""

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

__all__ = ["export", "load_export", "read_arrays"]


def read_arrays(path: str | Path) -> dict[str, NDArray]:
    """Return the arrays of a state dict that `torch.save` wrote, by name. Only tensors are unpickled, never code.

    Raises:
        DuetError: if the file cannot be read, or is not a mapping of names to tensors.
    """
    try:
        with open_regular(path) as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        hint = "; a checkpoint of TensorFlow is read with backend=tf" if Path(f"{path}.index").exists() else ""
        raise DuetError(f"{path}: it cannot be read ({error.strerror or error}){hint}") from error
    except pickle.UnpicklingError as error:  # its message advises to disable this check
        raise DuetError(
            f"{path}: this is not a PyTorch state dict, or it holds objects that run code when they are read; if you "
            f"trust the file, save its state dict alone, with torch.save or safetensors"
        ) from error
    except Exception as error:  # the zip reader raises many types, depending on where the file is corrupted
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DuetError(f"{path}: this is not a PyTorch state dict ({reason})") from error
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
        network: the network.
        path: the file.
        shape: of an image, (h, w, c); written to the metadata of the file.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    notes = {"program_sha256": network.program.sha256, "image_shape": ",".join(map(str, shape))}
    Path(path).write_bytes(save(tensors, notes))


def load_export(program: Program, path: str | Path, context: DeviceContext) -> Forward:
    """Return the network in a file that `export` wrote, as a function with the signature of `Network.forward`."""
    return Network(program, load_file(path), context).forward
