"""The seam between the core and a framework.

`interface` defines the data that crosses it and what a backend must offer; `reference` is a backend in NumPy that every
other one is compared with; `compile_policy` decides when compiling pays.

May import: sampling, networks, optim, runtime, diffusion and below.
"""
