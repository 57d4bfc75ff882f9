"""The science of Duet: everything that both frameworks share, computed with NumPy in float64.

Nothing in this package imports PyTorch, TensorFlow, Hydra, `backends` or `experiments`. Its packages import in one
direction, lowest first:

    common                          errors, random streams, registries
    files, runtime, statistics      safe reading and writing; processes and signals; paired comparisons
    diffusion                       noise schedules, processes, timestep sampling, loss weights
    networks, optim, images         networks as programs; Adam and moving averages; grids and PNG files
    sampling                        samplers as tables of coefficients
    backend                         the interface of a framework, and its NumPy reference
    data                            data sets and their order
    model                           a network with its process; drawing samples from it
    likelihood, training            bounds and densities; the training loop
    runs, convert, metrics          run directories; weights of other projects; measures of samples
    parity                          the comparison of the frameworks

A newcomer reads `diffusion/schedule.py`, `diffusion/process.py`, `sampling/plan.py`, `networks/unet.py` and
`backend/reference/` in this order, and then one backend.
"""
