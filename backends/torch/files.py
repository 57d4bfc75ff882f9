"""Files in PyTorch's own formats: state dicts, which are read and written."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.torch import save

from backends.torch.device import DeviceContext
from backends.torch.network import Network
from diffusion_core.backend.interface import Forward
from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import first_line
from diffusion_core.files.safe_read import file_errors, open_regular
from diffusion_core.files.torch_file import flatten
from diffusion_core.networks.program import Program

__all__ = ["export", "load_export", "load_network", "read_arrays"]


def read_arrays(path: str | Path) -> dict[str, NDArray]:
    """Return the tensors in a file that `torch.save` wrote, by name. Only tensors are unpickled, never code.

    The tensors of nested mappings and lists, as in ``{"model": {...}, "ema": {...}, "step": 5}``, have joined names:
    ``model.conv.weight``, or ``0.conv.weight`` in a list.

    Raises:
        DuetError: if the file cannot be read, or holds no tensors.
    """
    try:
        with open_regular(path) as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        hint = "; a checkpoint of TensorFlow is read with backend=tf" if Path(f"{path}.index").exists() else ""
        raise DuetError(f"{path}: it cannot be read ({error.strerror or error}){hint}") from error
    except pickle.UnpicklingError as error:  # its message advises to disable this check
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise DuetError(
            f"{path}: this is not a PyTorch state dict, or it holds objects that run code when they are read"
            f"{f' ({found.group(1)})' if found else ''}; if you trust the file, save its state dict alone, as in: "
            f"torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pt')"
        ) from error
    except Exception as error:  # the zip reader raises many types, depending on where the file is corrupted
        reason = first_line(error)
        raise DuetError(f"{path}: this is not a PyTorch state dict ({reason})") from error

    def to_array(name: str, value: Any) -> NDArray | None:
        return _to_numpy(name, value.detach()) if isinstance(value, torch.Tensor) else None

    with file_errors(path):
        arrays = flatten(content, to_array)
    if not arrays:
        raise DuetError(f"{path}: it holds no tensors; a state dict is a mapping of names to tensors")
    return arrays


def _to_numpy(name: str, value: torch.Tensor) -> NDArray:
    if value.layout != torch.strided or value.is_quantized:
        raise DuetError(f"{name} is a sparse or quantised tensor; only plain ones are read")
    # NumPy has no bfloat16 and no float8.
    if value.dtype.is_floating_point and value.dtype not in (torch.float16, torch.float32, torch.float64):
        value = value.float()
    return np.asarray(value.resolve_conj().resolve_neg().numpy(), order="C")


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


def load_network(path: str | Path) -> NoReturn:
    """Raise a `DuetError`: the readers of PyTorch's formats of whole networks may run code that is in the file."""
    raise DuetError(f"network: {path} cannot be read; read it yourself, and give the module")
