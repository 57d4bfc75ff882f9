"""State dicts under the names of another project, the inverse of its import.

A name map has a name for every parameter, but does not say what else a network of that project is: its epsilon, its
order of q, k and v. So the arrays are read back by the project's own import, and the network that it finds must be the
one that was written; otherwise the option in which the two differ is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.convert import (
    ddpm_tf,
    ddpm_torch,
    denoising_diffusion_pytorch,
    dit,
    dome272,
    edm,
    edm2,
    guided_diffusion,
    jit,
    uvit,
)
from diffusion_core.convert.names import NameMap, write_weights
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import (
    DiTSpec,
    DoubleConvSpec,
    EDM2Spec,
    JiTSpec,
    LinearAttentionSpec,
    NetworkSpec,
    Program,
    UNetSpec,
    UViTSpec,
    lower,
)
from diffusion_core.networks.weights import Weights

__all__ = ["PROJECTS", "export_state_dict"]

_Arrays = dict[str, NDArray]


def _read_guided(arrays: _Arrays, spec: UNetSpec) -> NetworkSpec:
    heads = {"heads": spec.heads} if spec.head_channels is None else {"head_channels": spec.head_channels}
    return guided_diffusion.read_spec(
        arrays, "", spec.image_size, qkv_order=spec.qkv_order, norm_groups=spec.norm_groups, dropout=spec.dropout,
        **heads,
    )  # fmt: skip


def _read_ddpm(arrays: _Arrays, spec: UNetSpec) -> NetworkSpec:
    inner = {name.removeprefix("model/"): array for name, array in arrays.items()}
    return ddpm_tf.read_spec(inner, "", spec.image_size, norm_groups=spec.norm_groups, dropout=spec.dropout)


def _read_ddpm_torch(arrays: _Arrays, spec: UNetSpec) -> NetworkSpec:
    return ddpm_torch.read_spec(arrays, "", spec.image_size, norm_groups=spec.norm_groups, dropout=spec.dropout)


def _read_edm(arrays: _Arrays, spec: UNetSpec) -> NetworkSpec:
    return edm.read_spec(arrays, "", spec.head_channels or 64, norm_groups=spec.norm_groups, dropout=spec.dropout)


def _read_edm2(arrays: _Arrays, spec: EDM2Spec) -> NetworkSpec:
    undetermined = (
        "head_channels", "dropout", "resample_filter", "label_balance", "concat_balance", "residual_balance",
        "attention_balance", "clip",
    )  # fmt: skip
    return edm2.read_spec(arrays, "", **{name: getattr(spec, name) for name in undetermined})


def _read_dome272(arrays: _Arrays, spec: DoubleConvSpec) -> NetworkSpec:
    return dome272.read_spec(arrays, "", spec.image_size, spec.heads)


def _read_lucid(arrays: _Arrays, spec: LinearAttentionSpec) -> NetworkSpec:
    return denoising_diffusion_pytorch.read_spec(arrays, "", spec.image_size, spec.dropout, spec.self_conditioning)


def _read_dit(arrays: _Arrays, spec: DiTSpec) -> NetworkSpec:
    return dit.read_spec(arrays, "", spec.heads, spec.null_class)


def _read_sit(arrays: _Arrays, spec: DiTSpec) -> NetworkSpec:
    return dit.read_spec(arrays, "", spec.heads, spec.null_class, discards=True)


def _read_uvit(arrays: _Arrays, spec: UViTSpec) -> NetworkSpec:
    return uvit.read_spec(arrays, "", spec.heads, spec.null_class if spec.num_classes else None)


def _read_jit(arrays: _Arrays, spec: JiTSpec) -> NetworkSpec:
    return jit.read_spec(arrays, "", spec.context_start, spec.dropout, spec.attention_dropout)


# By project: the architecture, the name map, and what reads the network back.
PROJECTS: dict[str, tuple[type[NetworkSpec], Callable[..., NameMap], Callable[..., NetworkSpec]]] = {
    "guided_diffusion": (UNetSpec, guided_diffusion.make_name_map, _read_guided),
    "ddpm_tf": (UNetSpec, ddpm_tf.make_name_map, _read_ddpm),
    "ddpm_torch": (UNetSpec, ddpm_torch.make_name_map, _read_ddpm_torch),
    "edm": (UNetSpec, edm.make_name_map, _read_edm),
    "edm2": (EDM2Spec, edm2.make_name_map, _read_edm2),
    "dome272": (DoubleConvSpec, dome272.make_name_map, _read_dome272),
    "dit": (DiTSpec, dit.make_name_map, _read_dit),
    "sit": (DiTSpec, dit.make_name_map, _read_sit),
    "denoising_diffusion_pytorch": (LinearAttentionSpec, denoising_diffusion_pytorch.make_name_map, _read_lucid),
    "uvit": (UViTSpec, uvit.make_name_map, _read_uvit),
    "jit": (JiTSpec, jit.make_name_map, _read_jit),
}


def export_state_dict(model: DiffusionModel, weights: Weights, project: str) -> dict[str, NDArray]:
    """Return the state dict of a network under the names of another project, in float32.

    Args:
        model: the network; its process is not part of a state dict.
        weights: the weights by name.
        project: a key of `PROJECTS`.

    Raises:
        DuetError: names the part or the option of the network that the project does not have.
    """
    check_choice("target.project", project, PROJECTS)
    kind, make_names, read_back = PROJECTS[project]
    if type(model.spec) is not kind:
        fitting = [name for name, (other, *_) in PROJECTS.items() if other is type(model.spec)]
        raise DuetError(
            f"target.project: {project} was given, but the network is a {type(model.spec).__name__}; "
            f"{'use ' + ' or '.join(fitting) if fitting else 'no other project has one'}"
        )
    if model.uncertainty and not model.spec.predicts_uncertainty:
        raise DuetError(f"process.uncertainty: true was given; a network of {project} has no channel for it")
    names = make_names(model.spec, model.program)
    arrays = {name: np.asarray(array, np.float32) for name, array in write_weights(names, weights).items()}
    if project == "edm":
        arrays |= edm.make_filters(model.spec, model.program)
    found = read_back(arrays, model.spec)
    if lower(found).sha256 != model.program.sha256:
        raise DuetError(_difference(model.spec, found, model.program, project))
    return arrays


def _difference(spec: NetworkSpec, found: NetworkSpec, program: Program, project: str) -> str:
    """Return the option in which a network differs from one of a project, as an error."""
    values: Mapping[str, tuple[Any, Any]] = {
        f.name: (getattr(spec, f.name), getattr(found, f.name))
        for f in fields(spec)
        if getattr(spec, f.name) != getattr(found, f.name)
    }
    for name, (given, own) in sorted(values.items(), key=lambda item: item[0] != "self_conditioning"):
        changed = {f.name: getattr(found if f.name == name else spec, f.name) for f in fields(spec)}
        try:
            is_why = lower(type(spec)(**changed)).sha256 != program.sha256
        except DuetError:  # the two options fit only together
            is_why = True
        if is_why:
            return f"model.{name}: {given} was given; a network of {project} has {own}"
    return f"model: this is not a network of {project}"
