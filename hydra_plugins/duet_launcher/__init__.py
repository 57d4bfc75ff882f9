"""A Hydra launcher that runs each job with the Python of the environment that owns its backend."""
