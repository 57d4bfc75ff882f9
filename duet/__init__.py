"""Diffusion models that train and sample in several frameworks with the same numbers.

Importing this package loads nothing else: a public name is imported from its module when it is first used.
`python3 -m duet --help` lists the commands; `duet.cli` holds them and needs the standard library only.
"""
# This file and __main__.py must parse in any Python, so that an old one gets one clear line.

import importlib

# Public name: the module that defines it, and its name there if that is another one.
_PUBLIC = {
    # schedules, processes, samplers
    "SAMPLERS": "diffusion_core.sampling",
    "SCHEDULES": "diffusion_core.diffusion.schedule",
    "Process": "diffusion_core.diffusion.process",
    "SamplerPlan": "diffusion_core.sampling",
    "Schedule": "diffusion_core.diffusion.schedule",
    "make_plan": "diffusion_core.sampling",
    "process": "duet.api.processes",
    "samplers": "duet.api.samplers",
    "make_schedule": "diffusion_core.diffusion.schedule",
    # networks and models
    "adapt": "duet.api.own",
    "ClassifierSpec": "diffusion_core.networks",
    "DiTSpec": "diffusion_core.networks",
    "DoubleConvSpec": "diffusion_core.networks",
    "EDM2Spec": "diffusion_core.networks",
    "JiTSpec": "diffusion_core.networks",
    "LinearAttentionSpec": "diffusion_core.networks",
    "Model": "diffusion_core.model.diffusion_model:DiffusionModel",
    "PlainSpec": "diffusion_core.networks",
    "SimpleSpec": "diffusion_core.networks",
    "SixteenStepSpec": "diffusion_core.networks",
    "UNetSpec": "diffusion_core.networks",
    "UViTSpec": "diffusion_core.networks",
    "export_weights": "duet.api.weights",
    "import_weights": "duet.api.weights",
    "network": "duet.api.networks",
    # data and images
    "DATASETS": "diffusion_core.data",
    "Dataset": "diffusion_core.data",
    "decode": "duet.api.latents",
    "encode": "duet.api.latents",
    "load_dataset": "duet.api.data",
    "save_grid": "duet.api.images",
    "save_images": "duet.api.images",
    # training
    "Batch": "duet.api.batches",
    "batches": "duet.api.batches",
    "loss": "duet.api.own_loss",
    "Adafactor": "diffusion_core.optim.adafactor",
    "Adam": "diffusion_core.optim.adam",
    "Checkpoint": "diffusion_core.runs.checkpoint",
    "LearningRate": "diffusion_core.optim.adam",
    "Lion": "diffusion_core.optim.momentum",
    "Muon": "diffusion_core.optim.muon",
    "NAdam": "diffusion_core.optim.adam_variants",
    "RAdam": "diffusion_core.optim.adam_variants",
    "SGD": "diffusion_core.optim.momentum",
    "SOAP": "diffusion_core.optim.soap",
    "ScheduleFree": "diffusion_core.optim.schedule_free",
    "Objective": "diffusion_core.training.objective",
    "Optimiser": "diffusion_core.optim.optimiser",
    "TrainingConfig": "diffusion_core.training.training_config",
    "Run": "duet.api.runs",
    "load": "duet.api.runs",
    "make_ema": "diffusion_core.optim",
    "make_optimiser": "diffusion_core.optim",
    "train": "duet.api.training",
    # sampling and evaluation
    "METRICS": "diffusion_core.metrics.evaluate",
    "Scores": "duet.api.evaluation",
    "denoise": "duet.api.denoising",
    "evaluate": "duet.api.evaluation",
    "frechet_distance": "diffusion_core.metrics.frechet",
    "kernel_distance": "diffusion_core.metrics.kernel",
    "log_likelihood": "duet.api.likelihood",
    "sample": "duet.api.sampling",
    # evidence that a run was made as it says
    "certify": "duet.api.verification",
    "verify": "duet.api.verification",
    # images that agree with a measurement
    "LinearOperator": "diffusion_core.sampling.linear_operators",
    "Measurement": "diffusion_core.sampling.measurement",
    "edit": "duet.api.editing",
    "operators": "duet.api.operators",
    # comparison of two implementations
    "Difference": "duet.api.diff",
    "diff": "duet.api.diff",
    # exercises
    "check": "duet.exercises",
    "exercise": "duet.exercises",
    # backends
    "DuetError": "diffusion_core.common.errors",
    "default_backend": "duet.api.backends",
    "load_backend": "diffusion_core.backend.interface",
}

__all__ = list(_PUBLIC)


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError("module 'duet' has no attribute %r" % name)  # noqa: UP031
    module, _, attribute = _PUBLIC[name].partition(":")
    try:
        importlib.import_module("diffusion_core.common.errors").name_arguments()
        value = getattr(importlib.import_module(module), attribute or name)
    except ImportError:
        importlib.import_module("duet.layout").check_packages()  # a file of the user may have the name of a package
        raise
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__ + [name for name in globals() if name.startswith("__")])
