"""The science of Duet: everything that both frameworks share, in NumPy float64.

Nothing in this package imports PyTorch, TensorFlow, Hydra, `backends` or `experiments`.
A newcomer reads `schedule.py`, `process.py`, `sampling/plan.py`, `unet/standard.py` and
`reference.py` in this order, and then one backend.
"""
