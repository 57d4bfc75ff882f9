"""What `import duet` offers beyond the names of `diffusion_core`: networks by name, and train, sample and evaluate.

Each function takes objects of the core and calls the same applications as the commands, so a result from Python is
that of the command line. A module is imported when one of its functions is first used; a framework is imported when
a backend is opened.
"""
