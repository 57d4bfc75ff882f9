"""A model is a network with the process that it was trained for.

`diffusion_model` defines it; `generate` draws samples from it on any number of processes; `noise_strip` shows what
noise does to images; `old_names` reads the option names of earlier versions.

May import: data, backend, sampling, networks and below.
"""
